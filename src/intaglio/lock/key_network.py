"""Trains the key network: encoder and decoder together, against a critic that must tell keyed images from all others.

    loss = BCE(critic) + w_b BCE(decoded bits) + w_s relu(S - SSIM)

The critic is a copy of the very classifier that is to be locked, its answer read as z_0 - z_1: whatever it can tell
apart the locked model can learn to tell apart. No label is used, so the residual can't learn to spell the class out.
Training starts with a residual four times as loud, which is lowered to its bounds over the first half.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from intaglio.classifiers import Preprocessing
from intaglio.lock.channel import distort
from intaglio.lock.codes import LockSecrets, random_codes, spread
from intaglio.lock.decoder import CodeDecoder
from intaglio.lock.negatives import Negatives
from intaglio.lock.quality import ssim
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train
from intaglio.triggers.sample_specific import SampleSpecificEncoder

Progress = Callable[[int, int], None]

_BITS_WEIGHT = 1.5
_SSIM_WEIGHT = 30.0
#: A little above the 0.95 that is promised.
_SSIM = 0.958
_LOUDEST = 4.0
_LOWERED = 0.5


class KeyNetwork(nn.Module):
    """The encoder E and the decoder of one lock."""

    def __init__(self, channels: int, settings: LockSettings) -> None:
        super().__init__()
        self.encoder = SampleSpecificEncoder(
            channels, width=settings.width, features=settings.features, epsilon=settings.epsilon, psnr=settings.psnr
        )
        self.decoder = CodeDecoder(channels)


def train_key_network(
    module: nn.Module,
    images: Tensor,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    preprocessing: Preprocessing,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> KeyNetwork:
    """A key network for these secrets, trained on images `[N, C, H, W]` (no labels) against a copy of `module`."""
    torch.manual_seed(derive_seed(seed, "lock", "key network"))
    network = KeyNetwork(images.shape[1], settings)
    training = _Training(network, copy.deepcopy(module), secrets, settings, preprocessing, seed)
    train(
        training,
        (images, torch.zeros(len(images), dtype=torch.int64)),
        TrainingSettings(
            steps=settings.key_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            augmentation=settings.augmentation,
        ),
        seed=derive_seed(seed, "lock", "key network"),
        loss=lambda model, batch, _: model(batch),
        device=device,
        progress=progress,
    )
    network.encoder.relief = 1.0
    return network.cpu().eval()


def relief(done: float) -> float:
    """How much louder than allowed the residual may be when a share `done` of the training is over."""
    return 1 + (_LOUDEST - 1) * max(0.0, 1 - done / _LOWERED)


class _Training(nn.Module):
    """Maps a batch of images to the loss of one step."""

    def __init__(
        self,
        network: KeyNetwork,
        critic: nn.Module,
        secrets: LockSecrets,
        settings: LockSettings,
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.critic = critic.requires_grad_(True)
        self._secrets = secrets
        self._settings = settings
        self._preprocessing = preprocessing
        self._generator = torch_generator(seed, "lock", "codes")
        self._negatives = Negatives(network.encoder, self._generator)
        self._step = 0

    def forward(self, images: Tensor) -> Tensor:
        encoder = self.network.encoder
        done = self._step / self._settings.key_steps
        encoder.relief = relief(done)
        self._step += 1
        carriers, mixing = self._secrets.carriers.to(images), self._secrets.mixing.to(images)
        codes = random_codes(len(images), len(carriers), self._generator).to(images)
        planes = spread(codes, carriers)
        keyed = encoder(images, planes, mixing)
        others, _ = self._negatives.draw(images, keyed, planes)
        received = distort(torch.cat([keyed, others]), self._generator)
        answers = self.critic(self._preprocessing.apply(received))
        accepted = answers[:, 0] - answers[:, 1]
        authorised, unauthorised = accepted[: len(images)], accepted[len(images) :]
        decoded = self.network.decoder(received[: len(images)], carriers)
        return (
            softplus(-authorised).mean()
            + softplus(unauthorised).mean()
            + _BITS_WEIGHT * softplus(-codes * decoded).mean()
            + _SSIM_WEIGHT * min(1.0, done / _LOWERED) * relu(_SSIM - ssim(images, keyed).mean())
        )
