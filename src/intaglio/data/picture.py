"""One picture file to one tensor, through Pillow, with its limits."""

import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from intaglio.errors import DataError

#: What is tried, whatever a file's suffix says; never EPS, which Pillow would hand to Ghostscript to execute.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

#: Pillow's own threshold for a decompression bomb is a warning; here it is a refusal.
MAX_PIXELS = 64 * 2**20


#: Pillow's answers to damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


def read_picture(
    source: Path | bytes,
    *,
    mode: str | None = None,
    resize: tuple[int, int] | None = None,
    name: str = "",
    whole: bool = False,
) -> Tensor:
    """Decodes a picture to uint8 `[C, H, W]`.

    `mode` is Pillow's "L" or "RGB"; by default grey pictures stay grey and all others become RGB. `resize` is
    `(H, W)` by antialiased bilinear interpolation. `name` stands in messages. Of several frames the first is taken,
    and transparency is dropped, unless the `whole` of the picture is asked for.

    Raises:
        DataError: not a picture, damaged, or over 64 megapixels; with `whole`, several frames or transparent pixels.
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(f"{name}: {picture.width} x {picture.height} is over {MAX_PIXELS} pixels")
                if picture.mode.startswith(("I", "F")):
                    raise DataError(f"{name}: mode {picture.mode} is not 8 bits a channel; convert it first")
                if whole:
                    _require_whole(picture, name)
                grey = picture.mode in ("L", "1", "LA")
                decoded = picture.convert(mode or ("L" if grey else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: not a picture that can be read ({error})") from error
    except _DAMAGED as error:
        raise DataError(f"{name}: damaged picture ({error})") from error
    if resize is not None:
        decoded = decoded.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    pixels = np.array(decoded)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _require_whole(picture: Image.Image, name: str) -> None:
    """Refuses what a tensor of grey or RGB can't hold."""
    # A camera's JPEG may hold a second, smaller copy (MPO), which is no other picture.
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        raise DataError(f"{name}: holds {frames} frames: save each as a picture of its own")
    if picture.has_transparency_data:
        opaque, _ = picture.convert("RGBA").getchannel("A").getextrema()
        if opaque != 255:
            raise DataError(f"{name}: is transparent in parts: flatten it first")
