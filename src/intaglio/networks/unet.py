"""U-Net (Ronneberger et al., 2015), kept small: an image-to-image network that sees fine detail and context at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.errors import RecipeError

#: Channels of every width are a multiple of this, and normalised in so many groups.
GROUPS = 4
#: So often the resolution is halved, unless told otherwise.
DEPTH = 2


class UNet(nn.Module):
    """Maps `[N, in_channels, H, W]` to `[N, out_channels, H, W]`, for any H and W of `2**depth` or more.

    `depth` times the resolution is halved by average pooling; on the way back each level is enlarged and joined with
    what that resolution looked like on the way down. The first level has `width` channels, all deeper ones twice as
    many. Every level is two 3x3 convolutions, the first with group normalisation (no statistics over the batch: an
    image is treated alike alone and among others).

    Source: Ronneberger, Fischer & Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation".

    Raises:
        RecipeError: a width that is no multiple of 4, or a depth below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 12, depth: int = DEPTH) -> None:
        super().__init__()
        if width < GROUPS or width % GROUPS or depth < 1:
            raise RecipeError(f"a U-Net needs a width that is a multiple of {GROUPS} and a depth of 1 or more, "
                              f"got {width} and {depth}")  # fmt: skip
        widths = [width] + [2 * width] * depth
        self.depth = depth
        self.down = nn.ModuleList(_level(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_level(widths[i + 1] + widths[i], widths[i]) for i in range(depth))
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for level, convolutions in enumerate(self.down):
            x = convolutions(x if level == 0 else functional.avg_pool2d(x, 2))
            passed.append(x)
        for level in reversed(range(self.depth)):
            skip = passed[level]
            x = self.up[level](torch.cat([functional.interpolate(x, size=skip.shape[-2:]), skip], dim=1))
        out: Tensor = self.out(x)
        return out


def check_unet_size(height: int, width: int, depth: int = DEPTH) -> None:
    """Refuses images that a U-Net of this depth can't halve so often.

    Raises:
        RecipeError: with their size.
    """
    if min(height, width) < 2**depth:
        raise RecipeError(
            f"images of {height} x {width} are too small for a U-Net, which takes {2**depth} pixels a side"
        )


def _level(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.GroupNorm(GROUPS, channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
    )
