"""Where to go on with whole maps, how windows are aligned, and what it costs in multiply-adds."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intaglio.scan.locality.geometry import SAME, WHOLE, Footprint, Place, Span
from intaglio.scan.locality.operators import AveragePool, Convolution, Elementwise, Same, SlidingOperator
from intaglio.scan.locality.tracing import Network, Step, resolve, trace
from intaglio.scan.locality.window import Base

#: A step of one batch takes as long as so many multiply-adds even if its tensors are tiny: about 50 microseconds.
_STEP = 3e6
#: Windows are aligned to at most so many pixels: finer classes of places would leave too few in each.
_MAX_ALIGNMENT = 32
_SAMPLED_CELLS = 4
#: A convolution is done on a window if that saves a part of its multiply-adds: windows are also cut out and put back.
_WORTHWHILE = 0.9


class Cost(NamedTuple):
    """Multiply-adds per probe, but those with zeros that kernels skip: by locality, and on whole maps."""

    local: float
    dense: float


@dataclass(frozen=True)
class Plan:
    """From one result on: each result's footprint, the steps done in windows, their costs, and the most floats."""

    places: dict[str, Place]
    local: frozenset[str]
    costs: dict[str, float]
    floats: int

    @property
    def cost(self) -> float:
        """Multiply-adds per probe."""
        return sum(self.costs.values())


@dataclass(frozen=True)
class Cut:
    """Where neighbouring windows come to lie on whole elements of a map.

    Up to the result `name`, of step number `step`, places are done together whose windows are aligned alike; from
    there on, those of one cell of `alignment` pixels a side, whose windows lie at the same place of the map. They can
    then be cut at the map's borders, and strides need no alignment. Cell `(start + offset) // alignment` with number c
    has its windows in `hull`, for c in place of q.
    """

    step: int
    name: str
    offsets: tuple[int, int]
    hull: Footprint

    def cell(self, row: int, column: int) -> Footprint:
        """Where the windows of a cell lie."""
        rows, columns = self.hull.rows, self.hull.columns
        return Footprint(Span(rows.first + row, 0, rows.size), Span(columns.first + column, 0, columns.size))


@dataclass(frozen=True)
class Arrangement:
    """How probes are batched: alignment, the cut if there is one, and the multiply-adds, in all and of one probe."""

    total: float
    alignment: tuple[int, int]
    cut: Cut | None
    cost: float


