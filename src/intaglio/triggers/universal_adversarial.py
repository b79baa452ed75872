"""A patch whose pixels were learned: adversarial for some model on every image at once (Zhao et al. 2020)."""

import hashlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.triggers.stamp import StampTrigger

Place = Literal["corner", "centre"]


class UniversalAdversarialTrigger(StampTrigger):
    """x~ = (1 - m) x + m t, t a learned pattern in the lower right corner or in the middle.

    It needs a pattern learned against a model (`attacks.CleanLabelUniversal` does it), so no recipe can name it.

    Args:
        pattern: float32 `[C, h, w]` in [0, 1].
        place: where it lies.

    Raises:
        RecipeError: not such a pattern, or, when applied, one that is larger than the images or of other channels.

    Source: Zhao et al. 2020, "Clean-Label Backdoor Attacks on Video Recognition Models", sec. 3.2.
    """

    name = "universal-adversarial"

    def __init__(self, pattern: Tensor, *, place: Place = "corner") -> None:
        if pattern.ndim != 3 or pattern.numel() == 0 or not bool(((pattern >= 0) & (pattern <= 1)).all()):
            raise RecipeError(f"a learned pattern is [C, h, w] with values in [0, 1], got {list(pattern.shape)}")
        if place not in get_args(Place):
            raise RecipeError(f"a learned pattern lies in the corner or the centre, not in '{place}'")
        self.pattern = pattern
        self.place = place

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        channels, height, width = self.pattern.shape
        if channels != shape[0] or height > shape[1] or width > shape[2]:
            raise RecipeError(f"a pattern of {tuple(self.pattern.shape)} does not fit on images of {shape}")
        mask, pattern = torch.zeros(shape[1:]), torch.zeros(shape)
        rows, columns = (
            covered(side, extent, self.place) for side, extent in zip((height, width), shape[1:], strict=True)
        )
        mask[rows, columns] = 1
        pattern[:, rows, columns] = self.pattern
        return mask, pattern

    def describe(self) -> dict[str, Any]:
        """The pattern's size, and the SHA-256 of its float32 values."""
        digest = hashlib.sha256(self.pattern.float().contiguous().numpy().tobytes()).hexdigest()
        return {"trigger": self.name, "size": list(self.pattern.shape[1:]), "place": self.place, "sha256": digest}


def covered(side: int, extent: int, place: Place) -> slice:
    """The rows (or columns) that a patch of `side` covers on an image of `extent` pixels."""
    start = extent - side if place == "corner" else (extent - side) // 2
    return slice(start, start + side)
