"""How windows go through layers: where to (`reach`), at what cost, and with what result (`apply`).

An operator gets the footprints, or the windows, of its inputs that depend on the image. Where it can't go on in
windows `reach` answers `WHOLE`, and the step runs on whole maps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from intaglio.networks.layout import skips_inputs
from intaglio.scan.locality.geometry import SAME, WHOLE, Footprint, Place, Sliding, Span
from intaglio.scan.locality.window import Window

Shape = tuple[int, ...]

#: A convolution of a small window is done as one matrix product while that takes at most so many times the
#: multiply-adds, and the matrix has at most so many elements.
_MATRIX_FACTOR, _MATRIX_SIZE = 1.5, 1 << 20


class Operator(ABC):
    """A layer that is understood; `name` is its step."""

    name: str
    #: Whether `apply` gives the whole output where `reach` answers `WHOLE`.
    ends: ClassVar[bool] = False

    @abstractmethod
    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        """The window of its output `out` that windows of its inputs can change; `[1, C, H, W]` shapes."""

    @abstractmethod
    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window | Tensor:
        """The changed output in that window; the whole of it if the operator `ends` windows."""


@dataclass(frozen=True)
class Same(Operator):
    """Changes nothing: dropout in evaluation mode, a copy."""

    name: str

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        return inputs[0]

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        return inputs[0]


@dataclass(frozen=True)
class Elementwise(Operator):
    """Any function of maps `[N, C, h, w]`, place by place: activations, products, normalisation in evaluation mode."""

    name: str
    function: Callable[..., Tensor]

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        if any(shape != out for shape in shapes):
            return WHOLE
        hull = inputs[0]
        for other in inputs[1:]:
            hull = hull.hull(other)
        return hull

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        values = (window.value_on(footprint).permute(0, 3, 1, 2) for window in inputs)
        value = self.function(*values).permute(0, 2, 3, 1).contiguous()
        return Window(inputs[0].batch, self.name, footprint, value=value)


@dataclass(frozen=True)
class Sum(Elementwise):
    """a + b: differences add up."""

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        delta = inputs[0].delta_on(footprint) + inputs[1].delta_on(footprint)
        return Window(inputs[0].batch, self.name, footprint, delta=delta)


@dataclass(frozen=True)
class Concatenation(Operator):
    """Maps one after the other along the channels; inputs that don't depend on the image aren't supported."""

    name: str

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        hull = inputs[0]
        for other in inputs[1:]:
            hull = hull.hull(other)
        return hull

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        delta = torch.cat([window.delta_on(footprint) for window in inputs], dim=3)
        return Window(inputs[0].batch, self.name, footprint, delta=delta)


@dataclass(frozen=True)
class ZeroPadding(Operator):
    """Zeros around a map: the window only moves."""

    name: str
    top: int
    left: int

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        return Footprint(inputs[0].rows.shifted(self.top), inputs[0].columns.shifted(self.left))

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        return Window(inputs[0].batch, self.name, footprint, delta=inputs[0].delta())


@dataclass(frozen=True)
class Mean(Operator):
    """The mean over a whole map is linear: the base's mean + the sum of the differences / area."""

    name: str
    ends: ClassVar[bool] = True

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        return WHOLE

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Tensor:
        window = inputs[0]
        activations = window.batch.base.activations
        area = math.prod(activations[window.name].shape[2:])
        base, change = activations[self.name], window.delta().sum(dim=(1, 2)) / area
        return base + change.view(len(change), *base.shape[1:])


@dataclass(frozen=True)
class SlidingOperator(Operator):
    """A kernel that slides over the map."""

    name: str
    rows: Sliding
    columns: Sliding

    def reach(self, inputs: Sequence[Footprint], shapes: Sequence[Shape], out: Shape) -> Place:
        rows, columns = self.rows.outputs(inputs[0].rows), self.columns.outputs(inputs[0].columns)
        if rows is None or columns is None:
            return WHOLE
        footprint = Footprint(rows, columns)
        return footprint if footprint.area else SAME

    def inputs_of(self, footprint: Footprint) -> Footprint:
        """All of the input that the window `footprint` of the output looks at."""
        return Footprint(self.rows.inputs(footprint.rows), self.columns.inputs(footprint.columns))


