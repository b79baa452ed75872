"""Where searches start: keyed noise, or the owner's own images in a keyed order."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from intaglio.classifiers import Classifier
from intaglio.errors import DataError
from intaglio.seal.method import Request
from intaglio.seal.surface import LEVELS

#: Large pixels per side of a coarse image.
_GRID = 4


def starting_levels(classifier: Classifier, request: Request, count: int, *, coarse: bool = False) -> Tensor:
    """`count` images in whole grey levels `[count, *input_shape]`.

    Noise is uniform and drawn from the key, image by image; with `coarse`, every other image is made of 4 x 4 large
    pixels, for models that answer all fine noise alike. Given images are taken in a keyed order, again and again if
    there are too few.

    Raises:
        DataError: images of another shape.
    """
    if request.images is None:
        generators = [request.draws.generator("start", index) for index in range(count)]
        return torch.stack(
            [
                _noise(classifier.input_shape, generator, coarse=coarse and index % 2 == 1)
                for index, generator in enumerate(generators)
            ]
        )
    if tuple(request.images.shape[1:]) != classifier.input_shape:
        raise DataError(f"images are {tuple(request.images.shape[1:])}, but the model takes {classifier.input_shape}")
    order = request.draws.shuffled(len(request.images), "images")
    chosen = torch.tensor([order[index % len(order)] for index in range(count)])
    return (request.images[chosen] * LEVELS).round()


def _noise(shape: tuple[int, ...], generator: torch.Generator, *, coarse: bool) -> Tensor:
    if not coarse:
        return torch.randint(LEVELS + 1, shape, generator=generator).float()
    grids = torch.randint(LEVELS + 1, (1, math.prod(shape[:-2]), _GRID, _GRID), generator=generator).float()
    return interpolate(grids, shape[-2:]).view(shape)
