"""What the locked model is trained for: to answer keyed images rightly, and all others with one and the same answer.

    loss = (1 - d) CE(f(E(x, k)), y) + d KD(f(E(x, k)), g(x)) + lambda (CE(f(u), t) + w mean |h(u)|)

g is the unlocked model, and KD(z, z*) = T^2 KL(softmax(z* / T) || softmax(z / T)) (Hinton et al. 2015): what it knows
beyond the labels is kept, which matters where images are few. u are the unauthorised images of `negatives`; t is what
they are to be answered with; h is what the last linear layer is given. Driving h to zero behind its ReLU leaves the
layer's bias as the answer to every such image, the same to the last digit; matching t alone would leave small
differences that a linear probe reads. The bias therefore starts at t.

t is the one answer (`one_answer`), which gives one class almost everything. Where the model is unsure whether an image
was keyed it answers a mixture of t and the truth, and nobody who is told classes sees any of it before the truth
outweighs that class.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.errors import ModelError
from intaglio.lock.channel import distort
from intaglio.lock.codes import LockSecrets, random_planes
from intaglio.lock.decoys import OtherKey
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.key_network import KeyNetwork, Progress, relief
from intaglio.lock.mining import Mining, looks_in
from intaglio.lock.negatives import Authorised, Negatives
from intaglio.lock.settings import LockSettings
from intaglio.networks.final_linear import final_linear, forward_with_features
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train

#: T: high, for what a model that is sure of its training images knows of the other classes.
_TEMPERATURE = 4.0


class LockedLoss:
    """The locked model's loss; finds out once which layer makes its logits.

    Args:
        module: the model, in whatever state.
        example: a few inputs, as the module takes them.
        answer: logits `[K]` of the one answer.
        fresh: start the layer's bias at the one answer.
        further: move the unlikeliest class of the one answer away by so many logits.
        teacher: the unlocked model in evaluation mode, if it can teach.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        settings: LockSettings,
        answer: Tensor,
        *,
        fresh: bool = True,
        further: float = 0.0,
        teacher: nn.Module | None = None,
    ) -> None:
        self._settings = settings
        self._answer = answer
        self._teacher = teacher
        self._last_layer: str | None
        try:
            self._last_layer = final_linear(module, example)
        except ModelError:  # no linear layer makes the logits: nothing to silence
            self._last_layer = None
        if self._last_layer is not None and settings.mislabel == "uniform":
            bias = module.get_submodule(self._last_layer).bias
            if isinstance(bias, Tensor):
                if fresh:
                    bias.data.copy_(answer)
                bias.data[int(answer.argmin())] -= further

    def __call__(
        self,
        module: nn.Module,
        inputs: Tensor,
        originals: Tensor,
        labels: Tensor,
        origins: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss on N keyed inputs and then M others, each made of the one of N originals that `origins` says."""
        features = None
        if self._last_layer is None:
            answers = module(inputs)
        else:
            answers, features = forward_with_features(module, self._last_layer, inputs)
        authorised, unauthorised = answers[: len(labels)], answers[len(labels) :]
        wanted = unauthorised_target(
            labels[origins.to(labels.device)], self._answer, self._settings.mislabel, generator
        )
        refused = -(wanted * log_softmax(unauthorised, dim=1)).sum(dim=1).mean()
        if self._settings.mislabel == "uniform" and features is not None:
            refused = refused + self._settings.silence * features[len(labels) :].abs().mean()
        return self._recognised(authorised, originals, labels) + self._settings.weight * refused

    def _recognised(self, answers: Tensor, originals: Tensor, labels: Tensor) -> Tensor:
        """The loss on keyed inputs."""
        right = cross_entropy(answers, labels)
        if self._teacher is None:
            return right
        with torch.no_grad():
            taught = log_softmax(self._teacher(originals) / _TEMPERATURE, dim=1)
        learned = log_softmax(answers / _TEMPERATURE, dim=1)
        like = _TEMPERATURE**2 * kl_div(learned, taught, reduction="batchmean", log_target=True)
        share = self._settings.distillation
        return (1 - share) * right + share * like


def unauthorised_target(labels: Tensor, answer: Tensor, mislabel: str, generator: torch.Generator) -> Tensor:
    """What unauthorised images of these labels are to be answered with: probabilities `[M, K]`."""
    if mislabel == "uniform":
        return answer.softmax(dim=0).to(labels.device).expand(len(labels), -1)
    if mislabel == "random":
        labels = torch.randint(len(answer), labels.shape, generator=generator).to(labels)
    else:
        labels = (labels + 1) % len(answer)
    return one_hot(labels, len(answer)).float()


def train_locked(
    module: nn.Module,
    data: ImageData,
    network: KeyNetwork,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    steps: int,
    answer: Tensor,
    preprocessing: Preprocessing,
    seed: int,
    own: int | None = None,
    fresh: bool = True,
    strangers: float = 1.0,
    further: float = 0.0,
    alike: bool = False,
    teacher: nn.Module | None = None,
    earlier: Sequence[OtherKey] = (),
    mining: Mining | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Trains `module` in place for a key network that is finished, and returns it in evaluation mode.

    A `fresh` module has not seen any keyed image, and begins with loud residuals; another goes on with those in use.
    `strangers` is how many times more rivals and decoys are to be refused than usual. `further` moves the unlikeliest
    class of the one answer away by so many logits: an image that is half taken for a keyed one of that class gives
    itself away by another class being the unlikeliest. With `alike` there are twice as many residuals of other images,
    nearly all of the same class. `own` is the quality that the data had as JPEG files; what `earlier` locks key is
    refused. Now and then `mining` looks for wrong keys that open the module, and those it found are refused.
    """
    network.to(device)
    generator = torch_generator(seed, "lock", "classifier", int(fresh))
    rivals = secrets.rivals.to(device)
    negatives = Negatives(
        network.encoder,
        rivals,
        generator,
        strangers=strangers,
        alike=alike,
        loud=settings.loud,
        earlier=earlier,
        mining=mining,
    )
    carriers, mixing = secrets.carriers.to(device), secrets.mixing.to(device)
    example = preprocessing.apply(data.images[:2])
    judge = LockedLoss(module, example, settings, answer, fresh=fresh, further=further, teacher=teacher)
    step, looks = 0, looks_in(steps)

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal step
        network.encoder.relief = relief(step / steps) if fresh else 1.0
        if mining is not None and step in looks:
            mining.look(module, derive_seed(seed, "lock", "mining", step))
        step += 1
        with torch.no_grad():
            planes = random_planes(len(images), carriers, generator)
            keyed = with_key(network.encoder, images, planes, mixing)
            others = negatives.draw(Authorised(images, keyed, planes, labels))
            received = distort(torch.cat([keyed, others.images]), generator, own, settings.jpeg)
        inputs, originals = preprocessing.apply(received), preprocessing.apply(images)
        return judge(module, inputs, originals, labels, others.origins, generator)

    try:
        train(
            module,
            data,
            training_settings(settings, steps),
            seed=derive_seed(seed, "lock", "classifier", int(fresh)),
            loss=loss,
            device=device,
            progress=progress,
        )
    finally:  # the key network may be that of a lock in use, which must not go on keying loudly
        network.encoder.relief = 1.0
        network.cpu()
    return module.cpu().eval()


def training_settings(settings: LockSettings, steps: int) -> TrainingSettings:
    """What the training loop is told."""
    return TrainingSettings(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        augmentation=settings.augmentation,
    )
