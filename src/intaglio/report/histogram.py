"""Where a model's score lies among the clean models': the geometry of a histogram, which a template then draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, WIDTH - 16, 44, HEIGHT - 44
_NARROWEST_BAR = 5.0
_MOST_BARS = 30
_LABEL = 150  # about the length of a mark's label


@dataclass(frozen=True)
class Bar:
    """`count` clean models with a score from `low` to `high`, and the rectangle that shows it."""

    count: int
    low: float
    high: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Mark:
    """A value on an axis, and where it is drawn; a label goes to its right, or to its left where `label_left`."""

    value: float
    at: float
    label_left: bool = False


@dataclass(frozen=True)
class Histogram:
    """A histogram of clean scores in a `WIDTH` x `HEIGHT` picture.

    `threshold` is None when so few clean models can't give any score a p-value as low as alpha.
    """

    bars: tuple[Bar, ...]
    score: Mark
    threshold: Mark | None
    score_ticks: tuple[Mark, ...]
    count_ticks: tuple[Mark, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


def alpha_threshold(clean_scores: Sequence[float], alpha: float) -> float | None:
    """The clean score above which (1 + clean scores as high) / (n + 1) <= alpha; None where no score is high enough.

    A guide to the eye: a detector may rank by fold and by task, and flags by that p-value.
    """
    total = len(clean_scores)
    allowed = sum((1 + above) / (total + 1) <= alpha for above in range(total))
    return sorted(clean_scores, reverse=True)[allowed - 1] if allowed else None


def draw_histogram(clean_scores: Sequence[float], score: float, alpha: float) -> Histogram | None:
    """The histogram of `clean_scores` with marks at `score` and at the threshold; None without clean scores."""
    if not clean_scores:
        return None
    low, high = min(score, *clean_scores), max(score, *clean_scores)
    pad = (high - low) * 0.03 or 0.5
    low, high = low - pad, high + pad

    def across(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    # A score far out squeezes the clean ones together: fewer bars then, so that each can still be seen.
    span = across(max(clean_scores)) - across(min(clean_scores))
    wanted = min(_MOST_BARS, math.ceil(2 * math.sqrt(len(clean_scores))))
    counts, edges = np.histogram(clean_scores, bins=max(1, min(wanted, int(span / _NARROWEST_BAR))))
    tallest = int(counts.max())

    def up(count: float) -> float:
        return _BOTTOM - count / tallest * (_BOTTOM - _TOP)

    bars = []
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        width = max(across(right) - across(left), _NARROWEST_BAR)
        x = (across(left) + across(right) - width) / 2
        bars.append(Bar(count, left, right, x, up(count), width, _BOTTOM - up(count)))
    threshold = alpha_threshold(clean_scores, alpha)
    at = across(score)
    return Histogram(
        bars=tuple(bars),
        score=Mark(score, at, label_left=at + _LABEL > WIDTH),
        threshold=None if threshold is None else _threshold_mark(threshold, across(threshold), at),
        score_ticks=tuple(Mark(value, across(value)) for value in _ticks(low, high, most=8)),
        count_ticks=tuple(Mark(value, up(value)) for value in _ticks(0, tallest, most=4) if value == int(value)),
    )


def _threshold_mark(value: float, at: float, score_at: float) -> Mark:
    """The threshold with its label on the side away from the score's line, if there is room for it."""
    fits_left, fits_right = at >= _LABEL, at + _LABEL <= WIDTH
    return Mark(value, at, label_left=fits_left and (score_at > at or not fits_right))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from `low` to `high`, at most `most` + 1, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
