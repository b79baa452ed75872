"""How visible an alteration is: PSNR and SSIM."""

import torch
from kornia.metrics import psnr, ssim
from torch import Tensor

from intaglio.results import Result

_WINDOW = 11
#: What stands for an infinite PSNR, of an image that the trigger left as it was.
_HIGHEST = 100.0
_BATCH = 256


class Quality(Result):
    """Means over images: peak signal-to-noise ratio in dB (100 for an unchanged image), and SSIM, at most 1.

    Of clips, over all their frames.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity" (11 x 11
    Gaussian windows), as kornia computes it.
    """

    psnr: float
    ssim: float


def quality(images: Tensor, altered: Tensor) -> Quality:
    """Compares images `[N, C, H, W]`, or the frames of clips, in [0, 1] with their altered versions, one by one."""
    images, altered = images.flatten(0, -4), altered.flatten(0, -4)
    peaks = torch.stack([psnr(new, old, 1.0) for old, new in zip(images, altered, strict=True)])
    window = min(_WINDOW, (min(images.shape[2:]) - 1) // 2 * 2 + 1)
    pairs = zip(torch.split(images, _BATCH), torch.split(altered, _BATCH), strict=True)
    structure = torch.cat([ssim(old, new, window).mean(dim=(1, 2, 3)) for old, new in pairs])
    return Quality(psnr=float(peaks.clamp(max=_HIGHEST).mean()), ssim=float(structure.mean()))
