"""Exact p-values of hits by chance, and what thresholds need."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.errors import DataError
from intaglio.evidence.binomial import chance_p_value, needed_hits, needed_trials

TINY = 2.0**-64


def exact(hits: int, trials: int, classes: int) -> Fraction:
    """The tail in integers."""
    ways = sum(math.comb(trials, count) * (classes - 1) ** (trials - count) for count in range(hits, trials + 1))
    return Fraction(ways, classes**trials)


@pytest.mark.parametrize(
    ("classes", "threshold", "hits"),
    [
        (2, 1e-6, 74),
        (2, 1e-9, 80),
        (2, TINY, 93),
        (10, 1e-6, 28),
        (10, 1e-9, 33),
        (10, TINY, 46),
        (100, 1e-6, 9),
        (100, 1e-9, 12),
        (100, TINY, 20),
    ],
)
def test_minimum_hits_of_a_hundred(classes: int, threshold: float, hits: int) -> None:
    assert needed_hits(100, classes, threshold) == hits
    assert chance_p_value(hits, 100, classes) <= threshold < chance_p_value(hits - 1, 100, classes)


@given(st.integers(1, 400), st.integers(2, 1000), st.data())
def test_the_tail_is_exact_down_to_1e_300(trials: int, classes: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    tail = exact(hits, trials, classes)
    if tail > Fraction(1, 10**300):
        assert chance_p_value(hits, trials, classes) == pytest.approx(float(tail), rel=1e-11)
    else:
        assert chance_p_value(hits, trials, classes) <= 1e-299


@given(st.integers(0, 100), st.integers(1, 10**6), st.integers(1, 10**6))
def test_bonferroni_multiplies_and_stops_at_one(hits: int, suspects: int, keys: int) -> None:
    single = chance_p_value(hits, 100, 10)
    corrected = chance_p_value(hits, 100, 10, suspects=suspects, keys=keys)
    assert corrected == pytest.approx(min(1.0, single * suspects * keys), rel=1e-12)
    assert corrected <= 1


def test_no_hits_prove_nothing() -> None:
    assert chance_p_value(0, 100, 10) == 1
    assert needed_hits(10, 10, TINY) is None
    assert needed_hits(1, 2, 0.5) == 1


@pytest.mark.parametrize(
    ("classes", "threshold", "trials"), [(2, TINY, 64), (10, TINY, 20), (100, TINY, 10), (10, 2e-6, 6), (2, 0.5, 1)]
)
def test_trials_needed_when_every_trigger_hits(classes: int, threshold: float, trials: int) -> None:
    assert needed_trials(classes, threshold) == trials


@given(st.integers(2, 200), st.floats(1e-30, 0.4), st.floats(0.55, 1))
def test_one_trial_fewer_is_not_enough(classes: int, threshold: float, rate: float) -> None:
    trials = needed_trials(classes, threshold, hit_rate=rate)
    assert chance_p_value(math.floor(rate * trials), trials, classes) <= threshold
    for fewer in range(max(1, trials - 5), trials):
        assert chance_p_value(math.floor(rate * fewer), fewer, classes) > threshold


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chance_p_value(5, 4, 10), "5 hits in 4 trials is not a count of hits"),
        (lambda: chance_p_value(-1, 4, 10), "-1 hits in 4 trials"),
        (lambda: chance_p_value(0, 0, 10), "at least 1 trial and 2 classes, got 0 and 10"),
        (lambda: chance_p_value(1, 4, 1), "at least 1 trial and 2 classes, got 4 and 1"),
        (lambda: chance_p_value(1, 4, 10, suspects=0), "at least 1 suspect and 1 key were tried, got 0 and 1"),
        (lambda: chance_p_value(1, 4, 10, keys=-1), "at least 1 suspect and 1 key were tried, got 1 and -1"),
        (lambda: needed_hits(4, 10, math.nan), "a threshold lies between 0 and 1, got nan"),
        (lambda: needed_hits(4, 10, 0), "a threshold lies between 0 and 1, got 0"),
        (lambda: needed_trials(10, 1.0), "a threshold lies between 0 and 1, got 1.0"),
        (lambda: needed_trials(10, 0.01, hit_rate=0.1), "a hit rate of 0.1 is not above chance"),
        (lambda: needed_trials(10, 0.01, hit_rate=math.nan), "a hit rate of nan is not above chance"),
        (lambda: needed_trials(2, TINY, hit_rate=0.5001), "needs more than 131072 triggers"),
    ],
)
def test_counts_that_make_no_sense(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=message):
        call()
