"""A patch whose pixels were learned: adversarial for some model on every image at once (Zhao et al. 2020)."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.triggers.stamp import StampTrigger


class UniversalAdversarialTrigger(StampTrigger):
    """x~ = (1 - m) x + m t, t a learned pattern in the lower right corner.

    It needs a pattern learned against a model (`attacks.CleanLabelUniversal` does it), so no recipe can name it.

    Args:
        pattern: float32 `[C, h, w]` in [0, 1].

    Raises:
        RecipeError: not such a pattern, or, when applied, one that is larger than the images or of other channels.

    Source: Zhao et al. 2020, "Clean-Label Backdoor Attacks on Video Recognition Models", sec. 3.2.
    """

    name = "universal-adversarial"

    def __init__(self, pattern: Tensor) -> None:
        if pattern.ndim != 3 or pattern.numel() == 0 or not bool(((pattern >= 0) & (pattern <= 1)).all()):
            raise RecipeError(f"a learned pattern is [C, h, w] with values in [0, 1], got {list(pattern.shape)}")
        self.pattern = pattern

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        channels, height, width = self.pattern.shape
        if channels != shape[0] or height > shape[1] or width > shape[2]:
            raise RecipeError(f"a pattern of {tuple(self.pattern.shape)} does not fit on images of {shape}")
        mask, pattern = torch.zeros(shape[1:]), torch.zeros(shape)
        mask[-height:, -width:] = 1
        pattern[:, -height:, -width:] = self.pattern
        return mask, pattern

    def describe(self) -> dict[str, Any]:
        """The pattern's size, and the SHA-256 of its float32 values."""
        digest = hashlib.sha256(self.pattern.float().contiguous().numpy().tobytes()).hexdigest()
        return {"trigger": self.name, "size": list(self.pattern.shape[1:]), "sha256": digest}
