"""How a secret turns what a U-Net found into a residual of brightness: it mixes features, or it is what is drawn with.

`Mixing` convolves all features into one image. A U-Net that is trained for one mixing alone can draw any residual
through it. `Atoms` are patterns of 8 x 8 pixels, a few at every fourth place, and the U-Net says how much of each: what
isn't made of its owner's atoms `draw` can't draw, however the U-Net was trained. Owners at random have 36 to 46 % of
what they can draw in common, and the tanh and the bounds that follow bend a residual a little.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

#: Root mean square of what is drawn at first is well below 1: a tanh that it goes through isn't saturated.
_SCALE = 3.0
_MIXING_SIZE = 3
#: How loud an atom may be at frequencies of order u + v, of cosines over 8 pixels: JPEG 75 rounds those of orders 1 to
#: 4 to steps of 5 to 12 grey levels, and most others away. Order 0 is brightness itself.
_ORDERS = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 0.8, 6: 0.4}
#: JPEG's blocks are of so many pixels each way.
JPEG_SIZE = 8


class Drawing(ABC):
    """One way of drawing. Secrets are tensors `[1 or N, 1, F, k, k]`; a leading 1 is shared by the whole batch.

    Args:
        features: F, how many features a U-Net has to find.
    """

    def __init__(self, features: int) -> None:
        self.features = features

    @property
    @abstractmethod
    def planes(self) -> int:
        """How many a message has."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Of one secret."""

    @abstractmethod
    def secrets(self, normal: Tensor) -> Tensor:
        """Secrets made of standard normal numbers `[N, *shape]`, all of the same norm."""

    @abstractmethod
    def plane_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of a message for images of this size."""

    @abstractmethod
    def enlarged(self, plane: Tensor, height: int, width: int) -> Tensor:
        """Messages as the U-Net sees them beside the image, `[N, planes, H, W]`."""

    @abstractmethod
    def draw(self, features: Tensor, secrets: Tensor) -> Tensor:
        """A residual `[N, 1, H, W]`, of whatever loudness, from features `[N, F, H, W]`."""


class Mixing(Drawing):
    """W * f: all features convolved by 3 x 3 into one residual. A message is an image of one channel."""

    @property
    def planes(self) -> int:
        return 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.features, _MIXING_SIZE, _MIXING_SIZE)

    def secrets(self, normal: Tensor) -> Tensor:
        return _of_norm(normal, _SCALE)

    def plane_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (self.planes, height, width)

    def enlarged(self, plane: Tensor, height: int, width: int) -> Tensor:
        return plane

    def draw(self, features: Tensor, secrets: Tensor) -> Tensor:
        padding = _MIXING_SIZE // 2
        if len(secrets) == 1:
            return functional.conv2d(features, secrets[0], padding=padding)
        count, size = len(secrets), features.shape[2:]
        merged = features.reshape(1, -1, *size)
        drawn = functional.conv2d(merged, secrets.flatten(0, 1), padding=padding, groups=count)
        return drawn.view(count, 1, *size)


class Atoms(Drawing):
    """sum_j a_j(f) A_j: atoms of 2 s x 2 s pixels at every s-th place, each as loud as its feature is there on average.

    With F of them at every place residuals have F / s^2 of the dimensions that images have. A message is how much of
    each atom, `[F, H / s, W / s]`.

    Args:
        features: F, atoms at each place.
        stride: s, even.
    """

    def __init__(self, features: int, stride: int) -> None:
        super().__init__(features)
        self.stride = stride

    @property
    def planes(self) -> int:
        return self.features

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.features, 2 * self.stride, 2 * self.stride)

    def secrets(self, normal: Tensor) -> Tensor:
        size = normal.shape[-1]
        order = torch.arange(size)[:, None] + torch.arange(size)
        order = (order * JPEG_SIZE / size).round()
        loudness = torch.zeros(size, size, dtype=torch.float64)
        for known, share in _ORDERS.items():
            loudness[order == known] = share
        basis = cosines(size)
        atoms = basis.T @ (normal.double() * loudness) @ basis
        # Averages of features are fainter than features, and twice as many atoms lie over a pixel in each direction.
        return _of_norm(atoms.float(), 2 * self.stride * _SCALE)

    def plane_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (self.planes, -(-height // self.stride), -(-width // self.stride))

    def enlarged(self, plane: Tensor, height: int, width: int) -> Tensor:
        return functional.interpolate(plane, scale_factor=self.stride)[..., :height, :width]

    def draw(self, features: Tensor, secrets: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        amounts = functional.avg_pool2d(features, self.stride, ceil_mode=True)
        padding = self.stride // 2
        if len(secrets) == 1:
            atoms = secrets[0].transpose(0, 1)
            drawn = functional.conv_transpose2d(amounts, atoms, stride=self.stride, padding=padding)
        else:
            count = len(secrets)
            merged = amounts.reshape(1, -1, *amounts.shape[2:])
            atoms = secrets.transpose(1, 2).flatten(0, 1)
            drawn = functional.conv_transpose2d(merged, atoms, stride=self.stride, padding=padding, groups=count)
            drawn = drawn.view(count, 1, *drawn.shape[2:])
        return drawn[..., :height, :width]

    def found(self, residual: Tensor, secret: Tensor) -> Tensor:
        """How much of each of one owner's atoms is in residuals `[N, 1, H, W]`: inner products `[N, F, h, w]`."""
        height, width = residual.shape[-2:]
        padded = functional.pad(residual, (0, -width % self.stride, 0, -height % self.stride))
        return functional.conv2d(padded, secret[0].transpose(0, 1), stride=self.stride, padding=self.stride // 2)


def drawing(features: int, stride: int) -> Drawing:
    """Atoms at every `stride`-th place; with a stride of 1 a mixing of features."""
    return Mixing(features) if stride == 1 else Atoms(features, stride)


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II matrix, float64 `[size, size]`: row k is the k-th cosine."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _of_norm(secrets: Tensor, norm: float) -> Tensor:
    found = secrets.square().sum(dim=(2, 3, 4), keepdim=True).sqrt()
    return secrets * (norm / found.clamp(min=math.ulp(1.0)))