class Program:
    """A network's steps with the activations of one base image `[1, C, H, W]`, as the network takes it."""

    def __init__(self, network: Network, image: Tensor) -> None:
        self.network = network
        activations: dict[str, Any] = {network.image: image.contiguous(memory_format=torch.channels_last)}
        for step in network.steps:
            known = {**network.constants, **activations}
            activations[step.name] = step.run(*resolve(step.args, known), **resolve(step.kwargs, known))
        self.shapes = {name: tuple(value.shape) for name, value in activations.items() if isinstance(value, Tensor)}
        for step in network.steps:
            if isinstance(step.local, AveragePool) and len(self.shapes[step.inputs[0]]) == 4:
                activations[step.local.weights] = step.local.inverse_divisors(self.shapes[step.inputs[0]])
        self.base = Base(activations)
        self._needed = _needed(network, self.shapes)
        self._plans: dict[tuple[int, Footprint], Plan] = {}

    @property
    def answer(self) -> Tensor:
        """Scores `[1, K]` of the base image."""
        return self.base.activations[self.network.output]

    @cached_property
    def dense_cost(self) -> float:
        """Multiply-adds of convolutions and linear layers for one image."""
        return sum(self._whole_cost(step) for step in self.network.steps)

    def plan(self, window: Footprint, start: int = 0) -> Plan:
        """What becomes of a changed window of the image, or of the result of the step before `start`."""
        if (start, window) not in self._plans:
            self._plans[start, window] = self._planned(window, start)
        return self._plans[start, window]

    def arrangement(self, height: int, width: int, places: int, values: int) -> "Arrangement":
        """The cheapest way to batch probes of `height` x `width` pixels.

        A coarse alignment lets windows go through more strides, but splits the places into more batches. Cells let
        windows be cut at the borders, but there are many of them.
        """
        found = []
        for pair in sorted(self._alignments()):
            plan = self.plan(Footprint(Span(0, pair[0], height), Span(0, pair[1], width)))
            batches = min(pair[0] * pair[1], places) * _STEP
            cost = places * values * plan.cost + batches * len(self.network.steps)
            found.append(Arrangement(cost, pair, None, plan.cost))
            cut = self.cut(pair, height, width)
            if cut is not None:
                before = sum(plan.costs.get(step.name, 0) for step in self.network.steps[: cut.step + 1])
                beyond, steps = self._by_cell(pair, cut)
                each = before + beyond
                cells = max(1, places // (pair[0] * pair[1])) * steps
                cost = places * values * each + batches * (cut.step + 1) + cells * _STEP
                found.append(Arrangement(cost, pair, cut, each))
        return min(found, key=lambda one: one.total)

    def cut(self, alignment: tuple[int, int], height: int, width: int) -> Cut | None:
        """The first cut for windows aligned so, if there is one."""
        if alignment == (1, 1):
            return None
        phases = [(row, column) for row in range(alignment[0]) for column in range(alignment[1])]
        plans = [
            self.plan(Footprint(Span(row, alignment[0], height), Span(column, alignment[1], width)))
            for row, column in phases
        ]
        for number in self._joints:
            name = self.network.steps[number].name
            found = [plan.places[name] for plan in plans]
            known = [place for place in found if isinstance(place, Footprint)]
            if len(known) < len(found):
                if WHOLE in found:
                    return None
                continue
            if known[0].rows.step == known[0].columns.step == 1:
                rows = {phase: place.rows for (phase, _), place in zip(phases, known, strict=True)}
                columns = {phase: place.columns for (_, phase), place in zip(phases, known, strict=True)}
                (above, tall), (left, wide) = _tightest(rows), _tightest(columns)
                return Cut(number, name, (above, left), Footprint(tall, wide))
        return None

    def _by_cell(self, alignment: tuple[int, int], cut: Cut) -> tuple[float, float]:
        """Multiply-adds per probe beyond a cut, and steps until there are whole results: means over some cells."""
        sides = self.shapes[self.network.image][2:]
        sampled = [
            torch.linspace(0, (side - 1 + offset) // step, _SAMPLED_CELLS).round().int().tolist()
            for side, offset, step in zip(sides, cut.offsets, alignment, strict=True)
        ]
        costs, steps = [], []
        for row, column in itertools.product(*sampled):
            place = self.clipped(cut.name, cut.cell(row, column))
            if isinstance(place, Footprint):
                plan = self.plan(place, cut.step + 1)
                costs.append(plan.cost)
                steps.append(self.settled(plan, cut.step + 1) - cut.step)
        return sum(costs) / max(1, len(costs)), sum(steps) / max(1, len(steps))

    def clipped(self, name: str, footprint: Footprint) -> Place:
        """The part of a window that stays in one place which lies in the map, and which a later step looks at."""
        rows, columns = (
            span.clipped(size)
            for span, size in zip((footprint.rows, footprint.columns), self._needed[name], strict=True)
        )
        return Footprint(rows, columns) if rows.size and columns.size else SAME

    def settled(self, plan: Plan, start: int) -> int:
        """From which step on there are only whole results: there the probes of several batches can go on together."""
        names = [step.name for step in self.network.steps]
        whole = (number + 1 for number in self._joints if number >= start and plan.places[names[number]] == WHOLE)
        return next(whole, len(names))

    @cached_property
    def _joints(self) -> list[int]:
        """Steps after which only their own result is needed."""
        alive, found = {self.network.image}, []
        for number, step in enumerate(self.network.steps):
            alive = {*alive, step.name} - set(step.last_uses)
            if alive == {step.name}:
                found.append(number)
        return found

    def _alignments(self) -> set[tuple[int, int]]:
        """How far apart, in pixels, neighbours in each map are."""
        found = {self.network.image: (1, 1)}
        for step in self.network.steps:
            rows, columns = (max(found[name][axis] for name in step.inputs) for axis in (0, 1))
            if isinstance(step.local, SlidingOperator):
                rows, columns = rows * step.local.rows.stride, columns * step.local.columns.stride
            found[step.name] = (min(rows, _MAX_ALIGNMENT), min(columns, _MAX_ALIGNMENT))
        return set(found.values())

    def _planned(self, window: Footprint, start: int) -> Plan:
        first = self.network.image if start == 0 else self.network.steps[start - 1].name
        places: dict[str, Place] = {first: window}
        local, costs, largest = set(), {}, window.area * self.shapes[first][1]
        for step in self.network.steps[start:]:
            place = self._place(step, places)
            places[step.name] = place or WHOLE
            if place is not None:
                local.add(step.name)
            shape = self.shapes.get(step.name, ())
            if isinstance(place, Footprint):
                largest = max(largest, place.area * shape[1])
                if isinstance(step.local, Convolution):
                    changed = places[step.inputs[0]]
                    assert isinstance(changed, Footprint)
                    costs[step.name] = step.local.cost(changed, place)
            elif place is None and not step.shape_only:
                costs[step.name] = self._whole_cost(step)
                largest = max(largest, torch.Size(shape).numel())
        return Plan(places, frozenset(local), costs, largest)

    def _place(self, step: Step, places: dict[str, Place]) -> Place | None:
        """Where the step's output changes if it is done in windows (`WHOLE` for a mean); None if it isn't."""
        inputs = [places[name] for name in step.inputs]
        if step.shape_only or WHOLE in inputs:
            return None
        if all(place == SAME for place in inputs):
            return SAME
        shapes = [self.shapes.get(name, ()) for name in step.inputs]
        out = self.shapes.get(step.name, ())
        if step.local is None or any(len(shape) != 4 for shape in shapes):
            return None
        place = step.local.reach(filled(inputs), shapes, out)
        if place == WHOLE:
            return WHOLE if step.local.ends else None
        if len(out) != 4:
            return None
        if isinstance(place, Footprint) and place.fixed:
            place = self.clipped(step.name, place)
        if isinstance(place, Footprint) and isinstance(step.local, Convolution):
            changed = filled(inputs)[0]
            whole = _WORTHWHILE * step.local.whole_cost(shapes[0], out)
            return place if step.local.cost(changed, place) < whole else None
        return place

    def _whole_cost(self, step: Step) -> float:
        if isinstance(step.local, Convolution):
            return step.local.whole_cost(self.shapes[step.inputs[0]], self.shapes[step.name])
        return step.run.weight.numel() if isinstance(step.run, nn.Linear) else 0


def _needed(network: Network, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """How many of each map's rows and columns later steps look at: a pooling may leave out the last ones."""
    needed: dict[str, tuple[int, int]] = {}
    for step in reversed(network.steps):
        out = shapes.get(step.name, ())
        own = needed.setdefault(step.name, (0, 0)) if step.name != network.output else (0, 0)
        for name in step.inputs:
            shape = shapes.get(name, ())
            if len(shape) != 4:
                continue
            sides = (shape[2], shape[3])
            if isinstance(step.local, SlidingOperator) and len(out) == 4:
                rows, columns = step.local.rows, step.local.columns
                sides = (min(sides[0], rows.extent(own[0])), min(sides[1], columns.extent(own[1])))
            elif isinstance(step.local, Elementwise | Same):
                sides = (min(sides[0], own[0]), min(sides[1], own[1]))
            before = needed.get(name, (0, 0))
            needed[name] = (max(before[0], sides[0]), max(before[1], sides[1]))
    return needed


def _tightest(spans: dict[int, Span]) -> tuple[int, Span]:
    """How to shift cells of `len(spans)` pixels so that the windows of a cell's pixels have the smallest hull."""
    best: tuple[int, Span] | None = None
    for offset in range(len(spans)):
        shifted = [span.shifted(-((phase + offset) // len(spans))) for phase, span in spans.items()]
        hull = shifted[0]
        for other in shifted[1:]:
            hull = hull.hull(other)
        if best is None or hull.size < best[1].size:
            best = (offset, hull)
    assert best is not None
    return best


def filled(places: list[Place]) -> list[Footprint]:
    """Footprints of a step's inputs: of those that no probe changes, as large as the others need."""
    known = [place for place in places if isinstance(place, Footprint)]
    hull = known[0]
    for other in known[1:]:
        hull = hull.hull(other)
    return [place if isinstance(place, Footprint) else hull for place in places]


def local_cost(module: nn.Module, image: Tensor, places: int, values: int, size: tuple[int, int] = (1, 1)) -> Cost:
    """What a probe of `size` pixels costs in the network, for `places` x `values` probes of an image `[1, C, H, W]`.

    Raises:
        ModelError: the module can't be traced.
    """
    with torch.inference_mode():
        program = Program(trace(module), image)
    return Cost(program.arrangement(*size, places, values).cost, program.dense_cost)
