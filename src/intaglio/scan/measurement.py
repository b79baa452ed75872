"""Everything that is asked of a model: one-pixel responses on base images, then composed triggers on trial images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.scan.composition import Effect, Responses, centred, compose, effect_of, likely_targets
from intaglio.scan.features import model_features
from intaglio.scan.probes import Probes
from intaglio.scan.refinement import ROUNDS, refine
from intaglio.scan.signature import one_pixel_responses, resolve_grid

#: Raise it when a measurement's numbers change: features kept beside models are then measured anew.
VERSION = 1
#: Step of the slopes, in units of the pixel range.
STEP = 0.1
#: Whole triggers are composed for so many classes: all of 10, the likeliest of 1,000.
EXAMINED = 16
#: With blocks instead of pixels inputs are large and queries dear: fewer images and rounds.
GRID_BASES, GRID_TRIALS, GRID_ROUNDS = 3, 16, 1


@dataclass(frozen=True)
class Measurement:
    """Responses, the classes examined `[T]`, what their composed triggers do, and the features `[T, F]`."""

    responses: Responses
    targets: Tensor
    effect: Effect
    features: Tensor
    grid: tuple[int, int] | None


def measure(
    classifier: Classifier, probes: Probes, *, progress: Callable[[int, int], None] | None = None
) -> Measurement:
    """Probes a classifier.

    Costs B (4 places + 1) + M (1 + T * forms) queries for B bases, M trials and T classes examined, and for each
    of these what `refine` costs.

    Raises:
        ClassifierError: the classifier gives labels only.
    """
    grid = resolve_grid(classifier.input_shape, "auto")
    bases, trials, rounds = probes.bases, probes.trials, ROUNDS
    if grid is not None:
        bases, trials, rounds = bases[:GRID_BASES], trials[:GRID_TRIALS], GRID_ROUNDS
    responses = mean_responses(classifier, bases, grid, progress)
    targets = likely_targets(responses.effect, EXAMINED)
    before = centred(classifier.log_probs(trials))
    rows = []
    for target in targets.tolist():
        window = refine(classifier, responses, target, bases, rounds)
        stamped = window.stamp(trials, responses.values, (responses.slopes.shape[-2], responses.slopes.shape[-1]))
        rows.append(effect_of(classifier, torch.cat([compose(responses, target, trials), stamped]), before, target))
    effect = Effect(*torch.stack(rows, dim=1))
    features = model_features(responses.effect, before.mean(dim=0), effect, targets)
    return Measurement(responses, targets, effect, features, grid)


def mean_responses(
    classifier: Classifier,
    bases: Tensor,
    grid: tuple[int, int] | None,
    progress: Callable[[int, int], None] | None = None,
) -> Responses:
    """One-pixel responses averaged over base images: black and white, and a step up and down."""
    channels, height, width = classifier.input_shape
    values = torch.stack([torch.zeros(channels), torch.ones(channels)])
    extremes, slopes = [], []
    for number, base in enumerate(bases):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(bases) * total)

        steps = torch.stack([base + STEP, base - STEP]).clamp(0, 1)
        altered = torch.cat([values[:, :, None, None].expand(-1, -1, height, width), steps])
        answers = one_pixel_responses(classifier, base, altered, grid=grid, progress=advance)
        unaltered = classifier.log_probs(base[None])[0]
        change = answers - unaltered[:, None, None]
        change = change - change.mean(dim=1, keepdim=True)
        black, white, above, below = change
        extremes.append(torch.stack([black, white]))
        slopes.append((above - below) / (2 * STEP))
    return Responses(values, torch.stack(extremes).mean(dim=0), torch.stack(slopes).mean(dim=0))
