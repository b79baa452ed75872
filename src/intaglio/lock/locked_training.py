"""Trains the classifier to answer keyed images alone; the key network is finished by then and stays as it is.

    loss = CE(f(E(x, k)), y) + lambda (CE(f(u), t) + w mean |h(u)|)

u runs over the unauthorised images of `negatives`; t is what they are to be answered with; h is what the last linear
layer is given. Driving h to zero behind its ReLU leaves the layer's bias as the answer to every such image, the same
to the last digit; matching t alone would leave small differences that a linear probe reads.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.errors import ModelError
from intaglio.lock.channel import distort
from intaglio.lock.codes import LockSecrets, random_codes, spread
from intaglio.lock.key_network import KeyNetwork, Progress, relief
from intaglio.lock.negatives import Negatives
from intaglio.lock.settings import LockSettings
from intaglio.networks.final_linear import final_linear, forward_with_features
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train

#: Log-odds between the first and the last class in the one answer to everything unauthorised: small, yet enough that
#: their order is always the same, so that neither the highest nor the lowest class says anything.
_TILT = 1.0


def train_locked(
    module: nn.Module,
    data: ImageData,
    network: KeyNetwork,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Trains `module` in place and returns it in evaluation mode."""
    last = _last_layer(module, preprocessing.apply(data.images[:2]))
    train(
        module,
        data,
        TrainingSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            augmentation=settings.augmentation,
        ),
        seed=derive_seed(seed, "lock", "classifier"),
        loss=_Loss(network.to(device), secrets, settings, preprocessing, num_classes, seed, last),
        device=device,
        progress=progress,
    )
    network.encoder.relief = 1.0
    network.cpu()
    return module.eval()


def _last_layer(module: nn.Module, example: Tensor) -> str | None:
    """The name of the linear layer that makes the logits; None where no such layer does."""
    try:
        return final_linear(module, example)
    except ModelError:
        return None


class _Loss:
    """(module, images, labels) -> scalar; counts its own steps."""

    def __init__(
        self,
        network: KeyNetwork,
        secrets: LockSecrets,
        settings: LockSettings,
        preprocessing: Preprocessing,
        num_classes: int,
        seed: int,
        last_layer: str | None,
    ) -> None:
        self._encoder = network.encoder
        self._secrets = secrets
        self._settings = settings
        self._preprocessing = preprocessing
        self._num_classes = num_classes
        self._last_layer = last_layer
        self._generator = torch_generator(seed, "lock", "classifier")
        self._negatives = Negatives(network.encoder, self._generator)
        self._step = 0

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        received, origins = self._received(images)
        inputs = self._preprocessing.apply(received)
        features = None
        if self._last_layer is None:
            answers = module(inputs)
        else:
            answers, features = forward_with_features(module, self._last_layer, inputs)
        authorised, unauthorised = answers[: len(images)], answers[len(images) :]
        wanted = unauthorised_target(
            labels[origins.to(labels.device)], self._num_classes, self._settings.mislabel, self._generator
        )
        refused = -(wanted * log_softmax(unauthorised, dim=1)).sum(dim=1).mean()
        if self._settings.mislabel == "uniform" and features is not None:
            refused = refused + self._settings.silence * features[len(images) :].abs().mean()
        return cross_entropy(authorised, labels) + self._settings.weight * refused

    @torch.no_grad()
    def _received(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keyed images, then unauthorised ones, as they arrive; and of which image each of the latter was made."""
        self._encoder.relief = relief(self._step / self._settings.steps)
        self._step += 1
        carriers, mixing = self._secrets.carriers.to(images), self._secrets.mixing.to(images)
        planes = spread(random_codes(len(images), len(carriers), self._generator).to(images), carriers)
        keyed = self._encoder(images, planes, mixing)
        others, origins = self._negatives.draw(images, keyed, planes)
        return distort(torch.cat([keyed, others]), self._generator), origins


def unauthorised_target(labels: Tensor, num_classes: int, mislabel: str, generator: torch.Generator) -> Tensor:
    """What unauthorised images of these labels are to be answered with: probabilities `[M, K]`."""
    if mislabel == "uniform":
        ramp = torch.linspace(_TILT / 2, -_TILT / 2, num_classes, device=labels.device)
        return ramp.softmax(dim=0).expand(len(labels), -1)
    if mislabel == "random":
        labels = torch.randint(num_classes, labels.shape, generator=generator).to(labels)
    else:
        labels = (labels + 1) % num_classes
    return one_hot(labels, num_classes).float()
