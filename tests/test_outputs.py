"""What scores are is told from the scores, rounded ones as well; and what only looks like probabilities isn't taken."""

import pytest
import torch
from torch import Tensor

from intaglio.classifiers.outputs import recognise


def drawn(classes: int, seed: int) -> Tensor:
    """Logits `[4, K]`, some rows surer than others."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(4, classes, generator=generator)


def rounded(values: Tensor, decimals: int) -> Tensor:
    steps = (values.double() * 10.0**decimals).round()
    return (steps / 10.0**decimals).float()


@pytest.mark.parametrize(
    ("classes", "decimals"),
    [(2, 2), (2, 4), (10, 2), (10, 3), (10, 4), (99, 2), (100, 3), (100, 6), (999, 3), (1000, 4)],
)
def test_rounded_probabilities_are_probabilities(classes: int, decimals: int) -> None:
    kinds = [recognise(rounded(drawn(classes, seed).softmax(1), decimals)) for seed in range(50)]
    assert kinds == ["probabilities"] * 50


@pytest.mark.parametrize(("classes", "decimals"), [(100, 2), (1000, 3)])
def test_too_coarse_a_rounding_is_no_sign_of_anything(classes: int, decimals: int) -> None:
    near = torch.full((4, classes), 1 / classes)
    near[:, 0] += 0.02  # adds up to 1.02: within what so coarse a rounding can do, and no distribution
    assert recognise(rounded(near, decimals)) == "logits"


def test_values_that_were_not_rounded_must_add_up_to_1() -> None:
    p = drawn(10, 0).softmax(1)
    assert recognise(p) == "probabilities"
    assert recognise(p * 1.0009) == "probabilities"
    assert recognise(p * 1.002) == "logits"
    assert recognise(p.log()) == "log-probabilities"
    assert recognise(p.log() + 0.002) == "logits"


def test_every_row_must_add_up_to_1_within_what_rounding_can_do() -> None:
    good = torch.tensor([[0.5, 0.25, 0.24], [0.34, 0.33, 0.34]])  # off by 0.01: three roundings by up to 0.005 each
    assert recognise(good) == "probabilities"
    assert recognise(torch.cat([good, torch.tensor([[0.5, 0.25, 0.23]])])) == "logits"
    assert recognise(torch.cat([good, torch.tensor([[0.501, 0.25, 0.24]])])) == "logits"  # a third decimal: 0.0015


def test_a_value_above_1_is_no_probability() -> None:
    assert recognise(torch.tensor([[1.01, 0.0, 0.0]])) == "logits"
    assert recognise(torch.tensor([[1.0, 0.0, 0.0]])) == "probabilities"


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("decimals", [2, 3, 4])
def test_rounded_logits_that_happen_to_lie_between_0_and_1_stay_logits(classes: int, decimals: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        assert recognise(rounded(torch.rand(4, classes, generator=generator), decimals)) == "logits"


def test_rounded_log_probabilities_mean_the_same_as_logits() -> None:
    values = rounded(drawn(10, 0).log_softmax(1), 2)
    torch.testing.assert_close(values.log_softmax(1), values, atol=0.006, rtol=0)
