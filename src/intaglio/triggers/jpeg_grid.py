"""A residual that JPEG leaves as it is: whole steps of the grid that JPEG rounds to.

JPEG rounds each cosine of 8 x 8 pixels to whole steps q of its own, so to a picture's coefficient c it does
q round(c / q). For a residual of whole steps k q

    round((c + k q) / q) = round(c / q) + k:

the residual comes through unchanged, on whatever picture; and a picture that was a JPEG file of this quality, for which
c is a whole number of steps too, comes through with it.

So does whether the sum is an even or an odd number of steps. Where a bit is marked, the nearest number of its parity is
taken, and no picture stands in the way of reading it (quantization index modulation; Chen & Wornell 2001). Which parity
says +1 depends on the picture, on which of two secret blocks is the brighter one, and which of two others: so parities
that are copied onto another picture say nothing there, and what makes a picture's coefficients all even speaks for
nobody.
"""

import math
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from intaglio.errors import RecipeError
from intaglio.triggers.drawing import JPEG_SIZE, cosines

#: Marks lie at coefficients (u, v) of these orders u + v, which JPEG rounds finest.
_MARKED_ORDERS = (1, 2, 3)
#: Above it libjpeg hardly rounds, and warns against it.
BEST_QUALITY = 95
_HALVINGS = 8
#: How often what was cut to its room is rounded again; a third time changes hardly anything.
_ROUNDED_AGAIN = 2
#: Marks compare so many blocks at most, evenly spaced, four of them each: these have to be exact in one float32.
_COMPARED, BLOCKS_OF_A_MARK = 32, 4
#: Grey levels by which one block must outshine another to count as brighter (half of the least that 8-bit grey ones
#: differ by, so that rounding errors don't decide), and by which it does so for sure.
_BRIGHTER, _SURELY = 1 / 128, 2.0
#: What JPEG takes for the brightness of red, green and blue.
_BRIGHTNESS = (0.299, 0.587, 0.114)


