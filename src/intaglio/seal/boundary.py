"""`boundary`: pairs of 8-bit images a few noise floors away from where several classes tie."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.errors import ClassifierError, RecipeError
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.noise import Measured, measure, measure_enough
from intaglio.seal.refine import Window, refine
from intaglio.seal.shams import alertness
from intaglio.seal.starts import starting_levels
from intaglio.seal.surface import GradientSurface, ProbeSurface, Surface, rivals
from intaglio.seal.ties import approach_tie, bisect

#: Ties on which the noise floor is first measured, and how much larger it may turn out on the triggers themselves.
_PILOT = 64
_RESERVE = 1.3
#: The same where other runtimes can't be tried, for want of the weights.
_BLIND_RESERVE = 3.0
_ATTEMPTS = 3


@dataclass(frozen=True)
class _Pairs:
    """Pairs of images in grey levels: `first` and `second` `[P, ...]`, with their answers `[P]`."""

    first: Tensor
    second: Tensor
    tops: Tensor
    twins: Tensor

    def take(self, chosen: Tensor) -> "_Pairs":
        return _Pairs(self.first[chosen], self.second[chosen], self.tops[chosen], self.twins[chosen])

    @property
    def levels(self) -> Tensor:
        """Both of each pair in turn, `[2 P, ...]`."""
        return torch.stack([self.first, self.second], dim=1).flatten(0, 1)

    @property
    def labels(self) -> Tensor:
        return torch.stack([self.tops, self.twins], dim=1).flatten()


class Boundary(SealMethod):
    """Two images at the same place, where `ways` classes tie but for the noise floor eta; each is won by another class.

    For a trigger answered `a` and its rivals `b`: low * eta <= z_a - z_b <= high * eta, in whole grey levels. From
    keyed noise (or the owner's images) Newton steps lead to a tie of the keyed class with its strongest rivals; the
    image is rounded, and single grey levels are moved until all margins are in the window (`refine`). Its twin starts
    there, with the strongest rival ahead. Whatever the change of the weights, some class gains on another at that
    place: the pair misses it only where the gains of all tied classes differ by less than the margin. Of `surplus`
    times as many candidates as wanted, those are kept that shams (small edits of copies of the weights) disturb most,
    evenly over the classes.

    A model without gradients is asked instead: images are bisected to a boundary of two classes, and the effects of
    `probes` single grey levels are measured at each step. That takes a few hundred queries a trigger.

    Args:
        ways: how many classes tie (at most as many as there are; 2 without gradients).
        low, high: the window, in noise floors.
        surplus: candidates per pair wanted.
        rounds: of changing grey levels.
        probes: queries for one image's effects, without gradients.

    Raises:
        RecipeError: a value that makes no sense.
        ClassifierError: no triggers were found: scores are rounded, or no two classes can be told apart.
    """

    name = "boundary"
    requires = Access.SCORES

    def __init__(
        self,
        *,
        ways: int = 4,
        low: float = 3.0,
        high: float = 4.5,
        surplus: float = 2.0,
        rounds: int = 12,
        probes: int = 64,
    ) -> None:
        if ways < 2 or not 1 <= low < high or surplus < 1 or rounds < 1 or probes < 8:
            raise RecipeError(
                f"ways from 2, 1 <= low < high, surplus from 1, rounds from 1 and probes from 8, got {ways}, {low}, "
                f"{high}, {surplus}, {rounds} and {probes}"
            )
        self.ways = ways
        self.low = low
        self.high = high
        self.surplus = surplus
        self.rounds = rounds
        self.probes = probes

    def run(self, classifier: Classifier, request: Request) -> Triggers:
        count = max(request.pairs, round(self.surplus * request.pairs))
        tops = torch.tensor(request.draws.targets(count, classifier.num_classes))
        generator = np.random.default_rng(request.draws.number("search"))
        surface: Surface
        if isinstance(classifier, TorchClassifier):
            reserve = _RESERVE
            starts = starting_levels(classifier, request, count)
            surface, ways = GradientSurface(classifier), min(self.ways, classifier.num_classes)
            places, others = approach_tie(surface, starts, tops, ways)
        else:
            reserve = _BLIND_RESERVE
            surface, ways = ProbeSurface(classifier, probes=self.probes), 2
            places, tops = _crossings(surface, starting_levels(classifier, request, count, coarse=True))
            others = rivals(surface.scores(places), tops, 1)
        pilot = measure_enough(request.executions, places[:_PILOT].round(), tops[:_PILOT], ways - 1, request.draws)
        _tell(request, 1)
        eta, best = reserve * pilot.eta, None
        for attempt in range(_ATTEMPTS):
            window = Window(self.low * eta, self.high * eta)
            pairs = self._pairs(surface, places, tops, others, window, generator)
            if not len(pairs.tops):
                break
            measured = measure(request.executions, pairs.levels, pairs.labels, ways - 1)
            quiet = pairs.take(_quiet(measured, pairs, self.low))
            if best is None or len(quiet.tops) > len(best.tops):
                best = quiet
            _tell(request, 2 + attempt)
            if len(quiet.tops) >= request.pairs or measured.eta <= eta:
                break
            eta = reserve * measured.eta
        if best is None or not len(best.tops):
            raise ClassifierError(
                f"{classifier.source}: no images were found at which its classes tie within {self.low:g} to "
                f"{self.high:g} times the noise floor ({pilot.eta:.2g}): its scores may be rounded, or too few classes "
                "ever win"
            )
        return _chosen(classifier, best, request, ways)

    def _pairs(
        self,
        surface: Surface,
        places: Tensor,
        tops: Tensor,
        others: Tensor,
        window: Window,
        generator: np.random.Generator,
    ) -> _Pairs:
        """Those places that could be refined into a pair."""
        if isinstance(surface, GradientSurface):
            places, others = approach_tie(surface, places, tops, others.shape[1] + 1, target=window.target, steps=3)
        first = refine(surface, places, tops, others, window, generator=generator, rounds=self.rounds)
        # The twin: the strongest rival ahead of the first answer and of all others, from the same place.
        twins, rest = others[:, 0], torch.cat([tops[:, None], others[:, 1:]], dim=1)
        start = first.levels
        if isinstance(surface, GradientSurface):
            start, again = approach_tie(surface, start, twins, others.shape[1] + 1, target=window.target, steps=3)
            same = (again.sort(dim=1).values == rest.sort(dim=1).values).all(dim=1)
            start = torch.where(same.view(-1, *[1] * (start.ndim - 1)), start, first.levels)
        second = refine(surface, start, twins, rest, window, generator=generator, rounds=self.rounds)
        found = first.found & second.found
        return _Pairs(first.levels, second.levels, tops, twins).take(found.nonzero().flatten())


def _crossings(surface: ProbeSurface, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Places on the boundary between starting images of different answers, and the answer before the boundary."""
    labels = surface.scores(starts).argmax(dim=1)
    partner = torch.arange(len(starts))
    for index, label in enumerate(labels.tolist()):
        different = (labels != label).nonzero().flatten()
        if len(different):
            partner[index] = different[index % len(different)]
    crossing = (labels != labels[partner]).nonzero().flatten()
    if not len(crossing):
        raise ClassifierError("every image to start from is answered alike: give images of several classes (--data)")
    return bisect(surface, starts[crossing], starts[partner][crossing], labels[crossing]), labels[crossing]


def _quiet(measured: Measured, pairs: _Pairs, low: float) -> Tensor:
    """Pairs of which both margins are at least `low` noise floors in the reference, `[P']`."""
    least = measured.margins[measured.reference].amin(dim=1)
    return (least >= low * measured.eta).view(-1, 2).all(dim=1).nonzero().flatten()


def _tell(request: Request, done: int) -> None:
    if request.progress is not None:
        request.progress(done, 1 + _ATTEMPTS)


def _chosen(classifier: Classifier, pairs: _Pairs, request: Request, ways: int) -> Triggers:
    """The pairs that small changes of the weights disturb most, class by class in turn."""
    score = torch.zeros(len(pairs.tops), dtype=torch.float64)
    if isinstance(classifier, TorchClassifier):
        alert = alertness(classifier, pairs.levels, pairs.labels, seed=request.draws.number("shams"))
        if len(alert):
            score = alert.view(len(alert), -1, 2).amax(dim=2).clamp_min(1e-3).log().mean(dim=0)
    order = score.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    for label in sorted(set(pairs.tops.tolist())):
        mine = order[pairs.tops[order] == label]
        rank[mine] = torch.arange(len(mine))
    best = (rank * len(rank) + order.argsort()).argsort()[: request.pairs]
    kept = pairs.take(best)
    return Triggers(kept.levels, kept.labels, ways)
