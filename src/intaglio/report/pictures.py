"""Signature maps as PNG pictures: one colour scale for all, and a box around the suspicious place."""

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intaglio.scan.verdict import Place

#: "Inferno" (S. van der Walt and N. Smith, CC0) at 17 even steps: perceptually uniform, so that equal differences
#: look equal, and readable without colour vision and in grey print.
_INFERNO = np.frombuffer(
    bytes.fromhex(
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754"
        "d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
    ),
    np.uint8,
).reshape(-1, 3)

#: Maps are enlarged by a whole factor to about this many pixels, twice what a page shows: sharp on good screens
#: and in print.
_SIDE = 320

#: The box, from its outer edge inwards: black, white, black, so that some of it contrasts with any colour.
_BOX = ((7, 0), (5, 255), (2, 0))

#: Transparent pixels around a map, so that a box at its edge hides nothing and is not cut off.
MARGIN = _BOX[0][0]


@dataclass(frozen=True)
class ColourScale:
    """The values that the darkest and the brightest colour stand for."""

    low: float
    high: float

    @classmethod
    def spanning(cls, maps: NDArray[np.float32]) -> Self:
        """From the lowest to the highest value, and always with 0 in it: black is "changes nothing", as a rule."""
        low, high = float(min(0, maps.min(initial=0))), float(max(0, maps.max(initial=0)))
        return cls(low, high if high > low else low + 1)

    @property
    def middle(self) -> float:
        """The value half-way."""
        return (self.low + self.high) / 2

    def colours(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """RGB `[..., 3]` of values `[...]`."""
        position = (values - self.low) / (self.high - self.low) * (len(_INFERNO) - 1)
        channels = [np.interp(position, range(len(_INFERNO)), channel) for channel in _INFERNO.T]
        return np.stack(channels, axis=-1).round().astype(np.uint8)


def cells_of(place: Place, input_size: tuple[int, int], extent: tuple[int, int]) -> Place:
    """The cells of a map `extent` (rows, columns) that hold the pixels of `place` in an input `(H, W)`.

    The same division into blocks as the signature's: pixel row i is in block row `i * rows // H`.
    """
    (height, width), (rows, columns) = input_size, extent
    top, left = place.row * rows // height, place.column * columns // width
    bottom = (place.row + place.height - 1) * rows // height
    right = (place.column + place.width - 1) * columns // width
    return Place(row=top, column=left, height=bottom - top + 1, width=right - left + 1)


def enlargement(extent: tuple[int, int]) -> int:
    """The side, in picture pixels, of one cell of a map."""
    return max(1, _SIDE // max(extent))


def map_picture(values: NDArray[np.float32], scale: ColourScale, box: Place | None) -> bytes:
    """A PNG of a map `[rows, columns]`, with `box` (in cells), if there is one, outlined from the outside.

    Cell (i, j) starts at picture pixel `MARGIN + i * enlargement`, `MARGIN + j * enlargement`.
    """
    rows, columns = values.shape
    factor = enlargement((rows, columns))
    pixels = np.zeros((rows * factor + 2 * MARGIN, columns * factor + 2 * MARGIN, 4), np.uint8)
    inner = pixels[MARGIN:-MARGIN, MARGIN:-MARGIN]
    inner[..., :3] = scale.colours(values).repeat(factor, axis=0).repeat(factor, axis=1)
    inner[..., 3] = 255
    if box is not None:
        _outline(pixels, box, factor)
    return _png(pixels)


def colour_bar(width: int = 256) -> bytes:
    """A PNG, one pixel high, of all colours from the lowest value to the highest."""
    return _png(ColourScale(0, 1).colours(np.linspace(0, 1, width, dtype=np.float32))[None])


def data_uri(png: bytes) -> str:
    """A PNG as text that stands where an address would."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _outline(pixels: NDArray[np.uint8], box: Place, factor: int) -> None:
    top, left = MARGIN + box.row * factor, MARGIN + box.column * factor
    bottom, right = top + box.height * factor, left + box.width * factor
    inside = pixels[top:bottom, left:right].copy()
    for reach, shade in _BOX:
        pixels[top - reach : bottom + reach, left - reach : right + reach] = (shade, shade, shade, 255)
    pixels[top:bottom, left:right] = inside


def _png(pixels: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