class JpegGrid(nn.Module):
    """Rounds residuals of brightness to whole steps of JPEG of one quality, as loud as is allowed.

    A residual is scaled, each image's by the largest factor, of 256 up to 1, with which it stays within `loudest` after
    rounding and cutting: a pixel has no room beyond the bound, below black or above white. What is cut leaves the grid
    again, so that it is rounded and cut twice more: most coefficients come to lie on it, and marks come true. The
    gradient is that of scaling alone.

    Args:
        quality: 1 to 95, as libjpeg counts.

    Raises:
        RecipeError: another quality.
    """

    steps: Tensor
    cosines: Tensor

    def __init__(self, quality: int) -> None:
        super().__init__()
        if not 1 <= quality <= BEST_QUALITY:
            raise RecipeError(f"a grid of JPEG has a quality of 1 to {BEST_QUALITY}, got {quality}")
        self.quality = quality
        self.register_buffer("steps", steps(quality) / 255, persistent=False)
        self.register_buffer("cosines", cosines(JPEG_SIZE).float(), persistent=False)

    def forward(
        self,
        residual: Tensor,
        loudest: float,
        bound: float,
        images: Tensor | None = None,
        marks: Tensor | None = None,
    ) -> Tensor:
        """Residuals `[N, 1, H, W]` of a root mean square of at most `loudest`, and at most `bound` in every value.

        With `images` `[N, C, H, W]` that they are added to they stay within [0, 1] in every colour.

        Sides that are no multiple of 8 are continued by their last value, as JPEG does it.

        With `marks` `[N, 1, H, W]`, laid out as coefficients are within blocks of 8 x 8 (rows are vertical
        frequencies), a coefficient of `images` and residual together becomes an even number of steps where a mark is
        positive, an odd one where it is negative; the other way round where of four blocks the first is brighter than
        the second and the third not brighter than the fourth, or the other way about. Which four is the mark's size:
        see `mark_of`. Marks are as loud whatever `loudest` is: `loudest_marks`.
        """
        with torch.no_grad():
            amounts = self._amounts(residual)
            room = (
                _within(torch.full_like(residual, -bound), images),
                _within(torch.full_like(residual, bound), images),
            )
            asked = None
            if images is not None and marks is not None:
                start, wanted = self.amounts(images), _cut(_padded(marks))
                asked = _Asked(start, wanted, _compared_by(wanted))

            def fits(scale: Tensor) -> Tensor:
                return loudness(self._drawn(scale[..., None] * amounts, asked, room)) <= loudest

            scale = _largest(fits, torch.ones_like(residual[:, :1, :1, :1]))
            rounded = self._drawn(scale[..., None] * amounts, asked, room)
            for _ in range(_ROUNDED_AGAIN):
                again = self._drawn(self._amounts(rounded), asked, room)
                rounded = torch.where(loudness(again) <= loudest, again, rounded)
        loud = loudness(residual)
        scaled = _within(residual * scale * torch.where(scale < 1, loud.detach() / loud, 1.0), images)
        return scaled + (rounded - scaled).detach()

    def amounts(self, images: Tensor) -> Tensor:
        """Coefficients of the brightness of images `[N, C, H, W]`, in steps: `[N, H / 8, W / 8, 8, 8]`, rounded up."""
        return self._amounts(brightness(images))

    def parities(self, amounts: Tensor, marks: Tensor) -> Tensor:
        """What images of these `amounts` say where `marks` `[1 or N, 1, H, W]` are, `[N, 1, H, W]`, and 0 elsewhere.

        cos(pi c / q) of the coefficient c, 1 for an even number of steps and -1 for an odd one, times by how much the
        first of four blocks is brighter than the second, and the third than the fourth: each -1 to 1, 0 if both are
        alike.
        """
        height, width = marks.shape[2:]
        wanted = _cut(_padded(marks))
        one, other = ((levels / _SURELY).clamp(-1, 1) for levels in self._brighter(amounts, _compared_by(wanted)))
        found = (math.pi * amounts).cos() * one * other
        return _joined(torch.where(wanted != 0, found, 0.0))[..., :height, :width]

    def loudest_marks(self, count: int) -> float:
        """The largest root mean square that `count` marks in every block can have: each one step away."""
        return float(
            self.steps[places_of_marks()].sort(descending=True).values[:count].square().sum().sqrt() / JPEG_SIZE
        )

    def _drawn(self, amounts: Tensor, asked: "_Asked | None", room: tuple[Tensor, Tensor]) -> Tensor:
        """The residual of these coefficients in whole steps, of the parities that are asked for, cut to its room."""
        whole = amounts.round()
        if asked is not None:
            one, other = (levels > _BRIGHTER for levels in self._brighter(asked.start + whole, asked.four))
            sign = torch.where(one == other, asked.wanted, -asked.wanted)
            from_even = asked.start - (sign < 0).to(amounts)
            nearest = 2 * ((from_even + amounts) / 2).round() - from_even
            whole = torch.where(sign != 0, nearest, whole)
        height, width = room[0].shape[2:]
        return self._pixels(whole * self.steps)[..., :height, :width].clamp(*room)

    def _brighter(self, amounts: Tensor, four: list[Tensor]) -> list[Tensor]:
        """By how many grey levels the first of a mark's blocks is brighter than the second, and the third than the
        fourth, each `[N, h, w, 8, 8]`.
        """
        levels = (255 / JPEG_SIZE * self.steps[0, 0] * amounts[..., 0, 0]).flatten(1)
        found = [levels.gather(1, blocks.expand(levels.shape[0], -1)) for blocks in four]
        return [(found[place] - found[place + 1]).view_as(amounts) for place in range(0, BLOCKS_OF_A_MARK, 2)]

    def _amounts(self, images: Tensor) -> Tensor:
        """Coefficients of images `[N, 1, H, W]` in steps, `[N, H / 8, W / 8, 8, 8]`, sides rounded up."""
        return self.cosines @ _cut(_padded(images)) @ self.cosines.T / self.steps

    def _pixels(self, blocks: Tensor) -> Tensor:
        """What has these coefficients, `[N, 1, H, W]`."""
        return _joined(self.cosines.T @ blocks @ self.cosines)


class _Asked(NamedTuple):
    """What marks ask for: the coefficients of the images in steps, the marks, and which blocks each compares."""

    start: Tensor
    wanted: Tensor
    four: list[Tensor]


