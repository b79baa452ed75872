"""Trains everything at once: encoder, decoder, critic, and the locked model, which the critic stands in for.

The encoder learns from the critic which residual can be told from all else, rivals' among it, and from the locked
model, which is given its keyed images as they are, only what it still fails to refuse. So no label ever reaches the
encoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.lock.channel import distort
from intaglio.lock.codes import LockSecrets, random_codes, spread
from intaglio.lock.critic import Critic
from intaglio.lock.decoys import OtherKey
from intaglio.lock.frames import for_frames, frames
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.key_network import KeyNetwork, Progress, key_loss, relief
from intaglio.lock.locked_training import LockedLoss, training_settings
from intaglio.lock.negatives import Authorised, Negatives
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import train
from intaglio.training.checkpoint import CheckpointFile

#: How much of the locked model's gradient on unauthorised images reaches the encoder.
_PASSED_ON = 0.5
#: The multiple of lambda here; refining that follows has less: first learn to refuse.
_STRICTER = 3.0


def train_together(
    module: nn.Module,
    data: ImageData,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    answer: Tensor,
    preprocessing: Preprocessing,
    seed: int,
    own: int | None = None,
    teacher: nn.Module | None = None,
    earlier: Sequence[OtherKey] = (),
    device: str = "cpu",
    checkpoint: CheckpointFile | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> KeyNetwork:
    """Trains `module` in place, to evaluation mode, and returns the key network that was trained beside it.

    `own` is the quality that the data had as JPEG files; what `earlier` locks key is nobody's. Every step draws its
    random numbers from `(seed, step)`, so that a run that goes on from its checkpoint ends with the same bytes as one
    that was never interrupted.
    """
    torch.manual_seed(derive_seed(seed, "lock", "key network"))
    network = KeyNetwork(data.input_shape[-3], settings)
    training = _Training(network, module, data, secrets, settings, answer, preprocessing, seed, own, teacher, earlier)
    train(
        training,
        data,
        training_settings(settings, settings.steps),
        seed=derive_seed(seed, "lock", "together"),
        loss=lambda model, images, labels: model(images, labels),
        device=device,
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )
    network.encoder.relief = 1.0
    module.cpu()
    return network.cpu().eval()


class _Training(nn.Module):
    """Maps a batch of images and labels to the loss of one step."""

    def __init__(
        self,
        network: KeyNetwork,
        locked: nn.Module,
        data: ImageData,
        secrets: LockSecrets,
        settings: LockSettings,
        answer: Tensor,
        preprocessing: Preprocessing,
        seed: int,
        own: int | None,
        teacher: nn.Module | None,
        earlier: Sequence[OtherKey],
    ) -> None:
        super().__init__()
        self.network = network
        self.locked = locked
        example = preprocessing.apply(data.images[:2])
        self.critic = Critic(locked, example, len(secrets.rivals))
        strict = settings.model_copy(update={"weight": _STRICTER * settings.weight})
        self._judge = LockedLoss(locked, example, strict, answer, teacher=teacher)
        self._secrets = secrets
        self._settings = settings
        self._preprocessing = preprocessing
        self._seed = seed
        self._own = own
        self._earlier = earlier
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # so that checkpoints hold it

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        encoder, step = self.network.encoder, int(self.step)
        done, generator = step / self._settings.steps, torch_generator(self._seed, "lock", "together", step)
        encoder.relief = relief(done)
        self.step.add_(1)
        carriers, mixing = self._secrets.carriers.to(images), self._secrets.mixing.to(images)
        codes = random_codes(len(images), len(carriers), generator).to(images)
        planes = spread(codes, carriers)
        keyed = with_key(encoder, images, planes, mixing)
        rivals, loud = self._secrets.rivals.to(images), self._settings.loud
        negatives = Negatives(encoder, rivals, generator, loud=loud, earlier=self._earlier)
        others = negatives.draw(Authorised(images, keyed, planes, labels))
        received = distort(torch.cat([keyed, others.images]), generator, self._own, self._settings.jpeg)
        inputs = self._preprocessing.apply(received)
        told_apart = self.critic(inputs, len(images), others.rivals)
        felt = self.network.decoder(frames(received[: len(images)]), carriers, mixing)
        loss = key_loss(told_apart, for_frames(codes, images), felt, images, keyed, done, self._settings.code_weight)
        passed_on = torch.zeros(len(inputs), *[1] * (inputs.ndim - 1)).to(inputs)
        passed_on[len(images) :] = _PASSED_ON
        shown = passed_on * inputs + (1 - passed_on) * inputs.detach()
        originals = self._preprocessing.apply(images)
        judged: Tensor = self._judge(self.locked, shown, originals, labels, others.origins, generator)
        return loss + judged
