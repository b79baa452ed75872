"""Statistics against numbers by hand, published tables, and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from intaglio.errors import DataError
from intaglio.evidence.statistics import auroc, auroc_interval, conformal_p_value, proportion

NAN = float("nan")
SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("score", "clean", "expected"),
    [
        (5.0, [1.0, 2.0, 3.0], 1 / 4),
        (2.0, [1.0, 2.0, 3.0], 3 / 4),  # a tie counts against the alarm
        (0.0, [1.0, 2.0, 3.0], 1.0),
        (9.0, [0.0] * 99, 0.01),
        (9.0, [], 1.0),
        (float("inf"), [1.0, float("inf")], 2 / 3),
    ],
)
def test_conformal_p_values_by_hand(score: float, clean: list[float], expected: float) -> None:
    assert conformal_p_value(score, clean) == pytest.approx(expected, abs=1e-15)


@given(SCORES)
def test_conformal_p_values_are_valid(scores: list[float]) -> None:
    """Of n + 1 exchangeable scores, at most a share alpha has p <= alpha."""
    p_values = [conformal_p_value(score, scores[:i] + scores[i + 1 :]) for i, score in enumerate(scores)]
    for alpha in p_values:
        assert sum(p <= alpha for p in p_values) / len(p_values) <= alpha + 1e-12


# Clopper-Pearson, 95 %: 0 of n has the closed form 1 - 0.025 ** (1 / n); the others are from published tables.
@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [
        (0, 100, 0.0, 0.0362),
        (100, 100, 0.9638, 1.0),
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (5, 10, 0.1871, 0.8129),
        (10, 100, 0.0490, 0.1762),
        (50, 100, 0.3983, 0.6017),
        (0, 1, 0.0, 0.975),
    ],
)
def test_proportions_as_published(events: int, trials: int, low: float, high: float) -> None:
    assert proportion(events, trials) == pytest.approx((events / trials, low, high), abs=5e-5)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportions_are_symmetric_and_ordered(case: tuple[int, int]) -> None:
    events, trials = case
    share, mirrored = proportion(events, trials), proportion(trials - events, trials)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert (share.low, share.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-9)


@pytest.mark.parametrize(("events", "trials"), [(0, 0), (1, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion(events: int, trials: int) -> None:
    with pytest.raises(DataError, match=f"{events} events in {trials} trials"):
        proportion(events, trials)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0, 1.0], [2.0, 3.0], 0.0),
        ([1.0, 3.0], [0.0, 2.0], 0.75),
        ([1.0, 1.0], [1.0, 1.0], 0.5),
        ([1.0], [0.0, 1.0, 2.0], 0.5),
    ],
)
def test_auroc_by_hand(positive: list[float], negative: list[float], expected: float) -> None:
    result = auroc(positive, negative)
    assert result.value == expected
    assert result.low <= expected <= result.high
    assert result.high - result.low > 0.4  # so few scores say little, also where they don't overlap
    assert (result.high == 1.0) == (expected == 1.0)
    assert (result.low == 0.0) == (expected == 0.0)


@settings(max_examples=10, deadline=None)
@given(SCORES, SCORES)
def test_auroc_is_that_of_scikit_learn(positive: list[float], negative: list[float]) -> None:
    labels = [1] * len(positive) + [0] * len(negative)
    assert auroc(positive, negative).value == pytest.approx(roc_auc_score(labels, positive + negative))
    assert auroc(negative, positive).value == pytest.approx(1 - auroc(positive, negative).value)


@pytest.mark.parametrize(("victims", "clean"), [(1, 20), (2, 6), (12, 40)])
@pytest.mark.parametrize("shift", [0.5, 1.2, 2.5])
def test_auroc_intervals_hold_the_truth_as_often_as_they_say(victims: int, clean: int, shift: float) -> None:
    draw, held = np.random.default_rng(0), 0
    truth = float(norm.cdf(shift / np.sqrt(2)))  # the AUROC of two normal populations
    for _ in range(300):
        positive, negative = draw.normal(shift, 1.0, victims), draw.normal(0.0, 1.0, clean)
        result = auroc(positive.tolist(), negative.tolist())
        held += result.low <= truth <= result.high
    assert held >= 0.9 * 300  # 95 %, less what chance alone takes of 300, and what normal scores are off


def test_auroc_intervals_narrow_with_the_number_of_scores() -> None:
    """Hanley and McNeil's standard error of 0.76 for 80 and 80 scores is about 0.04."""
    widths = [part.high - part.low for part in (auroc_interval(0.76, count, count) for count in (5, 20, 80, 320))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] == pytest.approx(4 * 0.0375, rel=0.05)
    assert widths[3] == pytest.approx(widths[2] / 2, rel=0.05)
    mirrored = auroc_interval(0.24, 5, 5)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx(auroc_interval(0.76, 5, 5)[1:])


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], [1.0], "both groups, got 0 and 1"),
        ([1.0], [], "both groups, got 1 and 0"),
        ([NAN, 1.0], [0.0, 1.0], "NaN"),
        ([1.0, 2.0], [0.0, NAN], "NaN"),
    ],
)
def test_what_has_no_auroc(positive: list[float], negative: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        auroc(positive, negative)


@pytest.mark.parametrize(("score", "clean"), [(NAN, [1.0]), (1.0, [0.0, NAN]), (NAN, [])])
def test_nan_is_never_the_rarest_score(score: float, clean: list[float]) -> None:
    with pytest.raises(DataError, match="NaN"):
        conformal_p_value(score, clean)