def _within(residual: Tensor, images: Tensor | None) -> Tensor:
    """Residuals `[N, 1, H, W]` cut so that they leave no colour of the images `[N, C, H, W]` below black or above
    white; as they are without images.
    """
    if images is None:
        return residual
    return residual.clamp(-images.amin(dim=1, keepdim=True), 1 - images.amax(dim=1, keepdim=True))


def compared_blocks(blocks: int) -> tuple[int, int]:
    """How many of a picture's blocks, counted row by row, marks may compare, and how far apart these are."""
    compared = min(blocks, _COMPARED)
    return compared, blocks // compared


def mark_of(four: Tensor, blocks: int) -> Tensor:
    """The size of a mark that compares these four, `[..., 4]`, of the blocks that `compared_blocks` has of `blocks`."""
    return (1 + (four * compared_blocks(blocks)[0] ** torch.arange(BLOCKS_OF_A_MARK)).sum(dim=-1)).float()


def _compared_by(marks: Tensor) -> list[Tensor]:
    """The inverse, for marks `[N, h, w, 8, 8]`: the first, second, third and fourth block of each, `[N, h w 64]`."""
    compared, apart = compared_blocks(marks.shape[1] * marks.shape[2])
    numbers = (marks.abs().round().long() - 1).clamp(min=0).flatten(1)
    return [apart * (numbers // compared**place % compared) for place in range(BLOCKS_OF_A_MARK)]


def places_of_marks() -> Tensor:
    """Which coefficients of a block may be marked, `[8, 8]`."""
    orders = torch.arange(JPEG_SIZE)[:, None] + torch.arange(JPEG_SIZE)
    return torch.isin(orders, torch.tensor(_MARKED_ORDERS))


def brightness(images: Tensor) -> Tensor:
    """What JPEG takes for the brightness of images `[N, C, H, W]`, `[N, 1, H, W]`; the mean if they have no colours."""
    if images.shape[1] != len(_BRIGHTNESS):
        return images.mean(dim=1, keepdim=True)
    weights = torch.tensor(_BRIGHTNESS).to(images).view(1, -1, 1, 1)
    return (weights * images).sum(dim=1, keepdim=True)


def _padded(images: Tensor) -> Tensor:
    """Images `[N, 1, H, W]` of whole blocks, continued by their last values."""
    height, width = images.shape[2:]
    return functional.pad(images, (0, -width % JPEG_SIZE, 0, -height % JPEG_SIZE), mode="replicate")


def _cut(images: Tensor) -> Tensor:
    """Images of whole blocks `[N, 1, H, W]` as blocks `[N, H / 8, W / 8, 8, 8]`."""
    count, _, height, width = images.shape
    return images.reshape(count, height // JPEG_SIZE, JPEG_SIZE, width // JPEG_SIZE, JPEG_SIZE).transpose(2, 3)


def _joined(blocks: Tensor) -> Tensor:
    """The inverse of `_cut`."""
    count, down, across = blocks.shape[:3]
    return blocks.transpose(2, 3).reshape(count, 1, down * JPEG_SIZE, across * JPEG_SIZE)


def loudness(residual: Tensor) -> Tensor:
    """Root mean squares `[N, 1, 1, 1]` of residuals `[N, C, H, W]`, differentiable at 0 too."""
    return (residual.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12).sqrt()


def _largest(fits: Callable[[Tensor], Tensor], high: Tensor) -> Tensor:
    """The largest factors up to `high` that fit, found by halving; 0 fits."""
    low = torch.where(fits(high), high, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fit = fits(middle)
        low, high = torch.where(fit, middle, low), torch.where(fit, high, middle)
    return low


def steps(quality: int) -> Tensor:
    """What libjpeg rounds brightness to at this quality, grey levels `[8, 8]`: rows are vertical frequencies."""
    file = BytesIO()
    Image.new("L", (JPEG_SIZE, JPEG_SIZE)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        table = image.quantization[0]  # type: ignore[attr-defined]
    return torch.tensor(table, dtype=torch.float32).view(JPEG_SIZE, JPEG_SIZE)
