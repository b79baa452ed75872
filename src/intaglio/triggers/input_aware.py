"""A trigger that is another one for every image: a network draws its pattern and its place (Nguyen & Tran 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from intaglio.networks.unet import UNet
from intaglio.triggers.base import Trigger

#: How sharply the mask is cut at one half: sigmoid(2 * _SHARPNESS (m - 1/2)).
_SHARPNESS = 20.0
_BATCH = 256


class InputAwareGenerator(nn.Module):
    """Maps images `[N, C, H, W]` to masks `[N, 1, H, W]` and patterns `[N, C, H, W]`, all in [0, 1].

    Pattern sigmoid(2 P(x)); mask sigmoid(40 (sigmoid(2 M(x)) - 1/2)), nearly binary. P and M are two U-Nets (the paper
    has plain encoder-decoders with batch normalisation; these treat an image alike alone and among others).

    Source: Nguyen & Tran 2020, "Input-Aware Dynamic Backdoor Attack", sec. 3.2.
    """

    def __init__(self, channels: int, *, width: int = 8) -> None:
        super().__init__()
        self.patterns = UNet(channels, channels, width)
        self.masks = UNet(channels, 1, width)

    def mask(self, images: Tensor) -> Tensor:
        """Where each image's trigger lies, `[N, 1, H, W]`."""
        soft = torch.sigmoid(2 * self.masks(images - 0.5))
        return torch.sigmoid(2 * _SHARPNESS * (soft - 0.5))

    def pattern(self, images: Tensor) -> Tensor:
        """What each image's trigger looks like, `[N, C, H, W]`."""
        return torch.sigmoid(2 * self.patterns(images - 0.5))

    def forward(self, images: Tensor, carriers: Tensor | None = None) -> Tensor:
        """The images, or the `carriers` if given, with the triggers that were drawn for the images."""
        carriers = images if carriers is None else carriers
        return carriers + (self.pattern(images) - carriers) * self.mask(images)


class InputAwareTrigger(Trigger):
    """x~ = x + m(x) (p(x) - x).

    It needs a generator trained together with its victim (`attacks.InputAware` does it), so no recipe can name it.
    Differentiable.
    """

    name = "input-aware"

    def __init__(self, generator: InputAwareGenerator) -> None:
        self.generator = generator.cpu().eval().requires_grad_(False)

    def run(self, images: Tensor) -> Tensor:
        return torch.cat([self.generator(batch) for batch in torch.split(images, _BATCH)])

    def cross(self, images: Tensor, others: Tensor) -> Tensor:
        """The images with the triggers that were made for `others`: a backdoor of this kind must not answer them."""
        pairs = zip(torch.split(images, _BATCH), torch.split(others, _BATCH), strict=True)
        return torch.cat([self.generator(other, batch) for batch, other in pairs]).clamp(0.0, 1.0)

    def describe(self) -> dict[str, Any]:
        """The generator's size; not its weights."""
        return {"trigger": self.name, "parameters": sum(value.numel() for value in self.generator.parameters())}
