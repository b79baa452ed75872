"""Logits, probabilities or log-probabilities: telling them apart, and turning each into log-probabilities."""

from typing import Literal

import torch
from torch import Tensor

#: What a model answers with; "auto" is decided by `recognise` on a fixed set of probe images.
Outputs = Literal["auto", "logits", "probabilities", "log-probabilities"]

_SUM_TOLERANCE = 1e-3
#: Sums further off than this are no sign of anything, however coarsely the values were rounded.
_MOST_ROUNDED = 0.5
#: To so many decimals services round; 1 is left out, where a sum says too little.
_DECIMALS = range(2, 7)
#: Of a float32 in [0, 1], with room to spare: how far it may lie from the decimal number that it stands for.
_FLOAT_SLACK = 1e-7


def recognise(scores: Tensor) -> Outputs:
    """The kind of scores float `[N, K]`: every row a distribution, the logarithm of one, or else logits.

    Rows add up to 1 within 0.001; probabilities that were rounded to d decimals, within K * 0.5 * 10^-d, as far as they
    can be off, if that is below 0.5. (Taken for logits they would be put through a softmax once more. Logarithms that
    were rounded need no such care: as logits they mean the same.)
    """
    if bool((scores >= 0).all()) and _near_one(scores.sum(dim=1), max(_SUM_TOLERANCE, _rounding(scores))):
        return "probabilities"
    if bool((scores <= 0).all()) and _near_one(scores.exp().sum(dim=1), _SUM_TOLERANCE):
        return "log-probabilities"
    return "logits"


def _rounding(scores: Tensor) -> float:
    """How far rounding can have moved the sums of rows `[N, K]`; 0 where no rounding shows, or too much of it."""
    values = scores.detach().double()
    if bool((values > 1).any()):
        return 0.0
    for decimals in _DECIMALS:
        steps = values * 10**decimals
        if bool(((steps - steps.round()).abs() <= _FLOAT_SLACK * 10**decimals).all()):
            furthest = scores.shape[1] * 0.5 * 10**-decimals
            return furthest + scores.shape[1] * _FLOAT_SLACK if furthest < _MOST_ROUNDED else 0.0
    return 0.0


def to_log_probs(scores: Tensor, kind: Outputs) -> Tensor:
    """Log-probabilities `[N, K]` of scores of a known kind; differentiable.

    Probabilities are floored at the smallest normal float32 (1.2e-38), so that log 0 is about -87.3, not -inf.
    """
    if kind == "probabilities":
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    if kind == "log-probabilities":
        return scores
    return scores.log_softmax(dim=1)


def _near_one(sums: Tensor, tolerance: float) -> bool:
    return bool(((sums - 1).abs() < tolerance).all())
