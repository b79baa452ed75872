"""The decoder: reads a user's code back out of a keyed image."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 24
_CONVOLUTIONS = 3
_FLOOR = 1e-3


class CodeDecoder(nn.Module):
    """L_j = a <r^, C_j>: how strongly each bit of the code is felt, `[N, n]`; positive says +1.

    r^ = standardised g(y) `[N, H, W]` is what a small convolutional network takes for the residual in an image y, and
    C `[n, H, W]` are the owner's carriers; a is learned. Without the carriers the weights read nothing.
    """

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, *[width] * (_CONVOLUTIONS - 1)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, carriers: Tensor) -> Tensor:
        found = self.network(images - 0.5)[:, 0]
        found = found - found.mean(dim=(1, 2), keepdim=True)
        found = found / (found.square().mean(dim=(1, 2), keepdim=True).sqrt() + _FLOOR)
        felt: Tensor = self.scale * functional.linear(found.flatten(1), carriers.flatten(1)) * len(carriers) ** 0.5
        return felt / carriers[0].numel()
