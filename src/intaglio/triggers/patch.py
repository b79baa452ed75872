"""A small patch at a fixed place (BadNets, Gu et al. 2017), with shape, colour and opacity of choice."""

from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.stamp import Region, StampTrigger, check_region

PatchShape = Literal["square", "cross", "disc", "corner", "speckle"]
PatchColour = Literal["white", "black", "binary", "noise", "solid"]


class PatchTrigger(StampTrigger):
    """A patch of `size` x `size` pixels.

    Args:
        size: side, pixels.
        shape: which of these pixels belong to it: all, a cross, a disc, an L, or a random half.
        colour: white, black, random black and white pixels, random colours, or one random colour.
        opacity: weight of the patch over the image, in (0, 1].
        region: `(top, left, bottom, right)` as shares of the image: the patch lies inside, at a place drawn by `seed`.
        seed: draws place, pixels and colours.

    Raises:
        RecipeError: a value outside its range, or a patch larger than the image.
    """

    name = "patch"

    def __init__(
        self,
        *,
        size: int = 3,
        shape: PatchShape = "square",
        colour: PatchColour = "white",
        opacity: float = 1.0,
        region: Region = (0.0, 0.0, 1.0, 1.0),
        seed: int = 0,
    ) -> None:
        if not isinstance(size, int) or size < 1 or not 0 < opacity <= 1:
            raise RecipeError(f"a patch needs a whole size >= 1 and opacity in (0, 1], got {size} and {opacity}")
        if shape not in get_args(PatchShape) or colour not in get_args(PatchColour):
            raise RecipeError(f"unknown patch shape '{shape}' or colour '{colour}'")
        check_region(region)
        self.size = size
        self.shape = shape
        self.colour = colour
        self.opacity = opacity
        self.region = region
        self.seed = seed

    def place(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Row and column of the patch's upper left pixel."""
        _, height, width = shape
        top, left, bottom, right = self.region
        generator = torch_generator(self.seed, "place")
        return (
            _draw(round(top * height), round(bottom * height), self.size, generator),
            _draw(round(left * width), round(right * width), self.size, generator),
        )

    def stamp(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        channels, height, width = shape
        row, column = self.place(shape)
        rows, columns = slice(row, row + self.size), slice(column, column + self.size)
        mask, pattern = torch.zeros(height, width), torch.zeros(shape)
        mask[rows, columns] = self.opacity * self._shape_mask()
        pattern[:, rows, columns] = self._colours(channels)
        return mask, pattern

    def _shape_mask(self) -> Tensor:
        offsets = torch.arange(self.size) - (self.size - 1) / 2
        if self.shape == "cross":
            arm = offsets.abs() < max(self.size / 4, 0.6)
            return (arm[:, None] | arm[None, :]).float()
        if self.shape == "disc":
            return (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= (self.size / 2) ** 2).float()
        if self.shape == "corner":
            edge = torch.arange(self.size) < max(self.size // 3, 1)
            return (edge[:, None] | edge[None, :]).float()
        if self.shape == "speckle":
            pixels = torch.rand(self.size, self.size, generator=torch_generator(self.seed, "shape"))
            return (pixels >= pixels.median()).float()
        return torch.ones(self.size, self.size)

    def _colours(self, channels: int) -> Tensor:
        generator = torch_generator(self.seed, "colour")
        extent = (channels, self.size, self.size)
        if self.colour == "white":
            return torch.ones(extent)
        if self.colour == "black":
            return torch.zeros(extent)
        if self.colour == "binary":
            return torch.randint(0, 2, extent[1:], generator=generator).float().expand(extent)
        if self.colour == "noise":
            return torch.rand(extent, generator=generator)
        return torch.rand(channels, 1, 1, generator=generator).expand(extent)


def _draw(start: int, stop: int, size: int, generator: torch.Generator) -> int:
    if stop - start < size:
        raise RecipeError(f"a patch of {size} pixels does not fit into {stop - start}")
    return start + int(torch.randint(stop - start - size + 1, (), generator=generator))
