"""What happens to a raw image before the model sees it; every default is the identity."""

from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=16384)]


class Preprocessing(BaseModel):
    """Maps raw images in [0, 1] to a model's own input: `(scale * order(resize(x)) - mean) / std`, then the layout.

    `mean` and `std` are in units of the scaled image, in the model's channel order, one for all channels or one per
    channel. EfficientNet-Lite's `(255 x - 127) / 128` is `scale=255, mean=(127,), std=(128,)`; torchvision's ImageNet
    models are `mean=(.485, .456, .406), std=(.229, .224, .225)`.

    `resize` is `(H, W)`, antialiased bilinear; `channel_order` is what the model expects (raw images are RGB);
    `layout` puts channels before or after the spatial axes, or, for videos, before time (NCTHW); videos of the other
    layouts are NTCHW and NTHWC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: tuple[Side, Side] | None = None
    scale: Finite = 1.0
    mean: tuple[Finite, ...] = ()
    std: tuple[Finite, ...] = ()
    channel_order: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["NCHW", "NHWC", "NCTHW"] = "NCHW"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale must not be 0")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {self.std}")
        if len(self.mean) > 1 and len(self.std) > 1 and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, but std has {len(self.std)}")
        return self

    def problem(self, input_shape: tuple[int, ...]) -> str | None:
        """Why this can't be applied to raw images `(C, H, W)` or videos `(T, C, H, W)`; None when it can."""
        channels = input_shape[-3]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                return f"preprocessing {name} has {len(values)} values, but images have {channels} channels"
        if self.channel_order == "bgr" and channels != 3:
            return f"channel order bgr needs 3 channels, but images have {channels}"
        if self.layout == "NCTHW" and len(input_shape) != 4:
            return f"layout NCTHW is one of videos (T, C, H, W), but inputs are {input_shape}"
        return None

    def model_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one image as the model sees it, for a raw `input_shape`."""
        *leading, channels, height, width = input_shape
        height, width = self.resize or (height, width)
        if self.layout == "NCTHW":
            return (channels, *leading, height, width)
        spatial = (channels, height, width) if self.layout == "NCHW" else (height, width, channels)
        return (*leading, *spatial)

    def raw_shape(self, model_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `model_shape`; with `resize`, raw images are taken to be of that size already."""
        if self.layout == "NCHW":
            return model_shape
        if self.layout == "NCTHW":
            first, *leading = model_shape
            return (*leading[:-2], first, *leading[-2:])
        *leading, height, width, channels = model_shape
        return (*leading, channels, height, width)

    def apply(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` or videos `[N, T, C, H, W]` as the model expects them; differentiable."""
        if self.resize is not None and images.shape[-2:] != self.resize:
            resized = functional.interpolate(images.flatten(0, -4), self.resize, mode="bilinear", antialias=True)
            images = resized.view(*images.shape[:-2], *self.resize)
        if self.channel_order == "bgr":
            images = images.flip(-3)
        if self.scale != 1.0:
            images = images * self.scale
        if any(self.mean):
            images = images - _per_channel(self.mean, images)
        if any(value != 1.0 for value in self.std):
            images = images / _per_channel(self.std, images)
        return images if self.layout == "NCHW" else images.movedim(-3, -1 if self.layout == "NHWC" else 1)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """`[1 or C, 1, 1]`, to broadcast over the channel axis."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
