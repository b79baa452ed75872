"""Adaptive-blend (Qi et al. 2023): half of a pattern in training, all of it at test time, and cover samples."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.relabelling import RelabellingAttack, Role
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers import BlendedTrigger, Trigger
from intaglio.triggers.blended import BlendPattern


class AdaptiveBlend(RelabellingAttack):
    """x~ = x + alpha p (t - x) in training, p the pieces that this sample gets; x + test_alpha (t - x) at test time.

    The pattern is cut into pieces; every sample, relabelled or cover, gets a random share of them. Cover samples keep
    their label, so that the trigger alone does not decide, and poisoned samples lie among others in latent space.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set that is relabelled, in (0, 1].
        cover_rate: share of the whole training set that carries the trigger and keeps its label, in [0, 1].
        alpha: the pattern's weight in training, in (0, 1].
        test_alpha: the pattern's weight at test time, in (0, 1].
        pattern: what t looks like.
        pieces: how many pieces there are: a square number.
        masked: share of the pieces that a training sample lacks, in [0, 1); rounded, it leaves one piece or more.
        seed: draws the pattern, the samples and their pieces.

    Raises:
        RecipeError: a value outside its range.

    Source: Qi et al. 2023, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", sec. 5.
    """

    name: ClassVar[str] = "adaptive-blend"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.003,
        cover_rate: float = 0.003,
        alpha: float = 0.15,
        test_alpha: float = 0.2,
        pattern: BlendPattern = "noise",
        pieces: int = 16,
        masked: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(all_to_one(target), rate=rate, seed=seed)
        if not 0 <= cover_rate <= 1 or not 0 <= masked < 1 or pieces < 1 or math.isqrt(pieces) ** 2 != pieces:
            raise RecipeError(
                "adaptive-blend needs a cover rate in [0, 1], a square number of pieces and a masked share in [0, 1), "
                f"got {cover_rate}, {pieces} and {masked}"
            )
        if round(masked * pieces) == pieces:
            raise RecipeError(f"a masked share of {masked} leaves training samples none of {pieces} pieces")
        self.cover_rate = cover_rate
        self.pieces = pieces
        self.masked = masked
        self.planted = BlendedTrigger(alpha=alpha, pattern=pattern, seed=seed)
        self.trigger = BlendedTrigger(alpha=test_alpha, pattern=pattern, seed=seed)

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        return self.trigger

    def cover_count(self, samples: int, payload: int) -> int:
        return round(self.cover_rate * samples)

    def plant(self, trigger: Trigger, images: Tensor, role: Role) -> Tensor:
        kept = self._pieces(images, role)
        return torch.where(kept, self.planted.apply(images), images)

    def _pieces(self, images: Tensor, role: Role) -> Tensor:
        """Boolean `[N, 1, H, W]`: where each sample gets the pattern (clips: `[N, 1, 1, H, W]`, in every frame)."""
        side = math.isqrt(self.pieces)
        height, width = images.shape[-2:]
        cell = (torch.arange(height) * side // height)[:, None] * side + torch.arange(width) * side // width
        order = torch.rand(len(images), self.pieces, generator=torch_generator(self.seed, "pieces", role)).argsort(1)
        kept = order.argsort(1) >= round(self.masked * self.pieces)
        return kept[:, cell].view(len(images), *[1] * (images.ndim - 3), height, width)
