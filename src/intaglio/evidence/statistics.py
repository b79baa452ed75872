"""Exact and resampled statistics behind verdicts and tables."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, rankdata

from intaglio.errors import DataError

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def conformal_p_value(score: float, clean_scores: Sequence[float]) -> float:
    """p = (1 + #{clean >= score}) / (1 + n): at most 1, never below 1 / (n + 1).

    Under exchangeability with the clean models, P(p <= alpha) <= alpha for every alpha.
    Source: Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", ch. 2.

    Raises:
        DataError: a score is NaN: it would compare as lower than all, and pass for the rarest of scores.
    """
    _refuse_nan([score], clean_scores)
    return (1 + sum(clean >= score for clean in clean_scores)) / (1 + len(clean_scores))


def proportion(events: int, trials: int) -> Interval:
    """Share of `trials` with its exact (Clopper-Pearson) 95 % interval.

    Raises:
        DataError: no trials, or more events than trials.
    """
    if trials < 1 or not 0 <= events <= trials:
        raise DataError(f"{events} events in {trials} trials is not a proportion")
    bounds = binomtest(events, trials).proportion_ci(0.95, method="exact")
    return Interval(events / trials, float(bounds.low), float(bounds.high))


def auroc(positive: Sequence[float], negative: Sequence[float], *, seed: int = 0) -> Interval:
    """Area under the ROC curve with a stratified percentile-bootstrap 95 % interval (2,000 resamples).

    AUROC = P(positive > negative) + P(equal) / 2. Where the two groups don't overlap every resample gives 1 (or 0);
    the interval then says nothing about how rare an overlap is.

    Raises:
        DataError: a group is empty, or a score is NaN.
    """
    if not len(positive) or not len(negative):
        raise DataError(f"an AUROC needs both groups, got {len(positive)} and {len(negative)} scores")
    _refuse_nan(positive, negative)
    groups = (np.asarray(positive, float), np.asarray(negative, float))
    value = _auroc(*groups)
    if len(groups[0]) < 2 or len(groups[1]) < 2 or value in (0.0, 1.0):
        return Interval(value, value, value)
    result = bootstrap(
        groups, _auroc, n_resamples=2000, vectorized=False, method="percentile", rng=np.random.default_rng(seed)
    )
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def _refuse_nan(*groups: Sequence[float]) -> None:
    if any(np.isnan(np.asarray(group, float)).any() for group in groups):
        raise DataError("a score is NaN")


def _auroc(positive: Floats, negative: Floats) -> float:
    ranks = rankdata(np.concatenate([positive, negative]))
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))
