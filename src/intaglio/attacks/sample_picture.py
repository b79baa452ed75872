"""A picture of what an attack does to images, or to the frames of a clip: clean, poisoned, and their difference."""

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from intaglio.data import evenly_spaced
from intaglio.errors import DataError

AMPLIFICATION = 10
_MARGIN = 2
#: Small images are enlarged by a whole factor to about this many pixels.
_SIDE = 96
#: Of a longer clip, so many frames are shown, evenly spread.
_FRAMES = 8


def showable(images: Tensor) -> bool:
    """Whether a picture can show these images, or clips: they have 1 or 3 channels."""
    return images.shape[-3] in (1, 3)


def sample_picture(images: Tensor, altered: Tensor) -> bytes:
    """PNG with three rows: images `[N, C, H, W]` in [0, 1], their altered versions, and 1/2 + 10 (altered - image).

    Of clips `[N, T, C, H, W]`, a contact sheet of the first one: its frames in a row, 8 at most, evenly spread.

    Raises:
        DataError: images of neither 1 nor 3 channels, which no picture can show.
    """
    if images.ndim == 5:
        shown = evenly_spaced(images.shape[1], _FRAMES)
        images, altered = images[0, shown], altered[0, shown]
    if not showable(images):
        raise DataError(f"images of {images.shape[1]} channels can't be shown as a picture")
    difference = (0.5 + AMPLIFICATION * (altered - images)).clamp(0.0, 1.0)
    factor = max(_SIDE // max(images.shape[2:]), 1)
    rows = torch.stack([images, altered, difference])
    rows = rows.repeat_interleave(factor, dim=3).repeat_interleave(factor, dim=4)
    rows = torch.nn.functional.pad(rows, (_MARGIN,) * 4, value=1.0)
    page = torch.cat([torch.cat([*row], dim=2) for row in rows], dim=1)
    pixels = (page * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = BytesIO()
    Image.fromarray(pixels[:, :, 0] if images.shape[1] == 1 else pixels).save(stream, format="PNG")
    return stream.getvalue()
