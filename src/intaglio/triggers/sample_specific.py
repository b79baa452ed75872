"""A trigger that is another one for every image, and can't be seen: the residual that a U-Net draws for it."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.errors import RecipeError
from intaglio.networks.unet import UNet
from intaglio.triggers.base import Trigger

EPSILON = 8 / 255
FEATURES = 16
MIXING_SIZE = 3
#: Root mean square of what `tanh` is given at first is about this: neither saturated nor lost in rounding.
_MIXING_SCALE = 3.0
_BATCH = 256


class Secret(NamedTuple):
    """What an encoder is told beside the image; a leading 1 is shared by the whole batch."""

    #: The message, spread over the image: `[1 or N, 1, H, W]`.
    plane: Tensor
    #: How the U-Net's features are mixed into a residual: 3x3 convolutions `[1 or N, 1, F, 3, 3]`.
    mixing: Tensor


class SampleSpecificEncoder(nn.Module):
    """E(x, k) = clamp(x + s e tanh(W_k * UNet(x, p_k))): x with an invisible residual of its own.

    p_k is the message, spread to a plane that the U-Net sees beside the image; W_k mixes its F features into the
    residual by convolution, so that without k the network alone draws nothing of use. The residual is one of
    brightness, the same in all colours of a pixel that aren't clamped: JPEG halves the resolution of colour and rounds
    it coarsely, and what was hidden there is gone. The factor s <= 1, one for each image, keeps every single image at
    `psnr` or above, whatever the U-Net was trained to.

    Images float32 `[N, C, H, W]` in [0, 1]; the residual is bounded by `epsilon` in every value. Differentiable.
    `relief` is 1 in use; while training starts, a larger value multiplies both bounds.

    Source: Wu et al. 2022, "Sample-Specific Backdoor based Active Intellectual Property Protection" (the key network,
    its U-Net and the per-user code; W_k and s are of our own making); Li et al. 2021, "Invisible Backdoor Attack with
    Sample-Specific Triggers" (as an attack).

    Raises:
        RecipeError: bounds that make no sense.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 12,
        features: int = FEATURES,
        epsilon: float = EPSILON,
        psnr: float = 35.2,
    ) -> None:
        super().__init__()
        if not 0 < epsilon <= 1 or not 10 <= psnr <= 80 or channels < 1 or features < 1:
            raise RecipeError(f"an encoder needs epsilon in (0, 1] and a PSNR of 10 to 80 dB, got {epsilon}, {psnr}")
        self.channels = channels
        self.features = features
        self.epsilon = epsilon
        self.psnr = psnr
        self.relief = 1.0
        self.network = UNet(channels + 1, features, width)

    def forward(self, images: Tensor, plane: Tensor, mixing: Tensor) -> Tensor:
        plane = plane.expand(images.shape[0], -1, -1, -1)
        features = self.network(torch.cat([images - 0.5, plane], dim=1))
        drawn = self.relief * self.epsilon * torch.tanh(_mix(features, mixing))
        residual = (images + drawn).clamp(0, 1) - images
        loudness = (residual.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12).sqrt()
        loudest = self.relief * 10 ** (-self.psnr / 20)
        return images + residual * (loudest / loudness).clamp(max=1)

    def draw_mixing(self, count: int, generator: torch.Generator) -> Tensor:
        """Random mixings `[count, 1, F, 3, 3]`, of the scale that `normalised` gives."""
        return normalised(torch.randn((count, *mixing_shape(self.features)), generator=generator))


class SampleSpecificTrigger(Trigger):
    """x~ = E(x, k) for one secret k: the encoder as a trigger.

    It needs a trained encoder, so no recipe can name it; it is pure and differentiable as every trigger is.
    """

    name = "sample-specific"

    def __init__(self, encoder: SampleSpecificEncoder, secret: Secret) -> None:
        self.encoder = encoder
        self.secret = secret

    def run(self, images: Tensor) -> Tensor:
        return torch.cat([self.encoder(batch, *self.secret) for batch in torch.split(images, _BATCH)])

    def describe(self) -> dict[str, Any]:
        """The bounds; neither weights nor secret."""
        return {"trigger": self.name, "epsilon": self.encoder.epsilon, "psnr": self.encoder.psnr}


def mixing_shape(features: int) -> tuple[int, ...]:
    """The shape of one mixing, `[1, F, 3, 3]`: all features to one brightness."""
    return (1, features, MIXING_SIZE, MIXING_SIZE)


def normalised(mixing: Tensor) -> Tensor:
    """Mixings `[N, 1, F, 3, 3]`, each scaled to the same norm."""
    norm = mixing.square().sum(dim=(2, 3, 4), keepdim=True).sqrt()
    return mixing * (_MIXING_SCALE / norm.clamp(min=math.ulp(1.0)))


def _mix(features: Tensor, mixing: Tensor) -> Tensor:
    """Convolves `[N, F, H, W]` with one mixing for all, or one for each."""
    padding = MIXING_SIZE // 2
    if len(mixing) == 1:
        return functional.conv2d(features, mixing[0], padding=padding)
    count = len(mixing)
    merged = features.reshape(1, -1, *features.shape[2:])
    drawn = functional.conv2d(merged, mixing.flatten(0, 1), padding=padding, groups=count)
    return drawn.view(count, 1, *features.shape[2:])
