"""How much a keyed image differs from the original, as eyes would: PSNR and SSIM."""

import torch
from torch import Tensor
from torch.nn import functional

from intaglio.lock.frames import frames

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SMALLEST = 1e-12


def psnr(images: Tensor, altered: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB `[N]`: -10 log10 of the mean squared difference (at most 120).

    Of clips `[N, T, C, H, W]` every frame is an image: `[N T]`.
    """
    return -10 * frames(images - altered).square().mean(dim=(1, 2, 3)).clamp(min=_SMALLEST).log10()


def ssim(images: Tensor, altered: Tensor) -> Tensor:
    """Structural similarity of each image `[N]`, over 11 x 11 Gaussian windows of sigma 1.5; differentiable.

    Images `[N, C, H, W]` in [0, 1]; smaller ones get smaller windows. Of clips every frame is an image: `[N T]`.
    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13.
    """
    images, altered = frames(images), frames(altered)
    size = min(_WINDOW, *images.shape[2:])
    place = torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2
    weights = torch.exp(-place.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()

    def blurred(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]
        rows = functional.conv2d(flat, weights.view(1, 1, -1, 1))
        return functional.conv2d(rows, weights.view(1, 1, 1, -1)).view(*x.shape[:2], -1)

    mean_x, mean_y = blurred(images), blurred(altered)
    var_x = blurred(images.square()) - mean_x.square()
    var_y = blurred(altered.square()) - mean_y.square()
    covariance = blurred(images * altered) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(dim=(1, 2))
