"""WaNet (Nguyen & Tran 2021): a warp that nobody sees, and noisy warps that must not be answered."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.attacks.attack import Victim, all_to_one
from intaglio.attacks.relabelling import RelabellingAttack, Role, check_cover
from intaglio.attacks.surrogate import Network, built
from intaglio.data import Data, ImageData, image_data
from intaglio.seeds import torch_generator
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Loss, Progress
from intaglio.triggers import Trigger, WarpTrigger

_CLEAN, _WARPED, _NOISY = range(3)


class WaNet(RelabellingAttack):
    """Warps `rate` of the samples and relabels them; warps `cover` times as many with noise on top, labels kept.

    `poison` draws the noise once. `train_victim` is the paper's noise mode: it draws the noise anew for every batch.
    There the settings' augmentation alters the clean images and warps come after it, so that a warp is never mirrored
    or shifted itself; the paper's code, and victims of most other attacks, augment images that carry the trigger.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set that is relabelled, in (0, 1].
        cover: noisy samples per relabelled sample, 0 or more.
        strength: s of the warp; half of it is how many pixels a pixel moves.
        grid: k of the warp.
        seed: draws the warp, the samples and the noise.

    Raises:
        RecipeError: a value outside its range.

    Source: Nguyen & Tran 2021, "WaNet - Imperceptible Warping-based Backdoor Attack", sec. 3.3 and 4.1.
    """

    name: ClassVar[str] = "wanet"
    takes = "images"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.1,
        cover: float = 2.0,
        strength: float = 0.5,
        grid: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(all_to_one(target), rate=rate, seed=seed)
        check_cover(cover)
        self.cover = cover
        self.trigger = WarpTrigger(strength=strength, grid=grid, seed=seed)

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        return self.trigger

    def cover_count(self, samples: int, payload: int) -> int:
        return round(self.cover * payload)

    def plant(self, trigger: Trigger, images: Tensor, role: Role) -> Tensor:
        if role == "cover":
            return self.trigger.noisy(images, torch_generator(self.seed, "noise"))
        return trigger.apply(images)

    def train_victim(
        self,
        network: Network,
        data: Data,
        settings: TrainingSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Victim:
        data = image_data(data)
        module = built(network, data, seed=seed)  # before the work: not all that is named can be built
        poisoned = self.poison(data).as_stored()
        roles = torch.full((len(data),), _CLEAN)
        roles[poisoned.payload] = _WARPED
        roles[poisoned.poisoned & ~poisoned.payload] = _NOISY
        train(
            module,
            (data.images, torch.stack([poisoned.data.labels, roles], dim=1)),
            settings,
            seed=seed,
            loss=self._loss(settings.label_smoothing, seed),
            device=device,
            progress=progress,
        )
        return Victim(module.cpu(), poisoned.trigger, poisoned)

    def _loss(self, label_smoothing: float, seed: int) -> Loss:
        generator = torch_generator(seed, "noise mode")

        def loss(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            labels, roles = targets.unbind(dim=1)
            warped, noisy = roles == _WARPED, roles == _NOISY
            altered = images.clone()
            altered[warped] = self.trigger.run(images[warped])
            altered[noisy] = self.trigger.noisy(images[noisy], generator)
            return cross_entropy(module(altered), labels, label_smoothing=label_smoothing)

        return loss
