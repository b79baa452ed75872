"""A trigger that is another one for every image, and can't be seen: the residual that a U-Net draws for it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intaglio.errors import RecipeError
from intaglio.networks.unet import UNet
from intaglio.triggers.base import Trigger
from intaglio.triggers.batches import batch_size
from intaglio.triggers.drawing import Atoms, drawing
from intaglio.triggers.jpeg_grid import JpegGrid, loudness

EPSILON = 8 / 255
FEATURES = 16
#: How loud a message is at first beside what the U-Net makes of image and message.
_MESSAGE = 0.1


class Secret(NamedTuple):
    """What an encoder is told beside the image; a leading 1 is shared by the whole batch."""

    #: The message, spread over the image `[1 or N, 1, H, W]`, or over the atoms `[1 or N, F, h, w]`. Another plane, on
    #: a grid of JPEG, marks coefficients.
    plane: Tensor
    #: What the U-Net's features are mixed by, 3x3 convolutions `[1 or N, 1, F, 3, 3]`; or atoms `[1 or N, 1, F, k, k]`.
    mixing: Tensor


class SampleSpecificEncoder(nn.Module):
    """E(x, k) = clamp(x + s e tanh(D_k(UNet(x, p_k)))): x with an invisible residual of its own.

    p_k is the message, spread to a plane that the U-Net sees beside the image; D_k draws the residual from its F
    features with the secret, so that without k the network alone draws nothing of use (`triggers.drawing`: a stride of
    1 mixes features by convolution; another draws with secret atoms, a share m of the message beside what the U-Net
    found, m learned: D_k(UNet(x, p_k) + m p_k)). The residual is one of
    brightness, the same in all colours of a pixel that aren't clamped: JPEG halves the resolution of colour and rounds
    it coarsely, and what was hidden there is gone. The factor s <= 1, one for each image, keeps every single image at
    `psnr` or above, whatever the U-Net was trained to. With a `grid`, a quality of JPEG, what is drawn is rounded to
    whole steps of that JPEG, which then leaves it as it is (`JpegGrid`); a message may then have another plane, of
    marks, where a bit is told by whether the number of steps is even or odd.

    Images float32 `[N, C, H, W]` in [0, 1]; the residual is bounded by `epsilon` in every value. Differentiable.
    `relief` is 1 in use; while training starts, a larger value multiplies both bounds.

    Source: Wu et al. 2022, "Sample-Specific Backdoor based Active Intellectual Property Protection" (the key network,
    its U-Net and the per-user code; D_k and s are of our own making); Li et al. 2021, "Invisible Backdoor Attack with
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
        stride: int = 1,
        grid: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < epsilon <= 1 or not 10 <= psnr <= 80 or min(channels, features, stride) < 1:
            raise RecipeError(f"an encoder needs epsilon in (0, 1] and a PSNR of 10 to 80 dB, got {epsilon}, {psnr}")
        self.channels = channels
        self.drawing = drawing(features, stride)
        self.epsilon = epsilon
        self.psnr = psnr
        self.relief = 1.0
        self.grid = grid
        self.steps = JpegGrid(grid) if grid else None
        atoms = isinstance(self.drawing, Atoms)
        self.network = UNet(channels + self.drawing.planes, features, width)
        self.message = nn.Parameter(torch.full((features, 1, 1), _MESSAGE)) if atoms else None

    def forward(self, images: Tensor, plane: Tensor, mixing: Tensor) -> Tensor:
        count, _, height, width = images.shape
        plane = plane.expand(count, -1, -1, -1)
        marks = plane[:, self.drawing.planes :]
        plane = self.drawing.enlarged(plane[:, : self.drawing.planes], height, width)
        features = self.network(torch.cat([images - 0.5, plane], dim=1))
        if self.message is not None:
            features = features + self.message * plane
        drawn = self.relief * self.epsilon * torch.tanh(self.drawing.draw(features, mixing))
        loudest = self.relief * 10 ** (-self.psnr / 20)
        if self.steps is not None:
            drawn = self.steps(drawn, loudest, self.relief * self.epsilon, images, marks if marks.shape[1] else None)
        residual = (images + drawn).clamp(0, 1) - images
        return images + residual * (loudest / loudness(residual)).clamp(max=1)

    def draw_mixing(self, count: int, generator: torch.Generator) -> Tensor:
        """Random secrets `[count, 1, F, k, k]` of this encoder's drawing."""
        return self.drawing.secrets(torch.randn((count, *self.drawing.shape), generator=generator))


class SampleSpecificTrigger(Trigger):
    """x~ = E(x, k) for one secret k: the encoder as a trigger.

    It needs a trained encoder, so no recipe can name it; it is pure and differentiable as every trigger is.
    """

    name = "sample-specific"

    def __init__(self, encoder: SampleSpecificEncoder, secret: Secret) -> None:
        self.encoder = encoder
        self.secret = secret

    def run(self, images: Tensor) -> Tensor:
        return torch.cat([self.encoder(batch, *self.secret) for batch in torch.split(images, batch_size(images.shape))])

    def describe(self) -> dict[str, Any]:
        """The bounds; neither weights nor secret."""
        return {"trigger": self.name, "epsilon": self.encoder.epsilon, "psnr": self.encoder.psnr}
