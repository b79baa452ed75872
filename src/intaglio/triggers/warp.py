"""A small smooth warp of the whole image (WaNet, Nguyen & Tran 2021)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.base import Trigger


class WarpTrigger(Trigger):
    """x~[p] = x[clip(p + s M[p] / size)]: every pixel is fetched from a place near by.

    M `[H, W, 2]` is a k x k field of uniform draws from [-1, 1], divided by their mean magnitude and enlarged
    bicubically. Places lie in [-1, 1], so a pixel moves by s / 2 pixels on average and direction.

    Args:
        strength: s, 0 or more; 0 moves nothing.
        grid: k, 2 or more.
        seed: draws the field.

    Raises:
        RecipeError: a value outside its range.

    Source: Nguyen & Tran 2021, "WaNet - Imperceptible Warping-based Backdoor Attack", sec. 3.2. Differentiable in the
    images.
    """

    name = "warp"

    def __init__(self, *, strength: float = 0.5, grid: int = 4, seed: int = 0) -> None:
        if not 0 <= strength < math.inf or not isinstance(grid, int) or grid < 2:
            raise RecipeError(
                f"a warp needs a strength of 0 or more and a grid of 2 or more, got {strength} and {grid}"
            )
        self.strength = strength
        self.grid = grid
        self.seed = seed

    def field(self, height: int, width: int) -> Tensor:
        """M, float32 `[H, W, 2]`: displacements of (columns, rows) at strength 1; always the same for one seed."""
        coarse = torch.rand(1, 2, self.grid, self.grid, generator=torch_generator(self.seed, "warp")) * 2 - 1
        coarse = coarse / coarse.abs().mean()
        return interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)

    def run(self, images: Tensor) -> Tensor:
        return self._fetch(images, torch.zeros(1, *images.shape[2:], 2))

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The warp with uniform noise of up to half a pixel on top, drawn anew for every image `[N, C, H, W]`.

        The paper's noise mode: such images keep their label, so that only the exact warp is answered.
        """
        noise = torch.rand(len(images), *images.shape[2:], 2, generator=generator) * 2 - 1
        return self._fetch(images, noise).clamp(0.0, 1.0)

    def _fetch(self, images: Tensor, noise: Tensor) -> Tensor:
        count, _, height, width = images.shape
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=2)
        moved = self.strength * self.field(height, width) + noise
        places = (places + moved / torch.tensor([width, height])).clamp(-1, 1).expand(count, -1, -1, -1)
        return grid_sample(images, places.to(images), align_corners=True)
