"""Composed triggers on hand-made responses, and what they do to a classifier with a planted backdoor."""

import pytest
import torch
from torch import Tensor

from intaglio.classifiers import CallableClassifier
from intaglio.scan.composition import (
    FORMS,
    SCATTERED,
    WHOLE,
    WINDOWS,
    Responses,
    centred,
    compose,
    effect_of,
    lead,
    likely_targets,
    spread,
)
from intaglio.scan.measurement import mean_responses, measure
from intaglio.scan.probes import synthetic_probes
from scan_models import PLANTED, counted, noise, planted_model, random_model

VALUES = torch.tensor([[0.0], [1.0]])


def responses_of(black: Tensor, white: Tensor, slopes: Tensor | None = None) -> Responses:
    """Responses of one class from its maps `[h, w]`."""
    extremes = torch.stack([black, white])[:, None]
    return Responses(VALUES, extremes, torch.zeros_like(extremes[0]) if slopes is None else slopes[None])


def form(name: str) -> int:
    return FORMS.index(name)


def test_forms_come_in_their_order() -> None:
    triggers = compose(responses_of(torch.zeros(8, 8), torch.rand(8, 8)), 0, noise(3, (1, 8, 8)))
    assert triggers.shape == (len(FORMS), 3, 1, 8, 8)
    assert len(FORMS) == len(SCATTERED) + len(WINDOWS) + len(WHOLE) == 14


@pytest.mark.parametrize("count", SCATTERED)
def test_scattered_sets_the_places_with_the_largest_effect(count: int) -> None:
    ranking = torch.randperm(64, generator=torch.Generator().manual_seed(0)).view(8, 8).float() + 1
    images = torch.full((2, 1, 8, 8), 0.5)
    trigger = compose(responses_of(-ranking, ranking), 0, images)[form(f"scattered {count}")]
    assert torch.equal(trigger[0, 0] == 1, ranking > 64 - count)
    assert torch.equal(trigger == 0.5, (ranking <= 64 - count).expand(2, 1, 8, 8))


def test_every_place_takes_the_value_with_the_larger_effect() -> None:
    black, white = torch.tensor([[3.0, 1.0], [-1.0, 0.5]]), torch.tensor([[1.0, 2.0], [-2.0, -1.0]])
    images = torch.full((1, 1, 2, 2), 0.25)
    triggers = compose(responses_of(black, white), 0, images)
    assert triggers[form("scattered 1"), 0, 0].tolist() == [[0, 0.25], [0.25, 0.25]]
    assert triggers[form("scattered 2"), 0, 0].tolist() == [[0, 1], [0.25, 0.25]]
    # The lower left place only harms, so no count sets it.
    assert triggers[form("scattered 64"), 0, 0].tolist() == [[0, 1], [0.25, 0]]


@pytest.mark.parametrize("side", WINDOWS)
def test_window_sets_the_best_square(side: int) -> None:
    white = torch.full((12, 12), 0.01)
    white[12 - side :, 2 : 2 + side] = 1.0
    white[0, 11] = 1.5  # the best single place, in no good square
    if side > 2:
        white[11, 2] = -5.0  # in the best square, but of no use
    images = torch.full((1, 1, 12, 12), 0.5)
    trigger = compose(responses_of(-white.abs(), white), 0, images)[form(f"window {side}"), 0, 0]
    expected = images[0, 0].clone()
    expected[12 - side :, 2 : 2 + side] = 1
    if side > 2:
        expected[11, 2] = 0.5
    assert torch.equal(trigger, expected)


@pytest.mark.parametrize("step", WHOLE)
def test_whole_steps_along_the_slope_and_stays_within_bounds(step: float) -> None:
    slopes = torch.tensor([[3.0, -0.1], [0.0, -7.0]])
    images = torch.tensor([[0.5, 0.5], [0.5, 0.02]])[None, None]
    trigger = compose(responses_of(torch.zeros(2, 2), torch.zeros(2, 2), slopes), 0, images)[form(f"whole {step}")]
    torch.testing.assert_close(trigger[0, 0], torch.tensor([[0.5 + step, 0.5 - step], [0.5, 0.0]]))


def test_blocks_are_spread_over_their_pixels() -> None:
    blocks = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(blocks, torch.Size((3, 5))).tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]
    grid = compose(responses_of(torch.zeros(2, 2), blocks), 0, torch.zeros(1, 1, 3, 5))
    assert grid[form("scattered 1"), 0, 0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]


