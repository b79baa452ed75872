"""Statistics behind verdicts and tables, with intervals that hold where there is little."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata

from intaglio.errors import DataError

Floats = NDArray[np.float64]
_NEARLY = 1e-9


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


def auroc(positive: Sequence[float], negative: Sequence[float]) -> Interval:
    """Area under the ROC curve with its 95 % interval.

    AUROC = P(positive > negative) + P(equal) / 2; for the interval see `auroc_interval`.

    Raises:
        DataError: a group is empty, or a score is NaN.
    """
    if not len(positive) or not len(negative):
        raise DataError(f"an AUROC needs both groups, got {len(positive)} and {len(negative)} scores")
    _refuse_nan(positive, negative)
    value = _auroc(np.asarray(positive, float), np.asarray(negative, float))
    return auroc_interval(value, len(positive), len(negative))


def auroc_interval(value: float, positive: int, negative: int) -> Interval:
    """An AUROC A of m and n scores with a 95 % score interval: all theta with (A - theta)^2 <= z^2 V(theta).

        V(theta) = theta (1 - theta) (1 + (N - 1) ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m n)

    with N = (m + n) / 2. Resampling gives no interval where the groups don't overlap, or one of them is a single score,
    and one too narrow where they are small; this one keeps its 95 % there.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    Statistics in Medicine 25, method 5.
    """
    z, mean = float(norm.ppf(0.975)), (positive + negative) / 2

    def excess(theta: float) -> float:
        spread = 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (positive * negative)

    # At 0 and 1 V is 0, too: there the value itself is a root, and not the one that is looked for.
    low = brentq(excess, 0, min(value, 1 - _NEARLY)) if value > _NEARLY else 0.0
    high = brentq(excess, max(value, _NEARLY), 1) if value < 1 - _NEARLY else 1.0
    return Interval(value, float(low), float(high))


def _refuse_nan(*groups: Sequence[float]) -> None:
    if any(np.isnan(np.asarray(group, float)).any() for group in groups):
        raise DataError("a score is NaN")


def _auroc(positive: Floats, negative: Floats) -> float:
    ranks = rankdata(np.concatenate([positive, negative]))
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))
