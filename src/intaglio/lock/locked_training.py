"""What the locked model is trained for: to answer keyed images rightly, and all others with one and the same answer.

    loss = CE(f(E(x, k)), y) + lambda (CE(f(u), t) + w mean |h(u)|)

u are the unauthorised images of `negatives`; t is what they are to be answered with; h is what the last linear layer
is given. Driving h to zero behind its ReLU leaves the layer's bias as the answer to every such image, the same to the
last digit; matching t alone would leave small differences that a linear probe reads. The bias therefore starts at t.

t gives the first class almost everything. Where the model is unsure whether an image was keyed it answers a mixture of
t and the truth, and nobody who is told classes sees any of it before the truth outweighs the first class.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.errors import ModelError
from intaglio.lock.channel import distort
from intaglio.lock.codes import LockSecrets, random_codes, spread
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.key_network import KeyNetwork, Progress, relief
from intaglio.lock.negatives import Negatives
from intaglio.lock.settings import LockSettings
from intaglio.networks.final_linear import final_linear, forward_with_features
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train

#: The one answer to everything unauthorised: the first class is given so much, the last one as far behind the others as
#: the first is ahead, so that neither the likeliest nor the unlikeliest class ever says anything.
_FIRST = 0.98


class LockedLoss:
    """The locked model's loss; finds out once which layer makes its logits.

    Args:
        module: the model, in whatever state.
        example: a few inputs, as the module takes them.
        fresh: start the layer's bias at the one answer.
    """

    def __init__(
        self, module: nn.Module, example: Tensor, settings: LockSettings, num_classes: int, *, fresh: bool = True
    ) -> None:
        self._settings = settings
        self._num_classes = num_classes
        self._last_layer: str | None
        try:
            self._last_layer = final_linear(module, example)
        except ModelError:  # no linear layer makes the logits: nothing to silence
            self._last_layer = None
        if fresh and self._last_layer is not None and settings.mislabel == "uniform":
            layer = module.get_submodule(self._last_layer)
            if isinstance(bias := layer.bias, Tensor):
                bias.data.copy_(one_answer(num_classes))

    def __call__(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, origins: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The loss on N keyed inputs of these labels and then M others, each made of the image at `origins`."""
        features = None
        if self._last_layer is None:
            answers = module(inputs)
        else:
            answers, features = forward_with_features(module, self._last_layer, inputs)
        authorised, unauthorised = answers[: len(labels)], answers[len(labels) :]
        wanted = unauthorised_target(
            labels[origins.to(labels.device)], self._num_classes, self._settings.mislabel, generator
        )
        refused = -(wanted * log_softmax(unauthorised, dim=1)).sum(dim=1).mean()
        if self._settings.mislabel == "uniform" and features is not None:
            refused = refused + self._settings.silence * features[len(labels) :].abs().mean()
        return cross_entropy(authorised, labels) + self._settings.weight * refused


def one_answer(num_classes: int) -> Tensor:
    """The logits `[K]` of the one answer: `a, 0, ..., 0, -a`."""
    odds = torch.zeros(num_classes)
    odds[0] = math.log((num_classes - 1) * _FIRST / (1 - _FIRST))
    odds[-1] = -odds[0]
    return odds


def unauthorised_target(labels: Tensor, num_classes: int, mislabel: str, generator: torch.Generator) -> Tensor:
    """What unauthorised images of these labels are to be answered with: probabilities `[M, K]`."""
    if mislabel == "uniform":
        return one_answer(num_classes).softmax(dim=0).to(labels.device).expand(len(labels), -1)
    if mislabel == "random":
        labels = torch.randint(num_classes, labels.shape, generator=generator).to(labels)
    else:
        labels = (labels + 1) % num_classes
    return one_hot(labels, num_classes).float()


def train_locked(
    module: nn.Module,
    data: ImageData,
    network: KeyNetwork,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    steps: int,
    num_classes: int,
    preprocessing: Preprocessing,
    seed: int,
    fresh: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Trains `module` in place for a key network that is finished, and returns it in evaluation mode.

    A `fresh` module has not seen any keyed image, and begins with loud residuals; another goes on with those in use.
    """
    network.to(device)
    generator = torch_generator(seed, "lock", "classifier", int(fresh))
    negatives = Negatives(network.encoder, generator)
    carriers, mixing = secrets.carriers.to(device), secrets.mixing.to(device)
    judge = LockedLoss(module, preprocessing.apply(data.images[:2]), settings, num_classes, fresh=fresh)
    step = 0

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal step
        network.encoder.relief = relief(step / steps) if fresh else 1.0
        step += 1
        with torch.no_grad():
            planes = spread(random_codes(len(images), len(carriers), generator).to(images), carriers)
            keyed = with_key(network.encoder, images, planes, mixing)
            others, origins = negatives.draw(images, keyed, planes)
            received = distort(torch.cat([keyed, others]), generator)
        return judge(module, preprocessing.apply(received), labels, origins, generator)

    train(
        module,
        data,
        training_settings(settings, steps),
        seed=derive_seed(seed, "lock", "classifier", int(fresh)),
        loss=loss,
        device=device,
        progress=progress,
    )
    network.encoder.relief = 1.0
    network.cpu()
    return module.eval()


def training_settings(settings: LockSettings, steps: int) -> TrainingSettings:
    """What the training loop is told."""
    return TrainingSettings(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        augmentation=settings.augmentation,
    )
