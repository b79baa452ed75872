"""How likely chance alone gives so many hits: the exact binomial tail, and what a threshold asks for.

Trigger labels are uniform and independent of the images, so for a model made without the key hits ~ Binomial(n, 1/K).
"""

import math

import numpy as np
from scipy.stats import binom

from intaglio.errors import DataError

#: Nobody tried more suspects, or keys, than that.
MOST_TRIED = 1 << 40
_MOST_TRIALS = 1 << 17


def chance_p_value(hits: int, trials: int, num_classes: int, *, suspects: int = 1, keys: int = 1) -> float:
    """min(1, suspects * keys * P[Binomial(trials, 1 / num_classes) >= hits]): exact, Bonferroni-corrected.

    Right down to 1e-300; smaller tails may come out as 0.

    Raises:
        DataError: more hits than trials, no trials, fewer than 2 classes, or counts of suspects or keys that can't be.
    """
    _check(trials, num_classes)
    if not 0 <= hits <= trials:
        raise DataError(f"{hits} hits in {trials} trials is not a count of hits")
    if suspects < 1 or keys < 1:
        raise DataError(f"at least 1 suspect and 1 key were tried, got {suspects} and {keys}")
    if max(suspects, keys) > MOST_TRIED:
        raise DataError(f"nobody tried more than {MOST_TRIED} suspects or keys")
    return min(1.0, float(binom.sf(hits - 1, trials, 1 / num_classes)) * suspects * keys)


def shared_threshold(threshold: float, count: int) -> float:
    """The threshold of each of `count` tests that share one, above 0 however many they are."""
    return max(threshold / count, math.ulp(0.0))


def needed_hits(trials: int, num_classes: int, threshold: float) -> int | None:
    """The least hits of `trials` whose p-value is `threshold` or less; None if even hitting all is not enough.

    Raises:
        DataError: no trials, fewer than 2 classes, or a threshold outside (0, 1).
    """
    _check(trials, num_classes)
    check_threshold(threshold)
    hits = np.arange(trials + 1)
    enough = np.asarray(binom.sf(hits - 1, trials, 1 / num_classes)) <= threshold
    return int(hits[enough][0]) if enough.any() else None


def needed_trials(num_classes: int, threshold: float, *, hit_rate: float = 1.0) -> int:
    """The least number of triggers with which a suspect that answers `hit_rate` of them as marked is claimed.

    With every trigger hit that is ceil(log(1 / threshold) / log(num_classes)).

    Raises:
        DataError: fewer than 2 classes, a threshold outside (0, 1), a hit rate not above chance, or more than 2^17
            triggers needed.
    """
    _check(1, num_classes)
    check_threshold(threshold)
    if not 1 / num_classes < hit_rate <= 1:
        raise DataError(f"a hit rate of {hit_rate} is not above chance (1 in {num_classes}) and at most 1")
    first = max(1, math.floor(-math.log(threshold) / math.log(num_classes)) - 1)
    while first <= _MOST_TRIALS:
        trials = np.arange(first, 2 * first + 64)
        hits = np.floor(hit_rate * trials)
        enough = np.asarray(binom.sf(hits - 1, trials, 1 / num_classes)) <= threshold
        if enough.any():
            return int(trials[enough][0])
        first = int(trials[-1]) + 1
    raise DataError(f"a hit rate of {hit_rate} needs more than {_MOST_TRIALS} triggers for p <= {threshold:.3g}")


def _check(trials: int, num_classes: int) -> None:
    if trials < 1 or num_classes < 2:
        raise DataError(f"a p-value needs at least 1 trial and 2 classes, got {trials} and {num_classes}")


def check_threshold(threshold: float) -> None:
    """Does nothing for a p-value that can decide something.

    Raises:
        DataError: it is outside (0, 1).
    """
    if not 0 < threshold < 1:  # also true for NaN
        raise DataError(f"a threshold lies between 0 and 1, got {threshold}")
