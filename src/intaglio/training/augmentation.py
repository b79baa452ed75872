"""Augmentations of a batch, each drawn from an explicit generator."""

import torch
from torch import Tensor

from intaglio.training.settings import Augmentation

SHIFT = 2
NOISE = 0.05


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """A new batch `[N, C, H, W]`, altered image by image; of clips `[N, T, C, H, W]` all frames alike."""
    if kind == "none":
        return images
    if images.ndim == 5:
        return augment(images.flatten(1, 2), kind, generator).view_as(images)
    if kind == "flip-shift":
        return augment(augment(images, "flip", generator), "shift", generator)
    count, _, height, width = images.shape
    if kind == "flip":
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        return torch.where(mirrored, images.flip(3), images)
    if kind == "shift":
        padded = torch.nn.functional.pad(images, (SHIFT,) * 4)
        down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        index = torch.arange(count)[:, None, None]
        return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return (images + NOISE * torch.randn(images.shape, generator=generator)).clamp(0, 1)
