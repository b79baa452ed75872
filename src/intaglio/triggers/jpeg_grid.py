"""A residual that JPEG leaves as it is: whole steps of the grid that JPEG rounds to.

JPEG rounds each cosine of 8 x 8 pixels to whole steps q of its own, so to a picture's coefficient c it does
q round(c / q). For a residual of whole steps k q

    round((c + k q) / q) = round(c / q) + k:

the residual comes through unchanged, on whatever picture; and a picture that was a JPEG file of this quality, for which
c is a whole number of steps too, comes through with it.

So does whether the sum is an even or an odd number of steps. Where a bit is marked, the nearest number of its parity is
taken, and no picture stands in the way of reading it (quantization index modulation; Chen & Wornell 2001).
"""

import math
from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from intaglio.errors import RecipeError
from intaglio.triggers.drawing import JPEG_SIZE, cosines

#: Above it libjpeg hardly rounds, and warns against it.
BEST_QUALITY = 95
_HALVINGS = 8
#: What JPEG takes for the brightness of red, green and blue.
_BRIGHTNESS = (0.299, 0.587, 0.114)


class JpegGrid(nn.Module):
    """Rounds residuals of brightness to whole steps of JPEG of one quality, as loud as is allowed.

    A residual is scaled, each image's by the largest factor, of 256 up to 1, with which it stays within `loudest` after
    rounding and bounding. The bound is pixel by pixel, by which coefficients leave the grid again, by less than half a
    step but for very few: JPEG puts them back. The gradient is that of scaling alone.

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

        Sides that are no multiple of 8 are continued by their last value, as JPEG does it; what was rounded there with
        what lies outside is off the grid.

        With `marks` `[N, 1, H, W]`, laid out as coefficients are within blocks of 8 x 8 (rows are vertical
        frequencies), a coefficient of `images` and residual together becomes an even number of steps where a mark is
        positive, an odd one where it is negative.
        """
        with torch.no_grad():
            height, width = residual.shape[2:]
            amounts = self._amounts(residual)
            marked = start = None
            if images is not None and marks is not None:
                wanted = _cut(_padded(marks))
                marked, start = wanted != 0, self._amounts(brightness(images)) - (wanted < 0).to(amounts)

            def drawn(scale: Tensor) -> Tensor:
                whole = _whole(scale[..., None] * amounts, marked, start)
                return self._pixels(whole * self.steps)[..., :height, :width].clamp(-bound, bound)

            def fits(scale: Tensor) -> Tensor:
                return loudness(drawn(scale)) <= loudest

            scale = _largest(fits, torch.ones_like(residual[:, :1, :1, :1]))
            rounded = drawn(scale)
        loud = loudness(residual)
        scaled = residual * scale * torch.where(scale < 1, loud.detach() / loud, 1.0)
        return scaled + (rounded - scaled).detach()

    def parities(self, images: Tensor) -> Tensor:
        """cos(pi c / q) of the coefficients c of images `[N, C, H, W]`, laid out as marks are, `[N, 1, H, W]`.

        1 for an even number of steps, -1 for an odd one, and 0 half-way.
        """
        height, width = images.shape[2:]
        found = (math.pi * self._amounts(brightness(images))).cos()
        return _joined(found)[..., :height, :width]

    def _amounts(self, images: Tensor) -> Tensor:
        """Coefficients of images `[N, 1, H, W]` in steps, `[N, H / 8, W / 8, 8, 8]`, sides rounded up."""
        return self.cosines @ _cut(_padded(images)) @ self.cosines.T / self.steps

    def _pixels(self, blocks: Tensor) -> Tensor:
        """What has these coefficients, `[N, 1, H, W]`."""
        return _joined(self.cosines.T @ blocks @ self.cosines)


def brightness(images: Tensor) -> Tensor:
    """What JPEG takes for the brightness of images `[N, C, H, W]`, `[N, 1, H, W]`; the mean if they have no colours."""
    if images.shape[1] != len(_BRIGHTNESS):
        return images.mean(dim=1, keepdim=True)
    weights = torch.tensor(_BRIGHTNESS).to(images).view(1, -1, 1, 1)
    return (weights * images).sum(dim=1, keepdim=True)


def _whole(amounts: Tensor, marked: Tensor | None, start: Tensor | None) -> Tensor:
    """Whole steps; what is `marked` comes to the nearest even number together with `start`."""
    whole = amounts.round()
    if marked is None or start is None:
        return whole
    return torch.where(marked, 2 * ((start + amounts) / 2).round() - start, whole)


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
