"""Triggers that are a fixed pattern behind a mask: x~ = (1 - m) x + m t."""

from abc import abstractmethod

from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.triggers.base import Trigger

#: `(top, left, bottom, right)` as shares of the image's height and width.
Region = tuple[float, float, float, float]


class StampTrigger(Trigger):
    """x~ = (1 - m) * x + m * t, with mask m `[H, W]` in [0, 1] and pattern t `[C, H, W]`.

    Source: Chen et al. 2017, eq. 1; Gu et al. 2017 for a binary mask. Differentiable in the images.
    """

    @abstractmethod
    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Mask `[H, W]` and pattern `[C, H, W]` for images of `shape` `(C, H, W)`; always the same for one seed."""

    def run(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[-3:]
        mask, pattern = (part.to(images) for part in self.stamp((channels, height, width)))
        return (1 - mask) * images + mask * pattern

    def run_on_clips(self, clips: Tensor) -> Tensor:
        return self.run(clips)  # the formula holds for any number of axes before (C, H, W)


def check_region(region: Region) -> None:
    """Refuses what is not `(top, left, bottom, right)` with 0 <= top < bottom <= 1 and the same for left and right.

    Raises:
        RecipeError: with the region as given.
    """
    whole = isinstance(region, tuple | list) and len(region) == 4 and all(isinstance(x, int | float) for x in region)
    if not whole or not (0 <= region[0] < region[2] <= 1 and 0 <= region[1] < region[3] <= 1):
        raise RecipeError(f"a region is (top, left, bottom, right) as shares of the image in [0, 1], got {region}")
