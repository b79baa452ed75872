"""What may happen to a keyed image on its way to the model, so that training can go through it.

Rounding to 8 bits happens to every image; beyond that 2 of 5 meet JPEG, unless another share is asked for, 1 of 5
blur, resizing or noise, the rest nothing. Images that were JPEG files before get half of that JPEG at their own
quality: there all coefficients lie on the very grid they are rounded to, and whatever moves one by less than half a
step is gone.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor
from torch.nn import functional

from intaglio.lock.frames import frames
from intaglio.tampering import Jpeg

#: Which share of a batch meets JPEG, and which at most beside the others.
JPEG_SHARE, MOST_JPEG = 0.4, 0.8
#: Which meets blur, resizing and noise; the rest is only rounded.
_SHARES = (0.07, 0.07, 0.06)
_QUALITY = (50.0, 95.0)
_OWN_SHARE = 0.5
#: Own qualities that are looked for, and how they are told: saved so again, images change less than half as much as at
#: the qualities beside it. Finer grids hardly matter.
_OWN_QUALITIES = range(50, 91)
_BESIDE = 5
_LESS = 0.5
_LOOKED_AT = 16
_BLUR = (0.3, 0.7)
_ZOOM = (0.75, 1.25)
_NOISE = 2 / 255


def own_quality(images: Tensor) -> int | None:
    """At which quality, of 50 to 90, images or frames were JPEG files before, uncropped; None if they weren't so."""
    few = frames(images[:_LOOKED_AT])[:_LOOKED_AT]
    if few.shape[1] not in (1, 3):
        return None
    changes = {
        quality: float((Jpeg(quality=quality)(few) - few).square().mean())
        for quality in range(_OWN_QUALITIES.start - _BESIDE, _OWN_QUALITIES.stop + _BESIDE)
    }
    found = min(_OWN_QUALITIES, key=changes.__getitem__)
    beside = min(changes[found - _BESIDE], changes[found + _BESIDE])
    return found if math.sqrt(changes[found]) < _LESS * math.sqrt(beside) else None


def distort(
    images: Tensor, generator: torch.Generator, own: int | None = None, jpeg_share: float = JPEG_SHARE
) -> Tensor:
    """Each image `[N, C, H, W]` after a distortion drawn for it; the gradient passes through. `own` is their quality.

    All frames of a clip `[N, T, C, H, W]` meet the same kind, frame by frame. What a video codec does between frames
    is no part of this: keyed clips are to be kept without loss, or each frame as JPEG.
    """
    order = torch.randperm(len(images), generator=generator)
    counts = [round(share * len(images)) for share in (jpeg_share, *_SHARES)]
    parts = torch.split(order, [*counts, len(images) - sum(counts)])
    distortions: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (partial(jpeg, own=own), blur, resize, noise)
    altered = [
        distortion(frames(images[part]), generator).view_as(images[part]) if len(part) else images[part]
        for distortion, part in zip(distortions, parts, strict=False)
    ]
    merged = torch.cat([*altered, images[parts[-1]]])[torch.cat(parts).argsort()]
    return rounded(merged.clamp(0, 1))


def rounded(images: Tensor) -> Tensor:
    """The nearest 8-bit values; the gradient passes as if nothing had been done."""
    return images + ((images.detach() * 255).round() / 255 - images.detach())


def jpeg(images: Tensor, generator: torch.Generator, own: int | None = None) -> Tensor:
    """JPEG of a quality drawn for each image between 50 and 95, or its own, with a gradient (Shin & Song 2017)."""
    quality = _uniform(_QUALITY, len(images), generator)
    if own is not None:
        quality[torch.rand(len(images), generator=generator) < _OWN_SHARE] = own
    quality = quality.to(images)
    colour = images.clamp(0, 1).expand(-1, 3, -1, -1)
    coded = jpeg_codec_differentiable(colour, quality)
    return coded if images.shape[1] == 3 else coded.mean(dim=1, keepdim=True)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """A 3 x 3 Gaussian of one standard deviation for all, between 0.3 and 0.7 pixels."""
    sigma = float(_uniform(_BLUR, 1, generator))
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2))
    kernel = (weights[:, None] * weights).to(images)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def resize(images: Tensor, generator: torch.Generator) -> Tensor:
    """To one size for all, 0.75 to 1.25 times the own, and back."""
    height, width = images.shape[2:]
    zoom = float(_uniform(_ZOOM, 1, generator))
    other = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    there = functional.interpolate(images, other, mode="bilinear", antialias=True)
    return functional.interpolate(there, (height, width), mode="bilinear", antialias=True)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of two 8-bit steps."""
    return images + _NOISE * torch.randn(images.shape, generator=generator).to(images)


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