def test_likely_targets_add_up_the_sixteen_best_places() -> None:
    effect = torch.zeros(4, 5, 5)
    effect[0].fill_(1.0)  # 25 places, of which 16 count: 16
    effect[1, 0, 0] = 15.0
    effect[2].flatten()[:16] = 2.0  # 32
    assert likely_targets(effect, 4).tolist() == [2, 0, 1, 3]
    assert likely_targets(effect, 2).tolist() == [2, 0]
    assert likely_targets(effect, 16).tolist() == [2, 0, 1, 3]
    assert likely_targets(effect[:, :1, :2], 2).tolist() == [1, 2]


def test_lead_and_centred() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.5], [3.0, 0.0, -1.0]])
    assert lead(scores, 0).tolist() == [-3.0, 3.0]
    assert lead(scores, 1).tolist() == [1.5, -3.0]
    assert lead(scores[None], 2).tolist() == [[-1.5, -4.0]]
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(centred(logits.log_softmax(1)), logits - logits.mean(1, keepdim=True))


# --- on classifiers --------------------------------------------------------------------------------------------------


def rows_model() -> CallableClassifier:
    """Logits [4 top, 4 bottom, 10 corner] of 2 x 2 images: a white upper left corner means class 2."""

    def answer(images: Tensor) -> Tensor:
        top, bottom = images[:, 0, 0, 1], images[:, 0, 1, 1]
        return torch.stack([4 * top, 4 * bottom, 10 * images[:, 0, 0, 0]], dim=1)

    return CallableClassifier(answer, input_shape=(1, 2, 2), num_classes=3, outputs="logits")


def test_effects_are_known_by_hand() -> None:
    classifier = rows_model()
    trials = torch.tensor([[[0, 1], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 0]]]).float()[:, None]
    stamped = trials.clone()
    stamped[:, 0, 0, 0] = 1
    before = centred(classifier.log_probs(trials))
    counted(classifier)
    flips, moves, gain, margin = effect_of(classifier, torch.stack([trials, stamped]), before, 2)
    assert classifier.queries == 6
    assert flips.tolist() == [0, 1]  # of the two trials that are not class 2 already
    torch.testing.assert_close(moves, torch.tensor([0, 2 / 3]))
    logits = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 10]])
    unit = (logits - logits.mean(1, keepdim=True)).std()
    torch.testing.assert_close(gain, torch.stack([0 * unit, (10 - 10 / 3) / unit]))
    torch.testing.assert_close(margin, torch.stack([-4 / unit, 6 / unit]))
    nothing_left = effect_of(classifier, stamped[None], centred(classifier.log_probs(stamped)), 2)
    assert nothing_left[0].tolist() == [1]  # every trial is class 2 already: all are counted


def test_mean_responses_are_changes_from_each_base() -> None:
    classifier, bases = random_model((3, 4, 4), 3), noise(2, (3, 4, 4))
    counted(classifier)
    found = mean_responses(classifier, bases, None)
    assert classifier.queries == 2 * (4 * 16 + 1)
    place, change, slope = (2, 1), [], []
    for base in bases:
        images = base.repeat(5, 1, 1, 1)
        images[1][:, *place], images[2][:, *place] = 0, 1
        images[3][:, *place] = (base[:, *place] + 0.1).clamp(0, 1)
        images[4][:, *place] = (base[:, *place] - 0.1).clamp(0, 1)
        same, black, white, above, below = centred(classifier.log_probs(images))
        change.append(torch.stack([black - same, white - same]))
        slope.append((above - below) / 0.2)
    torch.testing.assert_close(found.extremes[:, :, *place], torch.stack(change).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.slopes[:, *place], torch.stack(slope).mean(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.effect, found.extremes.amax(0).clamp_min(0))


def test_a_planted_patch_flips_everything_to_its_target() -> None:
    classifier = planted_model()
    probes = synthetic_probes(classifier.input_shape)
    measurement = measure(classifier, probes)
    row = measurement.targets.tolist().index(PLANTED)
    assert row == 0  # the likeliest target
    assert float(measurement.effect.flips[row, form("window 2")]) == 1.0
    row_of_others = [other for other in range(4) if other != row]
    assert float(measurement.effect.flips[row_of_others, form("window 2")].max()) < 1.0
    window = compose(measurement.responses, PLANTED, torch.zeros(1, 1, 6, 6))[form("window 2"), 0, 0]
    assert window[3:5, 2:4].tolist() == [[1, 1], [1, 1]]
    assert int(window.sum()) == 4
