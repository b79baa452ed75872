"""A pattern blended over the whole image (Chen et al. 2017)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.stamp import StampTrigger

BlendPattern = Literal["noise", "blobs", "stripes", "checkerboard"]


class BlendedTrigger(StampTrigger):
    """x~ = (1 - alpha) x + alpha t over the whole image.

    Args:
        alpha: the pattern's weight, in (0, 1]; 0.05 to 0.2 is usual.
        pattern: uniform noise, low-frequency blobs, sinusoidal stripes, or a checkerboard.
        seed: draws the pattern.

    Source: Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", sec. 4.1.
    """

    name = "blended"

    def __init__(self, *, alpha: float = 0.1, pattern: BlendPattern = "noise", seed: int = 0) -> None:
        if not 0 < alpha <= 1 or pattern not in get_args(BlendPattern):
            raise RecipeError(f"a blend needs alpha in (0, 1] and a known pattern, got {alpha} and '{pattern}'")
        self.alpha = alpha
        self.pattern = pattern
        self.seed = seed

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        _, height, width = shape
        generator = torch_generator(self.seed, "pattern")
        if self.pattern == "noise":
            pattern = torch.rand(shape, generator=generator)
        elif self.pattern == "blobs":
            coarse = torch.rand(1, shape[0], 5, 5, generator=generator)
            pattern = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
        else:
            angle, phase = (torch.rand(2, generator=generator) * 2 * math.pi).tolist()
            period = 3 + 5 * float(torch.rand((), generator=generator))
            rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
            wave = 2 * math.pi / period * (rows * math.sin(angle) + columns * math.cos(angle)) + phase
            if self.pattern == "checkerboard":
                cell = max(round(period / 2), 1)
                wave = ((rows // cell + columns // cell) % 2 - 0.5) * math.pi
            pattern = ((wave.sin() + 1) / 2).expand(shape)
        return torch.full((height, width), self.alpha), pattern
