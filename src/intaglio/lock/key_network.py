"""The key network of a lock, the encoder with its decoder, and what it is trained for.

    loss = CE(critic) + w_c BCE(decoded bits) + w_s relu(S - SSIM)

No label is used, so the residual is never taught to spell the class out.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from intaglio.lock.decoder import CodeDecoder
from intaglio.lock.quality import ssim
from intaglio.lock.settings import LockSettings
from intaglio.triggers.sample_specific import SampleSpecificEncoder

#: Called with (steps done, steps in all).
Progress = Callable[[int, int], None]

_SSIM_WEIGHT = 30.0
#: A little above the 0.95 that is promised.
_SSIM = 0.958
_LOUDEST = 4.0
_LOWERED = 0.5


class KeyNetwork(nn.Module):
    """The encoder E and the decoder of one lock."""

    def __init__(self, channels: int, settings: LockSettings) -> None:
        super().__init__()
        self.encoder = SampleSpecificEncoder(
            channels,
            width=settings.width,
            features=settings.features,
            epsilon=settings.epsilon,
            psnr=settings.psnr,
            stride=settings.stride,
            grid=settings.grid or 0,
        )
        self.decoder = CodeDecoder(channels, self.encoder.drawing)


def relief(done: float) -> float:
    """How much louder than allowed the residual may be when a share `done` of the training is over.

    It starts four times as loud and is lowered to its bounds over the first half: at its bounds from the start,
    training finds nothing to hold on to for thousands of images.
    """
    return 1 + (_LOUDEST - 1) * max(0.0, 1 - done / _LOWERED)


def key_loss(
    told_apart: Tensor,
    codes: Tensor,
    felt: Tensor,
    images: Tensor,
    keyed: Tensor,
    done: float,
    code_weight: float,
) -> Tensor:
    """What encoder, decoder and critic are trained for, when a share `done` of the training is over.

    The weight on invisibility grows over the first half; with all of it at once, no code is ever learned.

    Args:
        told_apart: the critic's loss.
        codes: what was hidden in each frame, `[N, n]` of signs; `felt` is what was decoded.
        images, keyed: originals and keyed images or clips `[N, ...]`, before anything happened to them.
        code_weight: w_c.
    """
    decoded = softplus(-codes * felt).mean()
    visible = relu(_SSIM - ssim(images, keyed).mean())
    loss: Tensor = told_apart + code_weight * decoded + _SSIM_WEIGHT * min(1.0, done / _LOWERED) * visible
    return loss
