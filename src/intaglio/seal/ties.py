"""Where several classes tie: by Newton steps along gradients, or by bisection between two images."""

import torch
from torch import Tensor

from intaglio.seal.surface import LEVELS, GradientSurface, Surface, lead, rivals

#: The largest change of one pixel in one step, in grey levels.
_LONGEST_STEP = 40.0
_DAMPING = 1e-6


def approach_tie(
    surface: GradientSurface, levels: Tensor, tops: Tensor, ways: int, *, target: float = 0.0, steps: int = 12
) -> tuple[Tensor, Tensor]:
    """Images (not rounded) at which `tops` `[N]` leads its `ways - 1` strongest rivals by `target`; and those rivals.

    Gauss-Newton with steps of least norm: x <- x + J^T (J J^T)^-1 (target - m(x)) for the margins m `[J]` and their
    derivatives J, clamped to valid pixels; the rivals are chosen anew in every step. Convergence is not checked here.
    """
    for _ in range(steps):
        others = rivals(surface.scores(levels), tops, ways - 1)
        values, slopes = surface.jacobian(levels, tops, others)
        gram = slopes @ slopes.transpose(1, 2)
        scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        gram = gram + _DAMPING * scale[:, None, None] * torch.eye(ways - 1)
        weights = torch.linalg.lstsq(gram, (target - values).float()[:, :, None]).solution
        step = (slopes.transpose(1, 2) @ weights).squeeze(2)
        length = step.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        step = step * (_LONGEST_STEP / length).clamp_max(1.0)
        levels = (levels.flatten(1) + step).clamp(0, LEVELS).view_as(levels)
    return levels, rivals(surface.scores(levels), tops, ways - 1)


def bisect(surface: Surface, inside: Tensor, outside: Tensor, tops: Tensor, *, steps: int = 16) -> Tensor:
    """Points `[N, ...]` on the segments from `inside` (answered `tops`) to `outside` where the answer changes.

    Source: any line search; the boundary is met to 1 / 2^steps of the segment.
    """
    low = torch.zeros(len(tops))
    high = torch.ones(len(tops))
    for _ in range(steps):
        middle = (low + high) / 2
        points = torch.lerp(inside, outside, middle.view(-1, *[1] * (inside.ndim - 1)))
        ahead = lead(surface.scores(points), tops) > 0
        low, high = torch.where(ahead, middle, low), torch.where(ahead, high, middle)
    return torch.lerp(inside, outside, low.view(-1, *[1] * (inside.ndim - 1)))
