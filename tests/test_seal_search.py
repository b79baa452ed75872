"""The search for triggers, piece by piece: score differences, ties, and the grey levels that meet a window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.classifiers import CallableClassifier, TorchClassifier
from intaglio.errors import ClassifierError
from intaglio.seal.lattice import combine
from intaglio.seal.refine import Window, refine
from intaglio.seal.surface import (
    GradientSurface,
    Moves,
    ProbeSurface,
    Surface,
    differences,
    lead,
    margins,
    require_module,
    rivals,
)
from intaglio.seal.ties import approach_tie, bisect
from seal_models import classifier, linear


def levels(count: int, shape: tuple[int, ...] = (1, 8, 8), seed: int = 3) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed)).float()


def moves_of(count: int, dimensions: int, seed: int = 0) -> Moves:
    generator = np.random.default_rng(seed)
    effects = generator.normal(size=(count, dimensions)) * 1e-2
    return Moves(np.concatenate([effects, -effects]), np.tile(np.arange(count), 2), np.repeat([1, -1], count))


# --- scores and margins ----------------------------------------------------------------------------------------------


def test_margins_and_rivals() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 2.0, 8.0, 1.0]], dtype=torch.float64)
    tops = torch.tensor([1, 2])
    assert rivals(scores, tops, 2).tolist() == [[3, 2], [0, 1]]
    assert margins(scores, tops, rivals(scores, tops, 2)).tolist() == [[1.0, 2.0], [-1.0, 6.0]]
    assert lead(scores, tops).tolist() == [1.0, -1.0]


def test_probabilities_have_the_differences_of_their_logits() -> None:
    logits = torch.tensor([[2.0, 1.0, -3.0]])
    found = differences(logits.softmax(dim=1), "probabilities")
    assert margins(found, torch.tensor([0]), torch.tensor([[1, 2]])) == pytest.approx(torch.tensor([[1.0, 5.0]]))
    assert torch.isfinite(differences(torch.tensor([[1.0, 0.0]]), "probabilities")).all()
    assert torch.equal(differences(logits, "logits"), logits.double())


def surfaces() -> list[tuple[str, Surface]]:
    module = linear()
    asked = CallableClassifier(module.scores, input_shape=(1, 8, 8), num_classes=3, outputs="logits")
    return [("gradients", GradientSurface(module)), ("probes", ProbeSurface(asked, probes=40))]


@pytest.mark.parametrize(("name", "surface"), surfaces())
def test_moves_have_the_effects_that_they_promise(name: str, surface: Surface) -> None:
    images = levels(3)
    images[0, 0, 0] = 0.0
    images[1, 0, 0] = 255.0
    tops, others = torch.tensor([0, 1, 2]), torch.tensor([[1, 2], [0, 2], [0, 1]])
    values, moves = surface.moves(images, tops, others, np.random.default_rng(0))
    assert torch.allclose(values, margins(surface.scores(images), tops, others))
    for index, found in enumerate(moves):
        assert len(found.signs) == (
            40 if name == "probes" else 128 - int(((images[index] == 0) | (images[index] == 255)).sum())
        )
        for move in (0, len(found.signs) // 2, -1):
            changed = images[index].flatten().clone()
            changed[int(found.pixels[move])] += float(found.signs[move])
            assert float(changed.min()) >= 0
            assert float(changed.max()) <= 255
            after = surface.scores(changed.view(1, 1, 8, 8))
            gained = margins(after, tops[index : index + 1], others[index : index + 1])[0] - values[index]
            assert gained.numpy() == pytest.approx(found.effects[move], abs=2e-5)


def test_of_many_pixels_a_part_is_considered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientSurface, "most_moves", 20)
    surface = GradientSurface(linear())
    _, moves = surface.moves(levels(1), torch.tensor([0]), torch.tensor([[1]]), np.random.default_rng(0))
    assert 10 <= len(moves[0].signs) <= 20
    assert len(set(moves[0].pixels)) == 10


def test_gradients_go_through_a_softmax_too() -> None:
    plain = linear()
    wrapped = TorchClassifier(
        torch.nn.Sequential(plain.module, torch.nn.Softmax(dim=1)), input_shape=(1, 8, 8), num_classes=3
    )
    assert wrapped.outputs == "probabilities"
    images, tops, others = levels(2), torch.tensor([0, 1]), torch.tensor([[1], [2]])
    expected, found = (GradientSurface(one).jacobian(images, tops, others) for one in (plain, wrapped))
    assert torch.allclose(expected[0], found[0], atol=1e-4)
    assert torch.allclose(expected[1], found[1], atol=1e-5)


def test_rounded_scores_are_too_coarse_to_probe() -> None:
    module = linear()
    coarse = CallableClassifier(
        lambda images: module.scores(images).round(decimals=0), input_shape=(1, 8, 8), num_classes=3, outputs="logits"
    )
    surface = ProbeSurface(coarse, probes=10)
    with pytest.raises(ClassifierError, match="rounded, and too coarse to seal by"):
        surface.moves(torch.full((1, 1, 8, 8), 127.0), torch.tensor([0]), torch.tensor([[1]]), np.random.default_rng(0))


def test_methods_that_need_gradients_say_so() -> None:
    asked = CallableClassifier(lambda images: images, input_shape=(1, 8, 8), num_classes=3)
    with pytest.raises(ClassifierError, match=r"ftg needs gradients, which callable \(callable\) doesn't offer"):
        require_module(asked, "ftg")


# --- which grey levels to change -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "tolerance"), [(1, 1e-7), (2, 3e-5), (3, 5e-4)])
def test_a_few_moves_add_up_to_what_is_needed(dimensions: int, tolerance: float) -> None:
    moves = moves_of(200, dimensions)
    need = np.full(dimensions, 5e-3)
    found = combine(moves, need, tolerance, 5, np.random.default_rng(1))
    assert len(found) == 5
    for chosen in found:
        assert np.linalg.norm(moves.effects[chosen].sum(axis=0) - need) <= tolerance
        assert len(set(moves.pixels[chosen])) == len(chosen)
    assert len({tuple(sorted(chosen)) for chosen in found}) == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(-0.3, 0.3))
def test_sums_come_nearer_and_move_no_pixel_twice(seed: int, dimensions: int, size: float) -> None:
    moves = moves_of(60, dimensions, seed)
    need = np.full(dimensions, size)
    for chosen in combine(moves, need, 1e-6, 4, np.random.default_rng(seed)):
        left = float(np.linalg.norm(moves.effects[chosen].sum(axis=0) - need))
        assert left < max(float(np.linalg.norm(need)), 2e-2)
        assert len(set(moves.pixels[chosen])) == len(chosen)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_moves_give_nothing(count: int) -> None:
    moves = moves_of(max(count, 1), 1)
    few = Moves(moves.effects[:count], moves.pixels[:count], moves.signs[:count])
    assert combine(few, np.array([1e-3]), 1e-6, 4, np.random.default_rng(0)) == []
    same = Moves(np.full((10, 1), 1e-3), np.zeros(10, np.int64), np.ones(10, np.int64))
    assert combine(same, np.array([1e-4]), 1e-6, 4, np.random.default_rng(0)) == []


# --- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ways", "target"), [(2, 0.0), (3, 0.0), (3, 0.5)])
def test_newton_steps_lead_to_a_tie(ways: int, target: float) -> None:
    surface = GradientSurface(linear())
    tops = torch.arange(6) % 3
    places, others = approach_tie(surface, levels(6), tops, ways, target=target)
    found = margins(surface.scores(places), tops, others)
    assert found.shape == (6, ways - 1)
    assert found.numpy() == pytest.approx(np.full((6, ways - 1), target), abs=1e-4)
    assert float(places.min()) >= 0
    assert float(places.max()) <= 255


def test_bisection_meets_the_boundary() -> None:
    surface = GradientSurface(linear())
    images = levels(20)
    labels = surface.scores(images).argmax(dim=1)
    first = int((labels == 0).nonzero()[0])
    other = (labels != 0).nonzero().flatten()[:3]
    inside = images[first].expand(3, -1, -1, -1)
    points = bisect(surface, inside, images[other], torch.zeros(3, dtype=torch.int64))
    found = lead(surface.scores(points), torch.zeros(3, dtype=torch.int64))
    assert bool((found > 0).all())
    assert float(found.max()) < 1e-2


@pytest.mark.parametrize("ways", [2, 3])
def test_images_are_refined_into_the_window(ways: int) -> None:
    surface = GradientSurface(classifier())
    tops = torch.arange(6) % 3
    places, others = approach_tie(surface, levels(6, (1, 12, 12)), tops, ways)
    window = Window(1e-5, 2e-5)
    assert (window.target, window.tolerance) == pytest.approx((1.5e-5, 1e-5 / 6))
    found = refine(surface, places, tops, others, window, generator=np.random.default_rng(0))
    assert int(found.found.sum()) >= 4
    wanted = found.levels[found.found]
    assert torch.equal(wanted, wanted.round())
    assert 0 <= float(wanted.min()) <= float(wanted.max()) <= 255
    again = margins(surface.scores(wanted), tops[found.found], others[found.found])
    rounding = 5e-7  # of float32 scores near 1, asked in batches of another size
    assert torch.allclose(again, found.margins[found.found], rtol=0, atol=rounding)
    kept = found.margins[found.found]
    assert bool(((kept >= window.low) & (kept <= window.high)).all())
    assert torch.equal(surface.scores(wanted).argmax(dim=1), tops[found.found])


def test_what_cannot_be_refined_is_left() -> None:
    surface = GradientSurface(classifier())
    images, tops = levels(2, (1, 12, 12)), torch.tensor([0, 1])
    others = rivals(surface.scores(images), tops, 1)
    found = refine(surface, images, tops, others, Window(1e-9, 2e-9), generator=np.random.default_rng(0), rounds=2)
    assert not found.found.any()
