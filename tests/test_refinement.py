"""Refined windows: never worse than where they start, within their cost, and finding what one pixel can't show."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from intaglio.classifiers import CallableClassifier, Classifier
from intaglio.scan.composition import FORMS, REFINED, Responses, centred, compose, effect_of, lead
from intaglio.scan.measurement import mean_responses, measure
from intaglio.scan.probes import synthetic_probes
from intaglio.scan.refinement import SIDE, UNTOUCHED, Window, _first_window, _single_changes, refine
from scan_models import counted, noise, random_model

VALUES = torch.tensor([[0.0], [1.0]])


def objective(classifier: Classifier, window: Window, responses: Responses, target: int, bases: Tensor) -> float:
    cells = (responses.slopes.shape[-2], responses.slopes.shape[-1])
    stamped = window.stamp(bases, responses.values, cells)[0]
    return float(lead(centred(classifier.log_probs(stamped)), target).mean())


def pair_model() -> CallableClassifier:
    """Class 2 needs pixel (3, 3) white and pixel (3, 4) black at once; one at a time, white helps a little at both."""

    def answer(images: Tensor) -> Tensor:
        white, black = images[:, 0, 3, 3], images[:, 0, 3, 4]
        pair = 40 * (white - black - 0.8).clamp_min(0) + 0.05 * white + 0.03 * black
        return torch.stack([images.mean(dim=(1, 2, 3)), 1 - images.mean(dim=(1, 2, 3)), pair], dim=1)

    return CallableClassifier(answer, input_shape=(1, 9, 9), num_classes=3, outputs="logits")


def test_a_pair_that_only_works_together_is_found() -> None:
    classifier = pair_model()
    images = 0.4 + 0.2 * noise(12, (1, 9, 9))
    bases, trials = images[:4], images[4:]
    responses = mean_responses(classifier, bases, None)
    first = _first_window(responses, 2)
    before = centred(classifier.log_probs(trials))
    composed = effect_of(classifier, compose(responses, 2, trials), before, 2)
    stamps = [form for form in FORMS if not form.startswith("whole")]
    assert float(composed[0, : len(stamps)].max()) == 0.0  # what one pixel at a time tells is not enough
    window = refine(classifier, responses, 2, bases)
    assert (window.row, window.column) == (first.row, first.column)
    white, black = (int(window.states[3 - window.row, column - window.column]) for column in (3, 4))
    assert (white, black) == (1, 0)
    assert objective(classifier, window, responses, 2, bases) > objective(classifier, first, responses, 2, bases)
    refined = effect_of(classifier, window.stamp(trials, VALUES, (9, 9)), before, 2)
    assert refined[0].tolist() == [1.0]


@pytest.mark.parametrize("seed", range(4))
def test_refining_never_lowers_the_objective_and_keeps_its_cost(seed: int) -> None:
    classifier, bases = random_model((1, 8, 7), 4, seed=seed), noise(3, (1, 8, 7), seed)
    responses = mean_responses(classifier, bases, None)
    for target in range(4):
        reached = [objective(classifier, _first_window(responses, target), responses, target, bases)]
        for rounds in (1, 2, 4):
            counted(classifier)
            window = refine(classifier, responses, target, bases, rounds)
            assert classifier.queries <= 3 * (1 + rounds * (2 * SIDE**2 + 6))
            reached.append(objective(classifier, window, responses, target, bases))
        assert all(later >= earlier - 1e-5 for earlier, later in pairwise(reached))
        assert reached[-1] > reached[0]


def test_one_round_takes_all_changes_that_gain_and_no_other() -> None:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    assert 8 < int((weight < 0).sum()) < 32  # so that no round number of changes is the right one by chance
    classifier = CallableClassifier(
        lambda images: torch.stack([0 * images[:, 0, 0, 0], (images[:, 0] * weight).sum((1, 2))], dim=1),
        input_shape=(1, 6, 6),
        num_classes=2,
        outputs="logits",
    )
    misleading = torch.stack([-torch.ones(6, 6), torch.ones(6, 6)])[:, None].expand(2, 2, 6, 6)
    window = refine(classifier, Responses(VALUES, misleading, torch.zeros(2, 6, 6)), 1, noise(3, (1, 6, 6)), rounds=1)
    assert torch.equal(window.states, (weight > 0).long())


def test_without_rounds_the_first_window_stays() -> None:
    classifier, bases = random_model((1, 8, 7), 4), noise(3, (1, 8, 7))
    responses = mean_responses(classifier, bases, None)
    assert torch.equal(refine(classifier, responses, 1, bases, 0).states, _first_window(responses, 1).states)


def test_the_first_window_is_the_best_square_set_where_it_helps() -> None:
    white = torch.zeros(10, 9)
    white[4:10, 3:9] = 1.0
    white[5, 5] = -1.0
    black = -torch.ones(10, 9)
    black[6, 6] = 2.0
    window = _first_window(Responses(VALUES, torch.stack([black, white])[:, None], torch.zeros(1, 10, 9)), 0)
    expected = torch.ones(6, 6, dtype=torch.int64)
    expected[1, 2], expected[2, 3] = UNTOUCHED, 0
    assert (window.row, window.column) == (4, 3)
    assert torch.equal(window.states, expected)


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 8), (3, 4, 9)])
def test_windows_fit_inputs_smaller_than_themselves(shape: tuple[int, int, int]) -> None:
    classifier, bases = random_model(shape, 3), noise(2, shape)
    responses = mean_responses(classifier, bases, None)
    window = refine(classifier, responses, 0, bases)
    side = min(SIDE, *shape[1:])
    assert window.states.shape == (side, side)
    assert window.stamp(bases, responses.values, shape[1:]).shape == (1, 2, *shape)


def test_stamping_sets_places_to_their_values_and_leaves_the_rest() -> None:
    states = torch.tensor([[1, UNTOUCHED], [UNTOUCHED, 0]])
    images = noise(2, (3, 6, 6))
    values = torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]])
    stamped = Window(1, 0, states).stamp(images, values, (3, 3))[0]
    expected = images.clone()
    expected[:, :, 2:4, 0:2] = values[1][:, None, None]
    expected[:, :, 4:6, 2:4] = values[0][:, None, None]
    assert torch.equal(stamped, expected)


def test_single_changes_are_every_other_state_of_every_place() -> None:
    states = torch.tensor([[0, UNTOUCHED], [1, 1]])
    changes = _single_changes(states)
    assert changes.shape == (4, 2, 2, 2)
    assert bool(((changes != states).flatten(2).sum(2) == 1).all())
    assert len({tuple(change.flatten().tolist()) for change in changes.flatten(0, 1)}) == 8
    for place in range(4):
        assert bool((changes[place].flatten(1)[:, place] != states.flatten()[place]).all())


def test_the_refined_window_is_the_last_form_measured() -> None:
    classifier = pair_model()
    measurement = measure(classifier, synthetic_probes(classifier.input_shape))
    assert measurement.effect.flips.shape == (3, len(FORMS) + 1)
    assert REFINED not in FORMS
