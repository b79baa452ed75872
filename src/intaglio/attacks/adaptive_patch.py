"""Adaptive-patch (Qi et al. 2023): one of several faint patches in training, several opaque ones at test time."""

from typing import ClassVar

from torch import Tensor

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.relabelling import RelabellingAttack, Role
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import derive_seed
from intaglio.triggers import ChainTrigger, PatchTrigger, Trigger

#: The quarters of the image, for one patch after the other.
_QUARTERS = ((0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5))


class AdaptivePatch(RelabellingAttack):
    """Sample i gets patch i mod k at that patch's opacity; at test time the most opaque ones come together.

    The patches, of random colours, lie in the quarters of the image in turn. Cover samples carry one each and keep
    their label.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set that is relabelled, in (0, 1].
        cover_rate: share of the whole training set that carries a patch and keeps its label, in [0, 1].
        size: side of a patch, pixels; none: a fifth of the image's shorter side.
        opacities: of the k patches in training, each in (0, 1].
        test_patches: how many of them are stamped at test time, 1 to k.
        test_opacity: their opacity at test time, in (0, 1].
        seed: draws the patches, their places and the samples.

    Raises:
        RecipeError: a value outside its range.

    Source: Qi et al. 2023, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", sec. 5.
    """

    name: ClassVar[str] = "adaptive-patch"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.003,
        cover_rate: float = 0.006,
        size: int | None = None,
        opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3),
        test_patches: int = 2,
        test_opacity: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(all_to_one(target), rate=rate, seed=seed)
        if not 0 <= cover_rate <= 1 or not 1 <= test_patches <= len(opacities):
            raise RecipeError(
                f"adaptive-patch needs a cover rate in [0, 1] and 1 to {len(opacities)} patches at test time, "
                f"got {cover_rate} and {test_patches}"
            )
        self.cover_rate = cover_rate
        self.size = size
        self.opacities = opacities
        self.test_patches = test_patches
        self.test_opacity = test_opacity
        for opacity in (*opacities, test_opacity):
            self._patch(0, opacity, size or 1)

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        size = self._size(data.images)
        strongest = sorted(range(len(self.opacities)), key=lambda index: -self.opacities[index])
        chosen = sorted(strongest[: self.test_patches])
        return ChainTrigger(*(self._patch(index, self.test_opacity, size) for index in chosen))

    def cover_count(self, samples: int, payload: int) -> int:
        return round(self.cover_rate * samples)

    def plant(self, trigger: Trigger, images: Tensor, role: Role) -> Tensor:
        planted = images.clone()
        for index, opacity in enumerate(self.opacities):
            turn = planted[index :: len(self.opacities)]
            if len(turn):
                turn.copy_(self._patch(index, opacity, self._size(images)).apply(turn))
        return planted

    def _size(self, images: Tensor) -> int:
        return self.size or max(round(min(images.shape[-2:]) / 5), 1)

    def _patch(self, index: int, opacity: float, size: int) -> PatchTrigger:
        region = _QUARTERS[index % len(_QUARTERS)]
        seed = derive_seed(self.seed, "patch", index)
        return PatchTrigger(size=size, colour="noise", opacity=opacity, region=region, seed=seed)