@dataclass(frozen=True)
class MaxPool(SlidingOperator):
    """Largest value under the kernel: first over rows, then over columns."""

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        value = inputs[0].value_on(self.inputs_of(footprint), outside=-torch.inf)
        for axis, sliding, span in ((1, self.rows, footprint.rows), (2, self.columns, footprint.columns)):
            value = _largest(value, axis, sliding, span.size)
        return _cleared(inputs[0], self.name, footprint, value=value.contiguous())


@dataclass(frozen=True)
class AveragePool(SlidingOperator):
    """Sum under the kernel over a divisor, which may depend on the place where kernels stick out of the map."""

    average: Callable[[Tensor], Tensor]
    ceil: bool

    @property
    def weights(self) -> str:
        """Under which name the inverse divisors `[1, 1, H, W]` are kept beside the base's activations."""
        return f"{self.name}/weights"

    def inverse_divisors(self, shape: Shape) -> Tensor:
        """1 / divisor of every output, for inputs `[1, C, H, W]`: the mean of ones over the number of ones."""
        ones = torch.ones(1, 1, *shape[2:])
        rows, columns = self.rows, self.columns
        kernel, stride, padding = zip(
            *((side.kernel, side.stride, side.padding) for side in (rows, columns)), strict=True
        )
        return self.average(ones) / functional.avg_pool2d(ones, kernel, stride, padding, self.ceil, divisor_override=1)

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        batch = inputs[0].batch
        delta = inputs[0].delta_on(self.inputs_of(footprint))
        kernel, stride = (self.rows.kernel, self.columns.kernel), (self.rows.stride, self.columns.stride)
        sums = functional.avg_pool2d(delta.permute(0, 3, 1, 2), kernel, stride, divisor_override=1)
        summed = batch.spread(sums.permute(0, 2, 3, 1).contiguous())
        weighted = summed * batch.gather(self.weights, footprint)
        return _cleared(inputs[0], self.name, footprint, delta=weighted.flatten(0, 1))


