"""Triggers as PNG: exactly the grey levels that were sealed."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from intaglio.data.picture import read_picture
from intaglio.errors import DataError, EvidenceError


def encode_png(levels: Tensor) -> str:
    """Base64 of a PNG of one image in whole grey levels, `[C, H, W]`, or of a video `[T, C, H, W]`.

    Three channels are RGB; any other number of channels, like the frames of a video, lie one below the other.
    """
    pixels = levels.to(torch.uint8).numpy()
    if pixels.shape[-3] == 3:
        picture = Image.fromarray(np.moveaxis(pixels, -3, -1).reshape(-1, pixels.shape[-1], 3))
    else:
        picture = Image.fromarray(pixels.reshape(-1, pixels.shape[-1]))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def decode_png(text: str, shape: tuple[int, ...]) -> Tensor:
    """The inverse: float32 grey levels of the given shape.

    Raises:
        EvidenceError: not such a picture.
    """
    *leading, channels, height, width = shape
    rows = int(np.prod(leading, dtype=np.int64)) * height
    try:
        found = read_picture(
            base64.b64decode(text, validate=True), mode="RGB" if channels == 3 else "L", name="trigger"
        )
    except (DataError, ValueError) as error:
        raise EvidenceError(f"the seal holds a damaged trigger: {error}") from error
    expected = (3, rows, width) if channels == 3 else (1, rows * channels, width)
    if tuple(found.shape) != expected:
        raise EvidenceError(f"the seal holds a trigger of {tuple(found.shape)}, expected {expected}")
    if channels == 3:
        return found.view(3, *leading, height, width).movedim(0, -3).float().contiguous()
    return found.view(shape).float()
