"""Features: without unit, order or size, and finite whatever the model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.classifiers import CallableClassifier
from intaglio.scan.composition import FORMS
from intaglio.scan.features import (
    EFFECT_FEATURES,
    FEATURES,
    MAP_FEATURES,
    _largest_of_others,
    _median_of_others,
    map_features,
    peak_places,
    smoothed,
)
from intaglio.scan.measurement import EXAMINED, Measurement, measure
from intaglio.scan.probes import synthetic_probes
from scan_models import noise, random_model


def measured(classifier: CallableClassifier) -> Measurement:
    return measure(classifier, synthetic_probes(classifier.input_shape))


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=12))
@settings(deadline=None)
def test_median_of_others_is_the_lower_median_without_the_entry(values: list[int]) -> None:
    expected = []
    for index in range(len(values)):
        others = sorted(values[:index] + values[index + 1 :])
        expected.append(others[(len(others) - 1) // 2])
    assert _median_of_others(torch.tensor(values)).tolist() == expected
    columns = torch.tensor([values, values[::-1]]).T
    assert _median_of_others(columns)[:, 1].tolist() == expected[::-1]


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_the_largest_of_others_is_that_of_every_pair(classes: int) -> None:
    maps = torch.randint(0, 5, (classes, 3, 4), generator=torch.Generator().manual_seed(classes)).float()  # with ties
    rows, columns = peak_places(maps)
    pairs = maps[:, rows, columns].masked_fill(torch.eye(classes, dtype=torch.bool), -torch.inf)
    assert _largest_of_others(maps, rows, columns).tolist() == pairs.amax(0).tolist()


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_multiplying_all_logits_changes_nothing(outputs: str) -> None:
    small, large = (measured(random_model((1, 6, 6), 4, scale=scale, outputs=outputs)) for scale in (0.5, 2.0))
    assert torch.equal(small.targets, large.targets)
    torch.testing.assert_close(small.features, large.features, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(4 * small.responses.extremes, large.responses.extremes, atol=1e-4, rtol=1e-3)


def test_permuting_classes_permutes_the_rows() -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    plain, permuted = measured(random_model((1, 6, 6), 5)), measured(random_model((1, 6, 6), 5, order=order))
    assert torch.equal(order[permuted.targets], plain.targets)
    torch.testing.assert_close(plain.features, permuted.features, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((1, 6, 6), 2),
        ((3, 6, 6), 10),
        ((1, 5, 9), 3),
        ((1, 4, 4), 1000),
        ((1, 1, 2), 3),
        ((3, 70, 8), 3),
    ],
)
def test_features_are_finite_for_any_model(shape: tuple[int, int, int], classes: int) -> None:
    measurement = measured(random_model(shape, classes))
    assert measurement.features.shape == (min(classes, EXAMINED), len(FEATURES))
    assert bool(torch.isfinite(measurement.features).all())
    assert measurement.grid == ((32, 8) if shape[1] > 64 else None)


@pytest.mark.parametrize("logits", [(0.0, 0.0, 0.0), (9.0, 0.0, -9.0)])
def test_features_are_finite_for_a_constant_model(logits: tuple[float, ...]) -> None:
    answer = torch.tensor(logits)
    constant = CallableClassifier(
        lambda images: answer.expand(len(images), 3), input_shape=(1, 6, 6), num_classes=3, outputs="logits"
    )
    measurement = measured(constant)
    assert bool(torch.isfinite(measurement.features).all())
    assert float(measurement.effect.moves.max()) == 0.0
    contrasts = measurement.features[:, [FEATURES.index("contrast_classes"), FEATURES.index("contrast_places")]]
    torch.testing.assert_close(contrasts, torch.zeros(3, 2), atol=1e-3, rtol=0)


def test_names_fit_the_columns() -> None:
    assert len(FEATURES) == len(set(FEATURES)) == len(EFFECT_FEATURES) * (len(FORMS) + 1) + len(MAP_FEATURES)
    assert map_features(torch.rand(3, 6, 6), torch.zeros(3)).shape == (3, len(MAP_FEATURES))


def spot(row: int, column: int, height: float = 1.0) -> Tensor:
    map_ = torch.full((12, 12), 0.01)
    map_[row - 1 : row + 2, column - 1 : column + 2] = height
    return map_


def column(features: Tensor, name: str) -> list[float]:
    values: list[float] = features[:, MAP_FEATURES.index(name)].tolist()
    return values


def test_a_class_that_stands_out_is_seen() -> None:
    maps = torch.stack([spot(3, 3), spot(8, 8, 5.0), spot(3, 8), spot(8, 3)])
    features = map_features(maps, torch.tensor([0.0, 0, 0, 4]))
    for name in ("contrast_classes", "mass", "lead"):
        assert column(features, name).index(max(column(features, name))) == 1
    assert column(features, "contrast_classes")[1] == pytest.approx(torch.tensor(5.05 / 1.05).log().item(), abs=1e-3)
    assert column(features, "prior")[3] == max(column(features, "prior"))
    assert column(features, "place_coincidence")[0] == pytest.approx(1 / 4)


def test_one_place_that_moves_all_classes_is_seen() -> None:
    together = map_features(torch.stack([spot(5, 5), spot(5, 6), spot(6, 5)]), torch.zeros(3))
    apart = map_features(torch.stack([spot(2, 2), spot(9, 9), spot(2, 9)]), torch.zeros(3))
    assert column(together, "place_coincidence") == [1, 1, 1]
    assert column(together, "place_height")[0] > column(apart, "place_height")[0]


def test_smoothing_at_the_border_averages_what_is_inside() -> None:
    maps = noise(1, (4, 5))
    assert smoothed(maps)[0, 0, 0].item() == pytest.approx(maps[0, :2, :2].mean().item(), abs=1e-6)
    assert smoothed(maps)[0, 2, 2].item() == pytest.approx(maps[0, 1:4, 1:4].mean().item(), abs=1e-6)
    rows, columns = peak_places(maps)
    assert maps[0, rows[0], columns[0]] == maps.max()