@dataclass(frozen=True)
class Convolution(SlidingOperator):
    """Linear: differences go through it without bias, and zeros around the window stay zeros."""

    weight: Tensor
    bias: Tensor | None
    groups: int

    def whole(self, images: Tensor) -> Tensor:
        """The convolution of whole maps."""
        rows, columns, weight = self.rows, self.columns, self.weight
        stride, padding = (rows.stride, columns.stride), (rows.padding, columns.padding)
        dilation = (rows.dilation, columns.dilation)
        if skips_inputs(stride, padding, dilation):
            images, weight = (part.clone(memory_format=torch.contiguous_format) for part in (images, weight))
        return functional.conv2d(images, weight, self.bias, stride, padding, dilation, self.groups)

    def whole_cost(self, inputs: Shape, out: Shape) -> float:
        """Multiply-adds of a whole output map; kernels skip a part of the zeros around it."""
        return self._weighted(
            (inputs[2], self.rows.padding, out[2]),
            (inputs[3], self.columns.padding, out[3]),
        )

    def cost(self, window: Footprint, footprint: Footprint) -> float:
        """Multiply-adds of a window."""
        return min(self._sliding_cost(window, footprint), self._matrix_cost(window, footprint) / _MATRIX_FACTOR)

    def _sliding_cost(self, window: Footprint, footprint: Footprint) -> float:
        frame, (above, left) = self._frame(window, footprint)
        return self._weighted(
            (frame.rows.size, above, footprint.rows.size), (frame.columns.size, left, footprint.columns.size)
        )

    def _weighted(self, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> float:
        """Of inputs, padding and outputs along each axis.

        Kernels skip all rows of zeros, but only a part of the columns: the geometric mean of none and all of them
        predicts measured times within a tenth.
        """
        full = self.columns.kernel * columns[2]
        count = self.rows.taps(*rows) * math.sqrt(self.columns.taps(*columns) * full)
        return self.weight.shape[0] * self.weight.shape[1] * count

    def _matrix_cost(self, window: Footprint, footprint: Footprint) -> float:
        size = self.weight.shape[1] * self.groups * window.area * len(self.weight) * footprint.area
        # Windows that stay in their place are of many shapes, each for a few probes.
        return size if size <= _MATRIX_SIZE and not footprint.fixed else math.inf

    def apply(self, inputs: Sequence[Window], footprint: Footprint) -> Window:
        window = inputs[0]
        sliding = self._sliding_cost(window.footprint, footprint)
        if self._matrix_cost(window.footprint, footprint) <= _MATRIX_FACTOR * sliding:
            key = (self.name, window.footprint, footprint)
            matrices = window.batch.matrices
            if key not in matrices:
                matrices[key] = self._matrix(window.footprint, footprint)
            delta = window.delta()
            out = delta.flatten(1) @ matrices[key]
            out = out.view(len(out), footprint.rows.size, footprint.columns.size, len(self.weight))
        else:
            out = self._slide(window, footprint)
        return _cleared(window, self.name, footprint, delta=out)

    def _slide(self, window: Window, footprint: Footprint) -> Tensor:
        frame, padding = self._frame(window.footprint, footprint)
        return self._differences(window.delta_on(frame), padding)

    def _frame(self, window: Footprint, footprint: Footprint) -> tuple[Footprint, tuple[int, int]]:
        """What to slide over, and how many zeros around it the convolution itself adds: as many as on both sides."""
        needed = self.inputs_of(footprint)
        rows, columns = _margin(needed.rows, window.rows), _margin(needed.columns, window.columns)
        return Footprint(needed.rows.shrunk(rows), needed.columns.shrunk(columns)), (rows, columns)

    def _differences(self, delta: Tensor, padding: tuple[int, int]) -> Tensor:
        rows, columns = self.rows, self.columns
        stride, dilation = (rows.stride, columns.stride), (rows.dilation, columns.dilation)
        out = functional.conv2d(delta.permute(0, 3, 1, 2), self.weight, None, stride, padding, dilation, self.groups)
        return out.permute(0, 2, 3, 1).contiguous()

    def _matrix(self, window: Footprint, footprint: Footprint) -> Tensor:
        """`[h w C, h' w' C']`: what each single element of the window does to the output's window."""
        channels = self.weight.shape[1] * self.groups
        units = torch.eye(window.area * channels).view(-1, window.rows.size, window.columns.size, channels)
        needed = self.inputs_of(footprint)
        frame = units.new_zeros(len(units), needed.rows.size, needed.columns.size, channels)
        top, left = window.rows.first - needed.rows.first, window.columns.first - needed.columns.first
        # A stride may leave a part of the window out of every kernel.
        up, start = max(top, 0), max(left, 0)
        down, stop = min(top + window.rows.size, frame.shape[1]), min(left + window.columns.size, frame.shape[2])
        frame[:, up:down, start:stop] = units[:, up - top : down - top, start - left : stop - left]
        return self._differences(frame, (0, 0)).flatten(1)


def _margin(needed: Span, given: Span) -> int:
    """The zeros needed on both sides of a window."""
    return max(0, min(given.first - needed.first, needed.stop - given.stop))


def _largest(value: Tensor, axis: int, sliding: Sliding, size: int) -> Tensor:
    """The maximum over a sliding kernel along one axis of `[N, h, w, C]`."""
    length = (size - 1) * sliding.stride + 1
    out: Tensor | None = None
    for tap in range(sliding.kernel):
        start = tap * sliding.dilation
        index = [slice(None)] * axis + [slice(start, start + length, sliding.stride)]
        part = value[tuple(index)]
        out = part if out is None else torch.maximum(out, part)
    assert out is not None
    return out


def _cleared(
    source: Window, name: str, footprint: Footprint, *, delta: Tensor | None = None, value: Tensor | None = None
) -> Window:
    """A window in which nothing has changed outside the map; `delta` is written to."""
    batch = source.batch
    if not batch.crosses(name, footprint):
        return Window(batch, name, footprint, delta=delta, value=value)
    if delta is None:
        assert value is not None
        delta = (batch.spread(value) - batch.gather(name, footprint)).flatten(0, 1)
    batch.fill_outside(name, footprint, delta, 0)
    return Window(batch, name, footprint, delta=delta)
