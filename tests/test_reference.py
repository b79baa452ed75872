"""The reference: what is normal for each class of a task, against a naive loop; and what ensembles do with it."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.evidence.statistics import auroc
from intaglio.scan.ensemble import Ensemble, Examples, Member, assign_folds, fit_ensemble, out_of_fold
from intaglio.scan.reference import Reference
from scan_models import toy_ensemble, toy_examples

LEAST_SPREAD, TO_STANDARD, LIMIT = 0.3, 1.25, 8.0


def drawn(count: int, examined: int, classes: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features `[N, T, F]` whose level and spread depend on the class, and their classes `[N, T]`, T <= K drawn."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.rand(count, classes, generator=generator).argsort(dim=1)[:, :examined]
    level = 5 * torch.randn(classes, width, generator=generator)
    scale = 0.1 + torch.rand(classes, width, generator=generator)
    return level[owners] + scale[owners] * torch.randn(count, examined, width, generator=generator), owners


def learned(features: Tensor, classes: Tensor, count: int) -> Reference:
    reference = Reference(count, features.shape[2])
    reference.learn(features, classes)
    return reference


def naive(features: Tensor, classes: Tensor, count: int) -> tuple[list[list[float]], list[list[float]]]:
    """Middle and spread by class and feature, one number at a time."""
    pairs = [
        (owner, row)
        for rows, owners in zip(features.tolist(), classes.tolist(), strict=True)
        for row, owner in zip(rows, owners, strict=True)
    ]
    middles: list[list[float]] = [[] for _ in range(count)]
    spreads: list[list[float]] = [[] for _ in range(count)]
    for column in range(features.shape[2]):
        everyone = [row[column] for _, row in pairs]
        overall = statistics.median_low(everyone)
        deviation = statistics.mean(abs(value - overall) for value in everyone)
        raw = []
        for index in range(count):
            mine = [row[column] for owner, row in pairs if owner == index]
            middle = statistics.median_low(mine) if mine else overall
            middles[index].append(middle)
            raw.append(statistics.mean(abs(value - middle) for value in mine) if len(mine) > 1 else deviation)
        least = LEAST_SPREAD * statistics.median_low(raw)
        for index in range(count):
            spreads[index].append(TO_STANDARD * max(raw[index], least) + 1e-3)
    return middles, spreads


# --- one reference ---------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 9),
    classes=st.integers(2, 6),
    left_out=st.integers(0, 4),
    width=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_a_naive_loop_finds_the_same(count: int, classes: int, left_out: int, width: int, seed: int) -> None:
    features, owners = drawn(count, max(1, classes - left_out), classes, width, seed)
    reference = learned(features, owners, classes)
    middles, spreads = naive(features, owners, classes)
    torch.testing.assert_close(reference.middle, torch.tensor(middles))
    torch.testing.assert_close(reference.spread, torch.tensor(spreads))
    asked, about = drawn(4, classes, classes, width, seed + 1)
    answers = reference(asked, about).tolist()
    for model, row, column in ((m, r, c) for m in range(4) for r in range(classes) for c in range(width)):
        owner = int(about[model, row])
        z = (float(asked[model, row, column]) - middles[owner][column]) / spreads[owner][column]
        assert answers[model][row][column] == pytest.approx(max(-LIMIT, min(LIMIT, z)), abs=1e-3)


def test_a_class_that_was_never_examined_is_compared_with_all() -> None:
    features, owners = drawn(30, 4, 4, 3)
    reference = learned(features, owners, 6)
    flat = features.flatten(0, 1)
    overall = flat.median(dim=0).values
    for absent in (4, 5):
        assert torch.equal(reference.middle[absent], overall)
        torch.testing.assert_close(reference.spread[absent], TO_STANDARD * (flat - overall).abs().mean(0) + 1e-3)
    assert not torch.equal(reference.middle[0], overall)


def test_a_class_that_was_examined_once_has_its_own_middle_and_the_spread_of_all() -> None:
    features, owners = drawn(20, 2, 2, 3)
    owners[0, 0] = 2
    reference = learned(features, owners, 4)
    assert torch.equal(reference.middle[2], features[0, 0])
    assert torch.equal(reference.spread[2], reference.spread[3])


def test_normal_values_become_standard_ones() -> None:
    features, owners = drawn(4000, 5, 5, 2)
    z = learned(features, owners, 5)(features, owners)
    for index in range(5):
        mine = z[owners == index]
        torch.testing.assert_close(mine.mean(0), torch.zeros(2), atol=0.1, rtol=0)
        assert bool((mine.std(0) < 1.1).all())
    assert float(z.std(dim=(0, 1)).min()) > 0.9


def test_no_class_is_normal_to_the_last_digit() -> None:
    features, owners = drawn(40, 3, 3, 2)
    features[owners == 1] = 7.0
    reference = learned(features, owners, 3)
    ordinary = (reference.spread[[0, 2]] - 1e-3).amin(dim=0)
    torch.testing.assert_close(reference.spread[1] - 1e-3, LEAST_SPREAD * ordinary)
    constant = learned(torch.full((5, 3, 2), 7.0), torch.arange(3).expand(5, -1), 3)
    assert float(constant.spread.min()) == pytest.approx(1e-3)
    far = constant(torch.full((1, 3, 2), -1e9), torch.arange(3)[None])
    assert torch.equal(far, torch.full((1, 3, 2), -LIMIT))


def test_rows_are_told_apart_by_class_and_not_by_place() -> None:
    features, owners = drawn(30, 5, 5, 3)
    order = torch.tensor([4, 2, 0, 1, 3])
    reference, permuted = learned(features, owners, 5), learned(features[:, order], owners[:, order], 5)
    assert torch.equal(reference.middle, permuted.middle)
    torch.testing.assert_close(reference.spread, permuted.spread)
    answers = reference(features, owners)
    assert torch.equal(reference(features[:, order], owners[:, order]), answers[:, order])
    assert not torch.equal(reference(features, owners[:, order]), answers)


def test_a_reference_that_learned_nothing_changes_nothing() -> None:
    features, owners = drawn(3, 4, 4, 2)
    features = features.clamp(-LIMIT, LIMIT)
    assert torch.equal(Reference(4, 2)(features, owners), features)


# --- in ensembles ----------------------------------------------------------------------------------------------------


def members(ensemble: Ensemble) -> list[Member]:
    found = [member for member in ensemble.members if isinstance(member, Member)]
    assert len(found) == len(ensemble.members)
    return found


def test_a_member_knows_the_clean_models_outside_its_fold_and_no_others() -> None:
    ensemble, examples, fold = toy_ensemble(4)
    for index, member in enumerate(members(ensemble)):
        part = examples.take((fold != index) & ~examples.backdoored)
        expected = learned(part.features, part.classes, 4)
        assert member.reference is not None
        assert torch.equal(member.reference.middle, expected.middle)
        assert torch.equal(member.reference.spread, expected.spread)
    first, second = (member.reference for member in members(ensemble))
    assert first is not None
    assert second is not None
    assert not torch.equal(first.middle, second.middle)


def test_networks_are_given_what_the_reference_says() -> None:
    ensemble, examples, _ = toy_ensemble(4)
    member = members(ensemble)[0]
    assert member.reference is not None
    compared = member.reference(examples.features, examples.classes)
    assert torch.equal(member.prepared(examples.features, examples.classes), compared)
    with torch.no_grad():
        alone = torch.stack([network(compared)[0] for network in member.networks]).mean(0)
        torch.testing.assert_close(member(examples.features, examples.classes)[0], alone)
    plain = members(toy_ensemble()[0])[0]
    assert plain.reference is None
    assert plain.prepared(examples.features, examples.classes) is examples.features


def levelled(seed: int) -> Examples:
    """Toy examples of one task, each of whose classes has a level of its own, far above what a backdoor adds."""
    examples = toy_examples(32, 4, seed)
    level = 20 * torch.randn(4, examples.features.shape[2], generator=torch.Generator().manual_seed(7))
    examples.features.add_(level[examples.classes])
    return examples


def test_what_the_classes_differ_in_hides_a_backdoor_unless_each_is_compared_with_its_like() -> None:
    known, unseen = levelled(0), levelled(9)
    fold = assign_folds(known.backdoored, 2, 0)
    areas = {}
    for classes in (4, None):
        ensemble = fit_ensemble(known, fold, seed=0, networks=1, classes=classes)
        with torch.no_grad():
            scores = ensemble(unseen.features, unseen.classes)[0].mean(1)
        areas[classes] = auroc(scores[unseen.backdoored].tolist(), scores[~unseen.backdoored].tolist()).value
        assert bool(torch.isfinite(out_of_fold(ensemble, known, fold)[0]).all())
    assert areas[4] > 0.85
    assert areas[4] > areas[None] + 0.1
