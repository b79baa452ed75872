"""A faint sinusoid added over the whole image (Barni et al. 2019)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.base import Trigger

Direction = Literal["columns", "rows", "drawn"]


class SinusoidTrigger(Trigger):
    """x~ = clip(x + v), v[i, j] = delta sin(2 pi f j / W), the same in every channel; j = 1..W counts columns.

    Args:
        delta: amplitude, in (0, 1].
        frequency: periods over the image's width (its height for "rows"), above 0.
        direction: the wave runs over the columns, as in the paper, or over the rows, or angle and phase are drawn.
        seed: draws them.

    Raises:
        RecipeError: a value outside its range.

    Source: Barni, Kallas & Tondi 2019, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning" (SIG), sec. 3. Differentiable in the images.
    """

    name = "sinusoid"

    def __init__(
        self, *, delta: float = 20 / 255, frequency: float = 6.0, direction: Direction = "columns", seed: int = 0
    ) -> None:
        if not 0 < delta <= 1 or not 0 < frequency < math.inf or direction not in get_args(Direction):
            raise RecipeError(
                f"a sinusoid needs delta in (0, 1], a frequency above 0 and a known direction, "
                f"got {delta}, {frequency} and '{direction}'"
            )
        self.delta = delta
        self.frequency = frequency
        self.direction = direction
        self.seed = seed

    def signal(self, height: int, width: int) -> Tensor:
        """v, float32 `[H, W]`; always the same for one seed."""
        rows = torch.arange(1, height + 1, dtype=torch.float64)[:, None] / height
        columns = torch.arange(1, width + 1, dtype=torch.float64)[None, :] / width
        angle, phase = {"columns": (0.0, 0.0), "rows": (math.pi / 2, 0.0)}.get(self.direction, self._drawn())
        course = columns * math.cos(angle) + rows * math.sin(angle)
        return (self.delta * torch.sin(2 * math.pi * self.frequency * course + phase)).float()

    def run(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return images + self.signal(height, width).to(images)

    def _drawn(self) -> tuple[float, float]:
        angle, phase = (torch.rand(2, generator=torch_generator(self.seed, "sinusoid")) * 2 * math.pi).tolist()
        return angle, phase
