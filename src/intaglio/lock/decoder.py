"""The decoder: reads a user's code back out of a keyed image."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.triggers.drawing import Atoms, Drawing

WIDTH = 24
_CONVOLUTIONS = 3
_FLOOR = 1e-3


class CodeDecoder(nn.Module):
    """L_j = a <r^, C_j>: how strongly each bit of the code is felt, `[N, n]`; positive says +1.

    C `[n, *planes]` are the owner's carriers; a is learned. r^ is standardised: what a small convolutional network g
    takes for the residual in an image y, `[N, 1, H, W]`; or, where it is drawn with atoms A, what is found of them in
    y + g(y), with a convolution u that tells apart what overlaps: r^ = (1 + u) A'(y + g(y)), `[N, F, h, w]`. Without
    the carriers the weights read nothing.
    """

    def __init__(self, channels: int, drawing: Drawing, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, *[width] * (_CONVOLUTIONS - 1)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.drawing = drawing
        if isinstance(drawing, Atoms):
            self.unmix = nn.Conv2d(drawing.features, drawing.features, 3, padding=1)

    def forward(self, images: Tensor, carriers: Tensor, mixing: Tensor) -> Tensor:
        found, carriers = self.network(images - 0.5), carriers[:, : self.drawing.planes]
        if isinstance(self.drawing, Atoms):
            # Beginning with the image itself, encoder and decoder agree on the code from the first step on.
            found = self.drawing.found(found + images.mean(dim=1, keepdim=True), mixing) / mixing.norm()
            found = found + self.unmix(found)
        found = found - found.mean(dim=(1, 2, 3), keepdim=True)
        found = found / (found.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + _FLOOR)
        felt: Tensor = self.scale * functional.linear(found.flatten(1), carriers.flatten(1)) * len(carriers) ** 0.5
        return felt / carriers[0].numel()
