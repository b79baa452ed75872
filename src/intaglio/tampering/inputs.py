"""What an API may do to images before its model sees them: JPEG, noise, resizing, rounding. To clips: to each frame."""

import math
from abc import ABC, abstractmethod
from io import BytesIO
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intaglio.classifiers import Preprocessing
from intaglio.data import check_images
from intaglio.errors import DataError, RecipeError
from intaglio.seeds import torch_generator


class InputTransform(ABC):
    """A function of raw images; hyper-parameters go to `__init__`, by keyword, and a subclass writes `run` alone."""

    name: ClassVar[str]

    @final
    def __call__(self, images: Tensor) -> Tensor:
        """New images or clips of the same shape, float32 `[N, C, H, W]` or `[N, T, C, H, W]` in [0, 1].

        Raises:
            DataError: images of a wrong type, shape or range.
        """
        check_images(images, f"input of {self.name}")
        return self.apply(images).clamp(0.0, 1.0)

    def apply(self, images: Tensor) -> Tensor:
        """Checked images, or every frame of checked clips, transformed."""
        return self.run(images.flatten(0, -4)).view(images.shape)

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """The transform itself, on checked images `[N, C, H, W]`."""


class Jpeg(InputTransform):
    """Writes every image as JPEG and reads it again; passes no gradient.

    Args:
        quality: 1 to 100.

    Raises:
        RecipeError: a quality outside its range.
    """

    name = "jpeg"

    def __init__(self, *, quality: int = 75) -> None:
        if not isinstance(quality, int) or not 1 <= quality <= 100:
            raise RecipeError(f"JPEG quality lies between 1 and 100, got {quality}")
        self.quality = quality

    def run(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise DataError(f"JPEG holds 1 or 3 channels, got images of {images.shape[1]}")
        pixels = (images.detach().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        decoded = torch.from_numpy(np.stack([self._once(picture.numpy()) for picture in pixels]))
        return decoded.view(pixels.shape).permute(0, 3, 1, 2).contiguous().to(images.device).float() / 255

    def _once(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        stream = BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "JPEG", quality=self.quality)
        with Image.open(stream) as picture:
            return np.array(picture)


class PixelNoise(InputTransform):
    """x + sigma N(0, 1), the same noise for the same batch shape.

    Args:
        sigma: standard deviation, above 0.
        seed: draws the noise.

    Raises:
        RecipeError: a sigma that isn't above 0.
    """

    name = "noise"

    def __init__(self, *, sigma: float = 0.02, seed: int = 0) -> None:
        if not (sigma > 0 and math.isfinite(sigma)):
            raise RecipeError(f"sigma is above 0 and finite, got {sigma}")
        self.sigma = sigma
        self.seed = seed

    def run(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=torch_generator(self.seed, "inputs", self.name))
        return images + self.sigma * noise.to(images.device)


class Resize(InputTransform):
    """Shrinks (or enlarges) images and brings them back to their size, antialiased bilinear both ways.

    Args:
        factor: of height and width, above 0; 1 changes nothing.

    Raises:
        RecipeError: a factor that isn't above 0.
    """

    name = "resize"

    def __init__(self, *, factor: float = 0.75) -> None:
        if not (factor > 0 and math.isfinite(factor)):
            raise RecipeError(f"the factor is above 0 and finite, got {factor}")
        self.factor = factor

    def run(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = (max(round(height * self.factor), 1), max(round(width * self.factor), 1))
        small = interpolate(images, size, mode="bilinear", antialias=True)
        return interpolate(small, (height, width), mode="bilinear", antialias=True)


class RoundBits(InputTransform):
    """Rounds every value to one of 2^bits grey levels: with 8 bits, what a PNG upload does.

    Args:
        bits: per channel, from 1 to 16.

    Raises:
        RecipeError: bits outside their range.
    """

    name = "round"

    def __init__(self, *, bits: int = 8) -> None:
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise RecipeError(f"a channel is rounded to 1 to 16 bits, got {bits}")
        self.bits = bits

    def run(self, images: Tensor) -> Tensor:
        levels = float(2**self.bits - 1)
        return (images * levels).round() / levels


#: name -> class
INPUT_TRANSFORMS: dict[str, type[InputTransform]] = {
    transform.name: transform for transform in (Jpeg, PixelNoise, Resize, RoundBits)
}


class TransformedInput(nn.Module):
    """A model behind an input transform: takes raw images, transforms and preprocesses them, and asks the model."""

    def __init__(
        self, module: nn.Module, transform: InputTransform, preprocessing: Preprocessing | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.preprocessing = preprocessing or Preprocessing()

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.module(self.preprocessing.apply(self.transform(images)))
        return answer
