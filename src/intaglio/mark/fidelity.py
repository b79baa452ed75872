"""How far a marked model is from its host: the losses of deep fidelity as pure functions on tensors.

Source: Hua & Teoh 2022 (2208.00563). z are penultimate features, f the host, g the marked model.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def prototype_feature_loss(features: Tensor, host_features: Tensor) -> Tensor:
    """PFL = mean over images of ||z(x) - z_f(x)||^2, for features `[N, D]`."""
    return (features - host_features).square().sum(dim=1).mean()


def soft_prediction_loss(logits: Tensor, host_logits: Tensor) -> Tensor:
    """SPL = KL(softmax f(x) || softmax g(x)), mean over images, in nats, for logits `[N, K]`."""
    return kl_div(log_softmax(logits, 1), log_softmax(host_logits, 1), reduction="batchmean", log_target=True)


def total_weight_loss(weights: Iterable[Tensor], host_weights: Iterable[Tensor]) -> Tensor:
    """TWL = sum over layers of ||theta - theta_f||^2: the older notion of fidelity, reported for comparison."""
    return torch.stack([(a - b).square().sum() for a, b in zip(weights, host_weights, strict=True)]).sum()


def agreement(logits: Tensor, host_logits: Tensor) -> float:
    """Share of images on which both models give the same class."""
    return float((logits.argmax(1) == host_logits.argmax(1)).double().mean())
