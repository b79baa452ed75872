"""Places of an input: pixels, squares around them or blocks of a grid; of a clip in all frames at once or in each.

Here, and in `facing`, is all that scan knows of the axes of inputs: the last three are channels, height and width, and
what is before them is time.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from intaglio.errors import RecipeError
from intaglio.scan.locality import Sides

Grid = tuple[int, int] | Literal["auto"] | None
#: Of a clip: the same place in all frames at once, or the places of each frame in turn.
Frames = Literal["all", "each"]

#: Images with a longer side are probed in a grid of this many blocks a side instead of pixel by pixel.
GRID = 32
LARGEST_PIXELWISE = 64
#: Clips with a longer side are probed in so many blocks a side, all frames at once or each frame in turn.
CLIP_GRID, FRAME_GRID = 16, 8


def frames_of(input_shape: tuple[int, ...]) -> int | None:
    """The number of frames of an input `(T, C, H, W)`; None for images `(C, H, W)`."""
    return input_shape[0] if len(input_shape) > 3 else None


def facing(maps: Tensor, inputs: Tensor) -> Tensor:
    """Maps `[S, C or 1, H, W]` with axes of size 1 so that each meets every one of `[M, (T,) C, H, W]`."""
    return maps.view(len(maps), *[1] * (inputs.ndim - 3), *maps.shape[1:])


def resolve_grid(input_shape: tuple[int, ...], grid: Grid, frames: Frames = "all") -> tuple[int, int] | None:
    """The grid that "auto" stands for; None means single pixels.

    Raises:
        RecipeError: more blocks than pixels, or none.
    """
    height, width = input_shape[-2:]
    if grid == "auto":
        cells, pixelwise = GRID, LARGEST_PIXELWISE
        if frames_of(input_shape):
            cells = pixelwise = CLIP_GRID if frames == "all" else FRAME_GRID
        return (min(cells, height), min(cells, width)) if max(height, width) > pixelwise else None
    if grid is not None and not (0 < grid[0] <= height and 0 < grid[1] <= width):
        raise RecipeError(f"a grid of {grid[0]} x {grid[1]} blocks does not fit {height} x {width} pixels")
    return grid


class Places:
    """The places to alter, in row-major order: pixels, squares around them, or the blocks of a grid.

    `extent` is (rows, columns), or, for each frame of a clip, (frames, rows, columns).

    Raises:
        RecipeError: each frame of an image.
    """

    def __init__(
        self, input_shape: tuple[int, ...], grid: tuple[int, int] | None, size: int, frames: Frames = "all"
    ) -> None:
        height, width = input_shape[-2:]
        self._clip, count = frames_of(input_shape) is not None, frames_of(input_shape)
        if frames == "each" and count is None:
            raise RecipeError(f"only clips (T, C, H, W) have frames to alter one by one, not inputs {input_shape}")
        self._frames = count if frames == "each" else None
        self._cells = grid or (height, width)
        self.extent = self._cells if self._frames is None else (self._frames, *self._cells)
        self._rows, self._columns = (
            _cover(pixels, cells, size) for pixels, cells in zip((height, width), self._cells, strict=True)
        )

    def __len__(self) -> int:
        return (self._frames or 1) * self._cells[0] * self._cells[1]

    def masks(self, start: int, stop: int) -> Tensor:
        """Boolean `[stop - start, 1, H, W]`, of clips `[..., 1 or T, 1, H, W]`: the pixels of each place."""
        places = torch.arange(start, stop)
        frame, cell = places // (self._cells[0] * self._cells[1]), places % (self._cells[0] * self._cells[1])
        rows, columns = self._rows[cell // self._cells[1]], self._columns[cell % self._cells[1]]
        masks = (rows[:, :, None] & columns[:, None, :])[:, None]
        if self._frames is not None:
            return one_hot(frame, self._frames).bool()[:, :, None, None, None] & masks[:, None]
        return masks[:, None] if self._clip else masks

    def sides(self) -> tuple[Sides, Sides]:
        """The pixels of each cell, along rows and along columns."""
        rows, columns = (Sides(cover.int().argmax(dim=1), cover.sum(dim=1)) for cover in (self._rows, self._columns))
        return rows, columns


def _cover(pixels: int, cells: int, size: int) -> Tensor:
    """Boolean `[cells, pixels]`: the pixels that `size` cells around each cell cover, along one side."""
    owner = torch.arange(pixels) * cells // pixels
    offset = owner[None, :] - torch.arange(cells)[:, None]
    return (offset >= -((size - 1) // 2)) & (offset <= size // 2)
