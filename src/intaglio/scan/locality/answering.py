"""Probes in batches through a network's windows; nothing is answered before it agrees with the network itself."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intaglio.classifiers import TorchClassifier
from intaglio.classifiers.outputs import to_log_probs
from intaglio.errors import IntaglioError, ModelError
from intaglio.scan.locality.geometry import Footprint, Span
from intaglio.scan.locality.planning import Cut, Program
from intaglio.scan.locality.running import finish, run
from intaglio.scan.locality.tracing import trace
from intaglio.scan.locality.window import Batch, Window, take

#: Bytes of the largest result of one batch: more falls out of the processor's cache.
BATCH_BYTES = 4 << 20
#: Bytes of all windows that wait at a cut for the others of their cells.
STAGE_BYTES = 64 << 20
#: Log-probabilities by locality and of the network may differ by so much; else the network itself answers.
TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5

_ORIGIN = torch.zeros(1, dtype=torch.int64)
_log = logging.getLogger(__name__)


class Sides(NamedTuple):
    """Along one axis, the first pixel and the number of pixels of every cell, int64 `[cells]`."""

    starts: Tensor
    lengths: Tensor


Answers = Iterator[tuple[Tensor, Tensor]]


def local_answers(classifier: object, base: Tensor, values: Tensor, rows: Sides, columns: Sides) -> Answers | None:
    """Answers to all probes of one base image `[C, H, W]`, a batch of places at a time: (places, log-probabilities).

    Places int64 `[P]` number the cells in row-major order; log-probabilities are `[P, V, K]`. None if the classifier
    isn't a module on a CPU that can be traced, if its preprocessing mixes pixels, or if a few probes asked both ways
    don't agree: then it must be asked probe by probe. Each probe counts as a query; the comparison doesn't.

    Args:
        values: `[V, C, 1, 1]`, or `[V, C, H, W]` where they differ from place to place.
    """
    if not isinstance(classifier, TorchClassifier) or classifier.device.type != "cpu":
        return None
    preprocessing = classifier.preprocessing
    resized = preprocessing.resize not in (None, tuple(base.shape[1:]))
    bounds = torch.stack([*base.aminmax(), *values.aminmax()])
    if resized or preprocessing.layout != "NCHW" or not bool(((bounds >= 0) & (bounds <= 1)).all()):
        return None
    if classifier.fixed_batch or base.dtype != torch.float32 or values.dtype != torch.float32:
        return None
    try:
        with torch.inference_mode():
            probing = _Probing(classifier, base, values, rows, columns)
            answers = probing.checked()
    except (IntaglioError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        _log.debug("%s: probed on whole maps: %s", classifier.source, error)
        return None
    return answers


class _Probing:
    """All probes of one base image."""

    def __init__(self, classifier: TorchClassifier, base: Tensor, values: Tensor, rows: Sides, columns: Sides) -> None:
        self.classifier, self.image, self.values = classifier, base, values.expand(-1, -1, *base.shape[1:])
        self.rows, self.columns = rows, columns
        prepare = classifier.preprocessing.apply
        prepared = prepare(base[None])
        self.program = Program(trace(classifier.module), prepared)
        self.base_answer = self._log_probs(self.program.answer)[0]
        # [H, W, V * C]: how each value differs from the base at each pixel
        differences = prepare(self.values.contiguous()) - prepared
        self.channels = differences.shape[1]
        self.differences = differences.permute(2, 3, 0, 1).flatten(2).contiguous()
        self.changed = self._changed((differences != 0).any(dim=1).float())
        self.size = int(rows.lengths.max()), int(columns.lengths.max())
        arrangement = self.program.arrangement(*self.size, len(self.changed), len(values))
        self.alignment, self.cut = arrangement.alignment, arrangement.cut
        self.matrices: dict[Any, Tensor] = {}

    def answers(self, first: tuple[Tensor, Tensor] | None = None) -> Answers:
        """Every place once: the answers that are known already, then the others."""
        for number, (places, kept) in enumerate(self._parts()):
            if number == 0 and first is not None:
                answer = first[1]
            else:
                with torch.inference_mode():
                    answer = self._answered(places, kept)
            self.classifier.count_queries(answer.shape[0] * answer.shape[1])
            yield places, answer.clone()

    def checked(self) -> Answers:
        """All answers, once some of the first ones are the network's own.

        Raises:
            ModelError: they differ.
        """
        places, kept = next(self._parts())
        answers = self._answered(places, kept)
        value = kept[-1] if kept else 0
        chosen = sorted({0, len(places) // 3, len(places) * 4 // 5, len(places) - 1})
        images = torch.stack([self.image] + [self._altered(int(places[number]), value) for number in chosen])
        with self.classifier.uncounted():
            expected = self.classifier.log_probs(images)
        found = torch.cat([self.base_answer[None], answers[chosen, value]])
        if not torch.allclose(found, expected, atol=TOLERANCE, rtol=RELATIVE_TOLERANCE):
            raise ModelError(f"by locality, log-probabilities differ by {float((found - expected).abs().max()):.2g}")
        return self.answers((places, answers))

    def _altered(self, place: int, value: int) -> Tensor:
        row, column = divmod(place, len(self.columns.starts))
        top, left = int(self.rows.starts[row]), int(self.columns.starts[column])
        area = (
            slice(None),
            slice(top, top + int(self.rows.lengths[row])),
            slice(left, left + int(self.columns.lengths[column])),
        )
        image = self.image.clone()
        image[area] = self.values[value][area]
        return image

    def _changed(self, pixels: Tensor) -> Tensor:
        """Which values change which places: boolean `[places, V]`, of pixels `[V, H, W]`."""
        height, width = pixels.shape[1:]
        rows, columns = _members(self.rows, height), _members(self.columns, width)
        return ((rows @ pixels @ columns.T).flatten(1) > 0).T

    def _parts(self) -> Iterator[tuple[Tensor, list[int]]]:
        """All places, in parts that the same values change, as many cells at once as memory allows."""
        kinds, members = torch.unique(self.changed, dim=0, return_inverse=True)
        for kind, key in enumerate(kinds):
            places, kept = (members == kind).nonzero().flatten(), key.nonzero().flatten().tolist()
            if self.cut is not None:
                # Sorted by cells, so that few of them are in two parts.
                cells = self._cells(places, self.cut)
                order = torch.unique(torch.stack(cells, dim=1), dim=0, return_inverse=True)[1].argsort(stable=True)
                places = places[order]
                floats = self.cut.hull.area * self.program.shapes[self.cut.name][1]
                count = self.alignment[0] * self.alignment[1]
                at_once = max(1, STAGE_BYTES // (4 * floats * max(1, len(kept)) * count)) * count
            else:
                at_once = len(places)
            for part in torch.split(places, at_once):
                yield part, kept

    def _answered(self, places: Tensor, kept: list[int]) -> Tensor:
        """Log-probabilities `[P, V, K]`; a value that changes nothing has the base's."""
        answer = self.base_answer.repeat(len(places), len(self.values), 1)
        if not kept:
            return answer
        scores = self._aligned(places, kept, None) if self.cut is None else self._by_cell(places, kept, self.cut)
        checked = self.classifier.checked_answer(scores.flatten(0, 1), len(places) * len(kept))
        answer[:, kept] = self._log_probs(checked).view(len(places), len(kept), -1)
        return answer

    def _aligned(self, places: Tensor, kept: list[int], frame: "_Frame | None") -> Tensor:
        """Batches of windows aligned alike: to the answers `[P, V, K]`, or up to the cut, into a frame."""
        row, column = places // len(self.columns.starts), places % len(self.columns.starts)
        starts = torch.stack([self.rows.starts[row], self.columns.starts[column]])
        steps = torch.tensor(self.alignment)[:, None]
        phases = starts % steps
        numbers = starts // steps
        order = phases[0] * self.alignment[1] + phases[1]
        scores = torch.empty(len(places), len(kept), self.classifier.num_classes)
        for phase in torch.unique(order).tolist():
            members = (order == phase).nonzero().flatten()
            above, left = divmod(phase, self.alignment[1])
            footprint = Footprint(
                Span(above, self.alignment[0], self.size[0]), Span(left, self.alignment[1], self.size[1])
            )
            plan = self.program.plan(footprint)
            for values in _split(kept, max(1, BATCH_BYTES // (4 * plan.floats))):
                for part in torch.split(members, max(1, BATCH_BYTES // (4 * plan.floats * len(values)))):
                    batch = Batch(self.program.base, numbers[0, part], numbers[1, part], len(values), self.matrices)
                    delta = self._image_window(row[part], column[part], footprint, values)
                    window = Window(batch, self.program.network.image, footprint, delta=delta)
                    wanted = [kept.index(value) for value in values]
                    if frame is None:
                        found = run(self.program, plan, window)
                        assert isinstance(found, Tensor)
                        scores[part[:, None], wanted] = found.view(len(part), len(values), -1)
                    else:
                        found = run(self.program, plan, window, stop=frame.cut.step + 1)
                        assert isinstance(found, Window)
                        frame.put(part, wanted, found)
        return scores

    def _by_cell(self, places: Tensor, kept: list[int], cut: Cut) -> Tensor:
        """Up to the cut in batches aligned alike, from there on in batches of one cell; `[P, V, K]`."""
        rows, columns = self._cells(places, cut)
        channels = self.program.shapes[cut.name][1]
        data = torch.zeros(len(places), len(kept), cut.hull.rows.size, cut.hull.columns.size, channels)
        frame = _Frame(cut, rows, columns, data)
        self._aligned(places, kept, frame)
        scores = torch.empty(len(places) * len(kept), self.classifier.num_classes)
        data = data.flatten(0, 1)
        waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for row, column in torch.unique(torch.stack([rows, columns], dim=1), dim=0).tolist():
            members = ((rows == row) & (columns == column)).repeat_interleave(len(kept)).nonzero().flatten()
            whole = cut.cell(row, column)
            inside = self.program.clipped(cut.name, whole)
            if not isinstance(inside, Footprint):
                scores[members] = self.program.answer
                continue
            top, left = inside.rows.first - whole.rows.first, inside.columns.first - whole.columns.first
            plan = self.program.plan(inside, cut.step + 1)
            settled = self.program.settled(plan, cut.step + 1)
            for part in torch.split(members, max(1, BATCH_BYTES // (4 * plan.floats))):
                delta = data[part][:, top : top + inside.rows.size, left : left + inside.columns.size].contiguous()
                window = Window(Batch(self.program.base, _ORIGIN, _ORIGIN, len(part)), cut.name, inside, delta=delta)
                made = run(self.program, plan, window, start=cut.step + 1, stop=settled)
                together = waiting.setdefault(settled, [])
                together.append((part, made.whole() if isinstance(made, Window) else made))
                if sum(one.nelement() for _, one in together) * 4 >= 2 * BATCH_BYTES:
                    self._finish(settled, waiting.pop(settled), scores)
        for settled, together in waiting.items():
            self._finish(settled, together, scores)
        return scores.view(len(places), len(kept), -1)

    def _finish(self, settled: int, together: list[tuple[Tensor, Tensor]], scores: Tensor) -> None:
        """Whole results of several cells, taken to their scores."""
        made = torch.cat([one for _, one in together])
        scores[torch.cat([members for members, _ in together])] = finish(self.program, made, settled)

    def _cells(self, places: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        """Numbers of the places' cells, along rows and columns."""
        row, column = places // len(self.columns.starts), places % len(self.columns.starts)
        rows = (self.rows.starts[row] + cut.offsets[0]) // self.alignment[0]
        return rows, (self.columns.starts[column] + cut.offsets[1]) // self.alignment[1]

    def _image_window(self, row: Tensor, column: Tensor, footprint: Footprint, values: list[int]) -> Tensor:
        """What the probes change of the image: `[N, h, w, C]`."""
        height, width = self.differences.shape[:2]
        offsets = [torch.arange(span.size) for span in (footprint.rows, footprint.columns)]
        down = (self.rows.starts[row][:, None] + offsets[0]).clamp_(max=height - 1)
        right = (self.columns.starts[column][:, None] + offsets[1]).clamp_(max=width - 1)
        taken = take(self.differences.flatten(0, 1), down, right, width)
        taken = taken.view(*taken.shape[:3], len(self.values), self.channels)[:, :, :, values]
        if footprint.area > 1:
            inside = (offsets[0] < self.rows.lengths[row][:, None])[:, :, None] & (
                offsets[1] < self.columns.lengths[column][:, None]
            )[:, None, :]
            taken = taken.masked_fill(~inside[:, :, :, None, None], 0)
        return taken.permute(0, 3, 1, 2, 4).reshape(-1, *taken.shape[1:3], self.channels)

    def _log_probs(self, scores: Tensor) -> Tensor:
        return to_log_probs(scores, self.classifier.outputs)


@dataclass(frozen=True)
class _Frame:
    """Where windows at a cut are put together, by place: `data` `[P, V, h, w, C]` in the hull of each place's cell."""

    cut: Cut
    rows: Tensor
    columns: Tensor
    data: Tensor

    def put(self, places: Tensor, values: list[int], window: Window) -> None:
        """Differences of aligned windows, in the hulls of their places' cells."""
        footprint, hull = window.footprint, self.cut.hull
        delta = window.batch.spread(window.delta())
        down = footprint.rows.first - hull.rows.first + window.batch.rows - self.rows[places]
        right = footprint.columns.first - hull.columns.first + window.batch.columns - self.columns[places]
        top, left = int(down[0]), int(right[0])  # places aligned alike lie alike in their cells
        area = (slice(top, top + footprint.rows.size), slice(left, left + footprint.columns.size))
        if len(values) == self.data.shape[1]:
            self.data[(places, slice(None), *area)] = delta
        else:
            self.data[(places[:, None], torch.tensor(values), *area)] = delta


def _split(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _members(side: Sides, pixels: int) -> Tensor:
    """Float `[cells, pixels]`: 1 where a pixel belongs to a cell."""
    offset = torch.arange(pixels) - side.starts[:, None]
    return ((offset >= 0) & (offset < side.lengths[:, None])).float()
