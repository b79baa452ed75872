"""Weakens what images say of their own class, so that a victim has to learn the trigger instead."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.attacks.surrogate import ascend

#: (logits [N, K], labels [N]) -> what is to become large, a scalar that sums over the images.
Objective = Callable[[Tensor, Tensor], Tensor]

#: Images, or frames of clips.
_BATCH = 256


def away_from_label(logits: Tensor, labels: Tensor) -> Tensor:
    """CE(f(x), y): the farther from their label, the larger."""
    return cross_entropy(logits, labels, reduction="sum")


def towards_uniform(logits: Tensor, labels: Tensor) -> Tensor:
    """-CE(f(x), 1/K for all): the more undecided, the larger."""
    return logits.log_softmax(dim=1).mean(dim=1).sum()


def weakened(
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    epsilon: float,
    step: float,
    steps: int,
    as_released: bool = False,
) -> Tensor:
    """Images `[N, C, H, W]` in [0, 1], each moved by at most `epsilon` a value: projected gradient, no random start.

    `as_released` is the projection of Zhao et al.'s released code: the first step moves what later ones are held to as
    well, so that a value may end `epsilon + step` from where it was. Clips `[N, T, C, H, W]` are moved alike.
    """
    device = next((parameter.device for parameter in surrogate.parameters()), torch.device("cpu"))
    done = []
    size = max(_BATCH // (images.shape[1] if images.ndim == 5 else 1), 1)
    for origin, wanted in zip(torch.split(images, size), torch.split(labels, size), strict=True):
        origin, wanted = origin.to(device), wanted.to(device)
        moved = origin.clone()
        for index in range(steps):
            moved = moved.requires_grad_(True)
            (slope,) = torch.autograd.grad(objective(surrogate(moved), wanted), moved)
            if as_released and index == 0:
                origin = origin + step * slope.sign()
            moved = ascend(moved.detach(), slope, origin, step=step, epsilon=epsilon)
        done.append(moved.cpu())
    return torch.cat(done)
