"""Whole trigger images and their labels, both drawn from a secret: what an ownership mark is made of.

Images are of any shape, clips `[T, C, H, W]` too. Whoever knows a batch's seed can draw the batch again; nobody else
can foretell a pixel or a label. The labels are uniform and independent of the images, so for every model made without
the seed, hits ~ Binomial(n, 1/K) exactly.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intaglio.data import check_images
from intaglio.errors import DataError, RecipeError
from intaglio.triggers.keystream import KeyStream

#: Grey level and contrast of noise images. A third of the values is clamped: the stronger the noise, the further from
#: any task, and the less a model's other answers have to move (measured: PFL 1.2 instead of 1.6 at a deviation of 1/4).
_NOISE_MEAN, _NOISE_DEVIATION = 0.5, 0.5
_LEVELS = 255
_BLOCKS = 7


def keyed_batch(
    kind: str,
    seed: bytes,
    count: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    public: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images float32 `[count, *input_shape]`, all multiples of 1/255 (they survive an 8-bit PNG), and labels int64.

    Args:
        kind: one of `KEYED_TRIGGERS`.
        seed: the batch's secret, 16 bytes or more.
        public: the committed images that "public-blend" draws from, float32 `[P, *input_shape]` in [0, 1].

    Raises:
        RecipeError: an unknown kind, no images or fewer than 2 classes asked for, or a seed that is too short.
        DataError: public images that are missing, too few, or of another shape.
    """
    if kind not in KEYED_TRIGGERS:
        raise RecipeError(f"unknown kind of keyed triggers '{kind}'; there are {', '.join(KEYED_TRIGGERS)}")
    if count < 1 or num_classes < 2:
        raise RecipeError(f"keyed triggers need at least 1 image and 2 classes, got {count} and {num_classes}")
    images = KEYED_TRIGGERS[kind](KeyStream(seed, "images"), count, input_shape, public)
    labels = torch.from_numpy(KeyStream(seed, "labels").integers(count, num_classes))
    return eight_bit(images), labels


def eight_bit(images: Tensor) -> Tensor:
    """Images rounded to the 256 grey levels of a PNG."""
    return (images.clamp(0, 1) * _LEVELS).round() / _LEVELS


def noise_chain(stream: KeyStream, count: int, input_shape: tuple[int, ...], public: Tensor | None) -> Tensor:
    """Gaussian noise turned again and again: X_0 ~ N(0, I), X_j = Q X_{j-1}, Q orthogonal; pixels 0.5 + X / 2.

    Q = (I - 2 v v^T) D P: a secret reflection after a secret signed permutation, so that inputs of any size cost
    O(size) instead of the O(size^3) of a dense matrix. Every X_j is standard normal, as with any orthogonal Q.

    Source: Hua & Teoh 2022 (2208.00563), trigger generation.
    """
    size = int(np.prod(input_shape))
    order = stream.permutation(size)
    signs = 2.0 * stream.integers(size, 2) - 1
    axis = stream.normals(size)
    axis /= np.linalg.norm(axis)
    state: NDArray[np.float64] = stream.normals(size)
    chain = []
    for _ in range(count):
        chain.append(state)
        turned = signs * state[order]
        state = turned - 2 * axis * (axis @ turned)
    pixels = _NOISE_MEAN + _NOISE_DEVIATION * np.stack(chain)
    return torch.from_numpy(pixels.astype(np.float32)).view(count, *input_shape)


def noise_blocks(stream: KeyStream, count: int, input_shape: tuple[int, ...], public: Tensor | None) -> Tensor:
    """A grid of 7 x 7 blocks (or as many as the image has pixels), each value of each block 0 or 1 with equal chance.

    Time, where there is any, is cut in the same way: 7 x 7 x 7 blocks. Source: ours. Coarse patterns are what a
    network's later layers are made for, so fine-tuning forgets them later: see docs/mark.md. Independent images, 2^49
    of them and more, so no two are alike but by chance.
    """
    colours = len(input_shape) - 3
    grid = [side if axis == colours else min(_BLOCKS, side) for axis, side in enumerate(input_shape)]
    cells = stream.integers(count * math.prod(grid), 2)
    blocks = torch.from_numpy(cells.astype(np.float32)).view(count, *grid)
    for axis, (side, cut) in enumerate(zip(input_shape, grid, strict=True), 1):
        blocks = blocks.index_select(axis, torch.arange(side) * cut // side)
    return blocks


def public_blend(stream: KeyStream, count: int, input_shape: tuple[int, ...], public: Tensor | None) -> Tensor:
    """Each image is the mean of two different public images, chosen by the secret: (a + b) / 2."""
    if public is None:
        raise DataError("triggers of the kind 'public-blend' need the public images that they are blended from")
    check_images(public, "public images")
    if tuple(public.shape[1:]) != tuple(input_shape) or len(public) < 2:
        raise DataError(
            f"public images are {list(public.shape)}, but two or more of {list(input_shape)} are needed to blend"
        )
    first = stream.integers(count, len(public))
    second = (first + 1 + stream.integers(count, len(public) - 1)) % len(public)
    return (eight_bit(public[torch.from_numpy(first)]) + eight_bit(public[torch.from_numpy(second)])) / 2


Generator = Callable[[KeyStream, int, tuple[int, ...], Tensor | None], Tensor]

#: Kinds of keyed triggers by the names that commitments carry.
KEYED_TRIGGERS: dict[str, Generator] = {
    "noise-blocks": noise_blocks,
    "noise-chain": noise_chain,
    "public-blend": public_blend,
}
