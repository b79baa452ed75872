"""Everything that is asked of a model: one-pixel responses on base images, then composed triggers on trial images.

A clip is probed like an image, a pixel being the same in all frames; each frame is then probed by itself, more coarsely
and with fewer questions, to tell in which of them a place matters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.scan.composition import Effect, Responses, centred, compose, effect_of, likely_targets
from intaglio.scan.confidence import confidence
from intaglio.scan.features import model_features
from intaglio.scan.places import frames_of, resolve_grid
from intaglio.scan.probes import Probes
from intaglio.scan.refinement import ROUNDS, refine
from intaglio.scan.signature import one_pixel_responses

#: Raise it when a measurement's numbers change: features kept beside models are then measured anew.
VERSION = 3
#: Step of the slopes, in units of the pixel range.
STEP = 0.1
#: Whole triggers are composed for so many classes: all of 10, the likeliest of 1,000.
EXAMINED = 16
#: With blocks instead of pixels inputs are large and queries dear: fewer images and rounds.
GRID_BASES, GRID_TRIALS, GRID_ROUNDS = 3, 16, 1
#: Frames are probed one by one on so many bases.
FRAME_BASES = 2


@dataclass(frozen=True)
class Measurement:
    """Responses, the classes examined `[T]`, what their composed triggers do, and the features `[T, F]`.

    `bases`: how many the responses are averaged over. `confidence`: how sure the model is of the trial images. `frames`
    `[K, T, h, w]`: of clips, what `responses.effect` is for each frame alone. `alike`: every image had the same answer.
    """

    responses: Responses
    targets: Tensor
    effect: Effect
    features: Tensor
    grid: tuple[int, int] | None
    bases: int
    confidence: float
    frames: Tensor | None = None
    alike: bool = False


def measure(
    classifier: Classifier, probes: Probes, *, progress: Callable[[int, int], None] | None = None
) -> Measurement:
    """Probes a classifier.

    Costs B (4 places + 1) + M (1 + T * forms) queries for B bases, M trials and T classes examined, and for each
    of these what `refine` costs; of clips also F (2 frames * places + 1) for the F bases of `frame_effect`.

    Raises:
        ClassifierError: the classifier gives labels only.
    """
    grid = resolve_grid(classifier.input_shape, "auto")
    bases, trials, rounds = probes.bases, probes.trials, ROUNDS
    clips = frames_of(classifier.input_shape) is not None
    if grid is not None or clips:
        bases, trials, rounds = bases[:GRID_BASES], trials[:GRID_TRIALS], GRID_ROUNDS
    responses = mean_responses(classifier, bases, grid, progress)
    targets = likely_targets(responses.effect, EXAMINED)
    answers = classifier.log_probs(trials)
    alike = not responses.extremes.any() and not responses.slopes.any() and bool((answers == answers[0]).all())
    before = centred(answers)
    rows = []
    for target in targets.tolist():
        window = refine(classifier, responses, target, bases, rounds)
        stamped = window.stamp(trials, responses.values, (responses.slopes.shape[-2], responses.slopes.shape[-1]))
        rows.append(effect_of(classifier, torch.cat([compose(responses, target, trials), stamped]), before, target))
    effect = Effect(*torch.stack(rows, dim=1))
    features = model_features(responses.effect, before.mean(dim=0), effect, targets)
    frames = frame_effect(classifier, bases[:FRAME_BASES], progress) if clips else None
    return Measurement(responses, targets, effect, features, grid, len(bases), confidence(answers), frames, alike)


def mean_responses(
    classifier: Classifier,
    bases: Tensor,
    grid: tuple[int, int] | None,
    progress: Callable[[int, int], None] | None = None,
) -> Responses:
    """One-pixel responses averaged over base images: black and white, and a step up and down."""
    values = _extremes(classifier)
    extremes, slopes = [], []
    for number, base in enumerate(bases):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(bases) * total)

        steps = torch.stack([base + STEP, base - STEP]).clamp(0, 1)
        altered = torch.cat([values.view(2, *[1] * (base.ndim - 3), -1, 1, 1).expand_as(steps), steps])
        answers = one_pixel_responses(classifier, base, altered, grid=grid, progress=advance)
        black, white, above, below = _change(classifier, base, answers)
        extremes.append(torch.stack([black, white]))
        slopes.append((above - below) / (2 * STEP))
    return Responses(values, torch.stack(extremes).mean(dim=0), torch.stack(slopes).mean(dim=0))


def frame_effect(classifier: Classifier, bases: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """What a place of one frame alone can do, black or white, averaged over base clips: e `[K, T, h, w]`, 0 or more."""
    values = _extremes(classifier)
    changes = [
        _change(classifier, base, one_pixel_responses(classifier, base, values, frames="each", progress=progress))
        for base in bases
    ]
    return torch.stack(changes).mean(dim=0).amax(dim=0).clamp_min(0)


def _extremes(classifier: Classifier) -> Tensor:
    """Black and white, `[2, C]`."""
    channels = classifier.input_shape[-3]
    return torch.stack([torch.zeros(channels), torch.ones(channels)])


def _change(classifier: Classifier, base: Tensor, answers: Tensor) -> Tensor:
    """Changes of centred log-probabilities, of answers `[V, K, ...]` from that to the base itself."""
    unaltered = classifier.log_probs(base[None])[0]
    change = answers - unaltered.view(-1, *[1] * (answers.ndim - 2))
    return change - change.mean(dim=1, keepdim=True)
