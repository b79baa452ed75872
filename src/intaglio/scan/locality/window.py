"""The changed window of a map, over a batch of probes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from intaglio.scan.locality.geometry import Footprint, Span


class Base:
    """The base image's activations, by step; maps `[1, C, H, W]` also as rows `[H * W, C]`."""

    def __init__(self, activations: dict[str, Tensor]) -> None:
        self.activations = activations
        self._rows: dict[str, Tensor] = {}

    def rows(self, name: str) -> Tensor:
        if name not in self._rows:
            self._rows[name] = self.activations[name][0].permute(1, 2, 0).flatten(0, 1).contiguous()
        return self._rows[name]


@dataclass
class Batch:
    """P places with V values each, `N = P * V` probes: numbers `rows`, `columns` int64 `[P]` place their windows."""

    base: Base
    rows: Tensor
    columns: Tensor
    values: int
    #: Small windows' convolutions as matrices, by step and footprints.
    matrices: dict[tuple[str, Footprint, Footprint], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._frames: dict[tuple[Footprint, int, int], tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.rows) * self.values

    def gather(self, name: str, footprint: Footprint) -> Tensor:
        """The base's window of each place `[P, 1, h, w, C]`; outside the map, its nearest values."""
        rows = self.base.rows(name)
        if self._lies_inside(name, footprint):
            whole = rows.view(1, 1, *self.base.activations[name].shape[2:], -1)
            down, right = footprint.rows, footprint.columns
            return whole[:, :, down.first : down.stop, right.first : right.stop]
        index, _ = self._frame(name, footprint)
        taken = rows.index_select(0, index)
        return taken.view(len(self.rows), 1, footprint.rows.size, footprint.columns.size, rows.shape[1])

    def repeated(self, name: str, footprint: Footprint) -> Tensor:
        """The base's window of each probe `[N, h, w, C]`, to be written to."""
        taken = self.gather(name, footprint)
        return taken.expand(-1, self.values, -1, -1, -1).flatten(0, 1).contiguous() if self.values > 1 else taken[:, 0]

    def fill_outside(self, name: str, footprint: Footprint, data: Tensor, value: float) -> None:
        """Sets the elements of windows `[N, h, w, C]` that lie outside the map."""
        outside = None if self._lies_inside(name, footprint) else self._frame(name, footprint)[1]
        if outside is not None:
            data.view(-1, data.shape[3]).index_fill_(0, outside, value)

    def crosses(self, name: str, footprint: Footprint) -> bool:
        """Whether some of the windows stick out of the map."""
        return not self._lies_inside(name, footprint) and self._frame(name, footprint)[1] is not None

    def _lies_inside(self, name: str, footprint: Footprint) -> bool:
        """Whether the window stays in one place, inside the map."""
        height, width = self.base.activations[name].shape[2:]
        rows, columns = footprint.rows, footprint.columns
        return footprint.fixed and min(rows.first, columns.first) >= 0 and rows.stop <= height and columns.stop <= width

    def spread(self, data: Tensor) -> Tensor:
        """`[N, ...]` as `[P, V, ...]`, to be combined with what `gather` gives."""
        return data.view(len(self.rows), self.values, *data.shape[1:])

    def _frame(self, name: str, footprint: Footprint) -> tuple[Tensor, Tensor | None]:
        """For all elements `[P h w]` of the windows their index in the map; and which of `[N h w]` lie outside."""
        _, _, height, width = self.base.activations[name].shape
        key = (footprint, height, width)
        if key not in self._frames:
            rows, columns = _indices(footprint.rows, self.rows), _indices(footprint.columns, self.columns)
            inner_rows, inner_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
            index = (inner_rows[:, :, None] * width + inner_columns[:, None, :]).flatten()
            below, right = inner_rows != rows, inner_columns != columns
            outside = (below[:, :, None] | right[:, None, :]).flatten(1).repeat_interleave(self.values, dim=0)
            beyond = outside.flatten().nonzero().flatten()
            self._frames[key] = (index, beyond if len(beyond) else None)
        return self._frames[key]


def _indices(span: Span, numbers: Tensor) -> Tensor:
    return torch.arange(span.first, span.stop) + (span.step * numbers)[:, None]


def take(rows: Tensor, row: Tensor, column: Tensor, width: int) -> Tensor:
    """Of a map as rows `[H * W, C]`, the windows at indices `[P, h]` and `[P, w]`: `[P, h, w, C]`."""
    index = row[:, :, None] * width + column[:, None, :]
    return rows.index_select(0, index.flatten()).view(*index.shape, rows.shape[1])


class Window:
    """What changed of one map: `[N, h, w, C]`, kept as new values or as differences, whichever came last."""

    def __init__(
        self,
        batch: Batch,
        name: str,
        footprint: Footprint,
        *,
        delta: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        self.batch, self.name, self.footprint = batch, name, footprint
        self._delta, self._value = delta, value

    @classmethod
    def unchanged(cls, batch: Batch, name: str, footprint: Footprint) -> "Window":
        """A window in which nothing changed."""
        return cls(batch, name, footprint, value=batch.repeated(name, footprint))

    def delta(self) -> Tensor:
        """Differences from the base's activations; 0 outside the map."""
        if self._delta is None:
            assert self._value is not None
            base = self.batch.gather(self.name, self.footprint)
            self._delta = (self.batch.spread(self._value) - base).flatten(0, 1)
        return self._delta

    def value(self) -> Tensor:
        """New values; outside the map, anything that the base's nearest values give."""
        if self._value is None:
            assert self._delta is not None
            base = self.batch.gather(self.name, self.footprint)
            self._value = (self.batch.spread(self._delta) + base).flatten(0, 1)
        return self._value

    def delta_on(self, footprint: Footprint) -> Tensor:
        """Differences in another window of the same map: cut, or with zeros around them."""
        if footprint == self.footprint:
            return self.delta()
        out = self.delta().new_zeros(len(self.batch), footprint.rows.size, footprint.columns.size, self._channels)
        _paste(self.delta(), self.footprint, out, footprint)
        return out

    def value_on(self, footprint: Footprint, outside: float | None = None) -> Tensor:
        """New values in another window of the same map; outside the map `outside`, if given."""
        if footprint == self.footprint:
            out = self.value()
        else:
            out = self.batch.repeated(self.name, footprint)
            _paste(self.value(), self.footprint, out, footprint)
        if outside is not None and self.batch.crosses(self.name, footprint):
            out = out.clone() if out is self._value else out
            self.batch.fill_outside(self.name, footprint, out, outside)
        return out

    def whole(self) -> Tensor:
        """The whole map `[N, C, H, W]` of every probe, channels last in memory."""
        base = self.batch.base.activations[self.name]
        _, channels, height, width = base.shape
        out = self.batch.base.rows(self.name).repeat(len(self.batch), 1, 1).view(-1, height, width, channels)
        places, value = self.batch.spread(out), self.batch.spread(self.value())
        rows, columns = self.footprint.rows, self.footprint.columns
        for place, (row, column) in enumerate(zip(self.batch.rows.tolist(), self.batch.columns.tolist(), strict=True)):
            top, left = rows.first + rows.step * row, columns.first + columns.step * column
            up, down = max(top, 0), min(top + rows.size, height)
            start, stop = max(left, 0), min(left + columns.size, width)
            if up < down and start < stop:
                places[place, :, up:down, start:stop] = value[
                    place, :, up - top : down - top, start - left : stop - left
                ]
        return out.permute(0, 3, 1, 2)

    @property
    def _channels(self) -> int:
        return self.batch.base.activations[self.name].shape[1]


def _paste(data: Tensor, at: Footprint, out: Tensor, frame: Footprint) -> None:
    """Writes the part of `data` (window `at`) that lies in `frame` into `out`."""
    (to_row, from_row), (to_column, from_column) = (
        _overlap(inner, outer) for inner, outer in ((at.rows, frame.rows), (at.columns, frame.columns))
    )
    out[:, to_row, to_column] = data[:, from_row, from_column]


def _overlap(inner: Span, outer: Span) -> tuple[slice, slice]:
    """The common part, counted from the start of `outer` and of `inner`."""
    first, stop = max(inner.first, outer.first), min(inner.stop, outer.stop)
    stop = max(first, stop)
    return (
        slice(max(0, first - outer.first), max(0, stop - outer.first)),
        slice(max(0, first - inner.first), max(0, stop - inner.first)),
    )
