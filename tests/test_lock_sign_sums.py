"""Chances of sums of random signs, against counting all of them, and what tracing makes of them."""

import itertools

import pytest
import torch
from scipy.stats import binom

from intaglio.errors import DataError
from intaglio.lock.sign_sums import tail
from intaglio.lock.tracing import trace_codes


@pytest.mark.parametrize("weights", [[3.0], [1, 2, -3, 0, 5], [7, 7, 7, 1], [0, 0]])
def test_all_signs_counted(weights: list[float]) -> None:
    numbers = torch.tensor(weights)
    sums = [
        sum(a * k for a, k in zip(weights, signs, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(weights))
    ]
    for reached in (-30, -3, -0.5, 0, 1, 1.5, 2, 6, 11, 22, 23):
        assert tail(numbers, reached) == sum(value >= reached for value in sums) / len(sums)


@pytest.mark.parametrize("count", [96, 1024])
def test_equal_weights_are_a_binomial_to_the_last_of_them(count: int) -> None:
    weights = 3 * torch.ones(count)
    for agreeing in (count // 2, count * 3 // 4, count):
        exact = float(binom.sf(agreeing - 1, count, 0.5))
        assert tail(weights, 3 * (2 * agreeing - count)) == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_only_whole_numbers_are_counted() -> None:
    with pytest.raises(DataError, match="whole numbers only"):
        tail(torch.tensor([1.0, 1.5]), 2)


def test_chance_names_as_often_as_it_says_and_hardly_less() -> None:
    """10,000 images of nobody's, half a dozen bits felt much more than others, at an accepted chance of 5 %."""
    drawn = torch.Generator().manual_seed(0)
    felt = torch.randn(10_000, 96, generator=drawn) * torch.linspace(0.2, 6, 96) ** 2
    codes = torch.randint(0, 2, (1, 96), generator=drawn) * 2.0 - 1
    named = len([match for match in trace_codes(felt, codes, ("alice",), 0.05).images if match.user])
    assert binom.ppf(0.001, 10_000, 0.045) <= named <= binom.ppf(0.999, 10_000, 0.05)
