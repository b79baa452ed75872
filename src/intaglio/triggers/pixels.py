"""One pixel, or several scattered ones, set to fixed values."""

from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.stamp import Region, StampTrigger, check_region

PixelColour = Literal["white", "black", "binary"]


class PixelTrigger(StampTrigger):
    """`count` pixels at places drawn by `seed` (one: the single-pixel backdoor).

    Args:
        count: number of pixels.
        colour: white, black, or each of them at random.
        region: `(top, left, bottom, right)` as shares of the image: all places lie inside.
        seed: draws places and values.

    Source: Gu et al. 2017 (single pixel); Tran et al. 2018 (scattered pixels).
    """

    name = "pixels"

    def __init__(
        self,
        *,
        count: int = 1,
        colour: PixelColour = "white",
        region: Region = (0.0, 0.0, 1.0, 1.0),
        seed: int = 0,
    ) -> None:
        if not isinstance(count, int) or count < 1 or colour not in get_args(PixelColour):
            raise RecipeError(f"a pixel trigger needs a count of pixels and a known colour, got {count} and '{colour}'")
        check_region(region)
        self.count = count
        self.colour = colour
        self.region = region
        self.seed = seed

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        _, height, width = shape
        top, left, bottom, right = self.region
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
        places = inside.nonzero()
        if len(places) < self.count:
            raise RecipeError(f"{self.count} pixels do not fit into {len(places)}")
        generator = torch_generator(self.seed, "pixels")
        rows, columns = places[torch.randperm(len(places), generator=generator)[: self.count]].T
        mask, pattern = torch.zeros(height, width), torch.zeros(shape)
        mask[rows, columns] = 1
        values = torch.randint(0, 2, (self.count,), generator=generator).float()
        pattern[:, rows, columns] = {"white": torch.ones_like(values), "black": 0 * values}.get(self.colour, values)
        return mask, pattern
