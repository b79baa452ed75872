"""The noise floor: how far the margins of the same weights differ from one way of computing to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import beta, binom
from torch import Tensor

from intaglio.results import Result
from intaglio.seal.draws import Draws
from intaglio.seal.executions import Execution
from intaglio.seal.surface import LEVELS, margins, rivals

CONFIDENCE = 0.95
#: A floor for models whose executions hardly differ here: scores of size z are hardly computed better than z 2^-21.
_LEAST_RELATIVE = 2.0**-21
#: Deviations seen in each execution: fewer would leave open how rarely noise exceeds the largest of them.
_LEAST_DEVIATIONS = 256
_SHAKE = 2
_REFERENCES = ("float64", "as opened")


class NoiseFloor(Result):
    """What was measured when sealing, on the triggers themselves and, where they are few, on images near them.

    `eta` is the largest of all `deviations` of margins from the reference (float64 where there is one), in any
    execution; `answers` is how many were counted on all triggers that were found, `changed` how many of them differed,
    before those pairs were dropped which some execution answers otherwise. `flip_bound` bounds the probability that a
    question put to the untouched model is answered otherwise than sealed; `silence_bound` is the same for a trigger as
    it was found, with no assumption, from the answers alone (Clopper-Pearson, 95 %; executions are taken for
    independent).
    """

    executions: tuple[str, ...]
    reference: str
    answers: int
    changed: int
    deviations: int
    eta: float
    rms: float
    smallest_margin: float
    largest_margin: float
    silence_bound: float
    flip_bound: float


@dataclass(frozen=True)
class Measured:
    """Margins float64 `[E, N, J]` of N images over their J rivals in E executions, and the answers int64 `[E, N]`."""

    names: tuple[str, ...]
    margins: Tensor
    labels: Tensor
    magnitude: float

    def take(self, places: Tensor) -> "Measured":
        """The images at `places` alone; `magnitude` stays."""
        return replace(self, margins=self.margins[:, places], labels=self.labels[:, places])

    @property
    def reference(self) -> int:
        """The execution that the others are compared with."""
        return next(self.names.index(name) for name in _REFERENCES if name in self.names)

    @property
    def deviations(self) -> Tensor:
        """Absolute differences from the reference, `[E, N, J]`."""
        return (self.margins - self.margins[self.reference]).abs()

    @property
    def eta(self) -> float:
        """The largest deviation, never below the precision of the scores themselves."""
        return max(float(self.deviations.max()), self.magnitude * _LEAST_RELATIVE)


def measure(executions: Sequence[Execution], levels: Tensor, tops: Tensor, count: int) -> Measured:
    """Asks every execution about images in grey levels; margins are those of `tops` `[N]` over the `count` next."""
    answers = [execution.scores(levels) for execution in executions]
    names = tuple(execution.name for execution in executions)
    others = rivals(answers[0], tops, count)
    return Measured(
        names=names,
        margins=torch.stack([margins(scores, tops, others) for scores in answers]),
        labels=torch.stack([scores.argmax(dim=1) for scores in answers]),
        magnitude=float(answers[0].gather(1, tops[:, None]).abs().max()),
    )


def measure_enough(executions: Sequence[Execution], levels: Tensor, tops: Tensor, count: int, draws: Draws) -> Measured:
    """`measure`, with copies of the images besides, so that each execution shows at least 256 deviations.

    Copies have every pixel up to 2 grey levels off: as near to the boundary, and rounded otherwise. They come last.
    """
    repeats = max(1, -(-_LEAST_DEVIATIONS // (count * len(tops))))
    changes = [
        torch.randint(-_SHAKE, _SHAKE + 1, levels.shape, generator=draws.generator("shake", index))
        for index in range(1, repeats)
    ]
    copies = [(levels + change).clamp(0, LEVELS) for change in changes]
    return measure(executions, torch.cat([levels, *copies]), tops.repeat(repeats), count)


def noise_floor(triggers: Measured, found: Measured, tops: Tensor, everything: Measured) -> NoiseFloor:
    """The summary of what was measured on the final triggers, on those found, whose labels are `tops`, and on all."""
    least = triggers.margins[triggers.reference].amin(dim=1)
    changed = int((found.labels != tops).sum())
    answers = found.labels.numel()
    return NoiseFloor(
        executions=everything.names,
        reference=everything.names[everything.reference],
        answers=answers,
        changed=changed,
        deviations=everything.deviations.numel(),
        eta=everything.eta,
        rms=float(everything.deviations.square().mean().sqrt()),
        smallest_margin=float(least.min()),
        largest_margin=float(least.max()),
        silence_bound=_upper_bound(changed, answers),
        flip_bound=flip_bound(everything.deviations, float(least.min())),
    )


def flip_bound(deviations: Tensor, margin: float) -> float:
    """A bound on P(deviation >= margin), for deviations `[E, N, J]` whose tails fall at least exponentially.

    If a survival function S is log-concave with S(0) = 1, then S(m) <= S(t)^(m / t) for m >= t (as for Gaussian or
    Laplace rounding noise). With t the largest of n deviations of one execution, S(t) is at most its 95 % Clopper-
    Pearson bound after one exceedance; the largest bound over all executions is taken.
    """
    bounds = [0.0]
    for one in deviations.flatten(1):
        largest = float(one.max())
        if largest > 0:
            bounds.append(_upper_bound(1, len(one)) ** max(1.0, margin / largest) if margin > largest else 1.0)
    return max(bounds)


def sequence_p_value(mismatches: int, planned: int, bound: float) -> float:
    """P(Binomial(planned, bound) >= mismatches): at most this likely are so many mismatches, wherever one stops.

    The count of mismatches never falls, so the bound for all `planned` questions holds at every moment before.
    """
    return float(binom.sf(mismatches - 1, planned, bound)) if mismatches else 1.0


def _upper_bound(events: int, trials: int) -> float:
    """The one-sided Clopper-Pearson bound."""
    return float(beta.ppf(CONFIDENCE, events + 1, trials - events)) if events < trials else 1.0
