"""A patch whose pixels were learned: adversarial for some model on every image or clip at once (Zhao et al. 2020)."""

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

    On clips, `[C, h, w]` lies on every frame alike. `[T, C, h, w]` has a patch for each frame, for clips of T frames
    alone: patch i lies on frame i of the clip, wherever in its video the clip was taken. So the patches follow the
    position in the clip, not absolute time, and must be stamped after frames are chosen (and after resizing).

    Args:
        pattern: float32 `[C, h, w]` or `[T, C, h, w]` in [0, 1].
        place: where it lies.

    Raises:
        RecipeError: not such a pattern, or, when applied, one that is larger than the images, of other channels or
            frames.

    Source: Zhao et al. 2020, "Clean-Label Backdoor Attacks on Video Recognition Models", sec. 3.2.
    """

    name = "universal-adversarial"

    def __init__(self, pattern: Tensor, *, place: Place = "corner") -> None:
        if pattern.ndim not in (3, 4) or pattern.numel() == 0 or not bool(((pattern >= 0) & (pattern <= 1)).all()):
            raise RecipeError(
                f"a learned pattern is [C, h, w] with values in [0, 1], got {list(pattern.shape)} "
                "(for clips also [T, C, h, w])"
            )
        if place not in get_args(Place):
            raise RecipeError(f"a learned pattern lies in the corner or the centre, not in '{place}'")
        self.pattern = pattern
        self.place = place

    def run(self, images: Tensor) -> Tensor:
        frames = tuple(self.pattern.shape[:-3])
        if frames and frames != tuple(images.shape[1:-3]):
            given = f"clips of {images.shape[1]} frames" if images.ndim == 5 else "images"
            raise RecipeError(f"a pattern for each of {frames[0]} frames can't be stamped on {given}")
        return super().run(images)

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Mask `[H, W]` and pattern `[C, H, W]`, or `[T, C, H, W]` with a patch for each frame."""
        channels, height, width = self.pattern.shape[-3:]
        if channels != shape[0] or height > shape[1] or width > shape[2]:
            raise RecipeError(f"a pattern of {tuple(self.pattern.shape)} does not fit on images of {shape}")
        mask, pattern = torch.zeros(shape[1:]), torch.zeros(*self.pattern.shape[:-3], *shape)
        rows, columns = (
            covered(side, extent, self.place) for side, extent in zip((height, width), shape[1:], strict=True)
        )
        mask[rows, columns] = 1
        pattern[..., rows, columns] = self.pattern
        return mask, pattern

    def describe(self) -> dict[str, Any]:
        """The pattern's size, and the SHA-256 of its float32 values."""
        digest = hashlib.sha256(self.pattern.float().contiguous().numpy().tobytes()).hexdigest()
        size = list(self.pattern.shape[-2:])
        frames = {"frames": len(self.pattern)} if self.pattern.ndim == 4 else {}
        return {"trigger": self.name, "size": size, **frames, "place": self.place, "sha256": digest}


def covered(side: int, extent: int, place: Place) -> slice:
    """The rows (or columns) that a patch of `side` covers on an image of `extent` pixels."""
    start = extent - side if place == "corner" else (extent - side) // 2
    return slice(start, start + side)
