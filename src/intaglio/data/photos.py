"""Pieces of two photographs that come with scikit-learn: public images of any shape, the same everywhere."""

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate

from intaglio.errors import DataError
from intaglio.seeds import torch_generator

#: Side of a piece, in pixels of the photographs (427 x 640).
_SMALLEST, _LARGEST = 48, 256


def public_photos(input_shape: tuple[int, ...], count: int = 256, *, seed: int = 0) -> Tensor:
    """Random square pieces of a temple and of a flower, float32 `[count, *input_shape]`, multiples of 1/255.

    They belong to no classification task that intaglio knows, and anyone can make them again.

    Raises:
        DataError: a shape that is neither grey nor RGB.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise DataError(f"photographs are grey or RGB [1 or 3, H, W], not {list(input_shape)}")
    channels, height, width = input_shape
    photos = [torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() for photo in load_sample_images().images]
    generator = torch_generator(seed, "public photos")
    pieces = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(torch.randint(_SMALLEST, _LARGEST, (), generator=generator))
        top = int(torch.randint(photo.shape[1] - side, (), generator=generator))
        left = int(torch.randint(photo.shape[2] - side, (), generator=generator))
        piece = photo[None, :, top : top + side, left : left + side]
        pieces.append(interpolate(piece, (height, width), mode="area")[0])
    images = torch.stack(pieces)
    if channels == 1:
        images = images.mean(dim=1, keepdim=True)
    return images.round() / 255
