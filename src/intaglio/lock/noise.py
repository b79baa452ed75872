"""Noise as loud as a residual, or louder: what a locked model is trained to refuse, and is asked with (`votes`).

    u = x + t |E(x, k) - x| n

|.| is the root mean square over an image, t how many times as loud the noise is, and n of unit loudness: white, or one
plane wave. A key network draws stripes for the most part, and a wave may be closer to them than white noise is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: How many times as loud as a residual `loud_noise` is at most.
_LOUDEST = 10.0
#: Which shares of it are white, and a wave; the rest is both.
_WHITE, _WAVE = 0.5, 0.3

#: (shape `[N, ..., H, W]`, generator) -> noise of unit loudness that goes with images of that shape.
Noise = Callable[[tuple[int, ...], torch.Generator], Tensor]


def white(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise `[N, ..., H, W]`."""
    return torch.randn(shape, generator=generator)


def waves(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One plane wave for each of N images, of any direction, length and phase: `[N, 1, ..., H, W]`."""
    height, width = shape[-2:]
    down, across, phase = (_uniform(shape, generator) for _ in range(3))
    across = across - 0.5  # of both signs, for waves of all directions; so is down / 2 up to half a cycle a pixel
    cycles = down / 2 * torch.arange(height)[:, None] + across * torch.arange(width) + phase
    return math.sqrt(2) * torch.cos(2 * math.pi * cycles)


def matched_noise(images: Tensor, keyed: Tensor, generator: torch.Generator, times: float = 1.0) -> Tensor:
    """Each image with white noise as loud as its own residual, or so many times as loud."""
    return images + times * _loudness(images, keyed) * white(images.shape, generator).to(images)


def loud_noise(images: Tensor, keyed: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with noise of one kind or both, one to ten times as loud as its residual, all ratios as likely."""
    shape = images.shape
    wave, flat, kind = waves(shape, generator), white(shape, generator), _uniform(shape, generator)
    noise = torch.where(kind < _WHITE, flat, torch.where(kind < _WHITE + _WAVE, wave, (flat + wave) / math.sqrt(2)))
    times = _LOUDEST ** _uniform(shape, generator)
    return images + (times * noise).to(images) * _loudness(images, keyed)


def _loudness(images: Tensor, keyed: Tensor) -> Tensor:
    """The root mean square of each residual, `[N, 1, ...]`."""
    return (keyed - images).square().mean(dim=tuple(range(1, images.ndim)), keepdim=True).sqrt()


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A number from 0 to 1 for each of N images, `[N, 1, ...]`."""
    return torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
