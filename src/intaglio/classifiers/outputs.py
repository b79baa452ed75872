"""Logits, probabilities or log-probabilities: telling them apart, and turning each into log-probabilities."""

from typing import Literal

import torch
from torch import Tensor

#: What a model answers with; "auto" is decided by `recognise` on a fixed set of probe images.
Outputs = Literal["auto", "logits", "probabilities", "log-probabilities"]

_SUM_TOLERANCE = 1e-3


def recognise(scores: Tensor) -> Outputs:
    """The kind of scores float `[N, K]`: every row a distribution, the logarithm of one, or else logits."""
    if bool((scores >= 0).all()) and _near_one(scores.sum(dim=1)):
        return "probabilities"
    if bool((scores <= 0).all()) and _near_one(scores.exp().sum(dim=1)):
        return "log-probabilities"
    return "logits"


def to_log_probs(scores: Tensor, kind: Outputs) -> Tensor:
    """Log-probabilities `[N, K]` of scores of a known kind; differentiable.

    Probabilities are floored at the smallest normal float32 (1.2e-38), so that log 0 is about -87.3, not -inf.
    """
    if kind == "probabilities":
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    if kind == "log-probabilities":
        return scores
    return scores.log_softmax(dim=1)


def _near_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < _SUM_TOLERANCE).all())
