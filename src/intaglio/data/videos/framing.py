"""How frames of any size become frames of one size, and grey: arithmetic on sizes and uint8 arrays."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: "squash" changes the proportions; "crop" keeps them and cuts off what is too much, equally on both sides.
Fit = Literal["squash", "crop"]

#: ITU-R 601, in thousandths.
_LUMA = (299, 587, 114)


def covering(shape: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """The `(H, W)` to which a frame of `shape` is scaled: `size`, or, to be cropped, the least that covers it."""
    if fit == "squash":
        return size
    factor = max(size[0] / shape[0], size[1] / shape[1])
    return max(size[0], math.floor(shape[0] * factor + 0.5)), max(size[1], math.floor(shape[1] * factor + 0.5))


def framed(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle `size` of `[H, W, C]`."""
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def as_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[H, W, 3]` to `[H, W, 1]`: 0.299 R + 0.587 G + 0.114 B, rounded."""
    weighted = (pixels.astype(np.int32) * _LUMA).sum(axis=2, keepdims=True)
    rounded: NDArray[np.uint8] = ((weighted + 500) // 1000).astype(np.uint8)
    return rounded
