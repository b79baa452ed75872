"""Where windows lie: along one axis, and in a map."""

from dataclasses import dataclass
from typing import Final, Literal

from intaglio.errors import RecipeError

#: Footprint of a map that no probe of the batch changes, and of one that is kept whole.
SAME: Final = "same"
WHOLE: Final = "whole"


@dataclass(frozen=True)
class Span:
    """Along one axis, the window `[first + step * q, first + step * q + size)` of the probe with number q.

    Probes of one batch have windows of one size and one alignment: a stride of s divides `first` and `step` by s.
    Windows may stick out of the map; nothing changes there.
    """

    first: int
    step: int
    size: int

    @property
    def stop(self) -> int:
        return self.first + self.size

    def hull(self, other: "Span") -> "Span":
        """The smallest window that holds both."""
        if self.step != other.step:
            raise RecipeError(f"windows that move by {self.step} and by {other.step} don't belong to one map")
        first = min(self.first, other.first)
        return Span(first, self.step, max(self.stop, other.stop) - first)

    def shifted(self, by: int) -> "Span":
        return Span(self.first + by, self.step, self.size)

    def shrunk(self, by: int) -> "Span":
        """Without so many elements on either side."""
        return Span(self.first + by, self.step, self.size - 2 * by)

    def clipped(self, size: int) -> "Span":
        """The part within `[0, size)` of a window that stays in its place."""
        first = max(self.first, 0)
        return Span(first, self.step, max(0, min(self.stop, size) - first))


@dataclass(frozen=True)
class Sliding:
    """Kernel size, stride, low padding and dilation along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    @property
    def reach(self) -> int:
        """How far beyond the first element a kernel looks."""
        return self.dilation * (self.kernel - 1)

    def outputs(self, span: Span) -> Span | None:
        """The outputs that a window of inputs can change (size 0: none); None if that differs from probe to probe.

        Output o looks at the inputs o * stride - padding ... o * stride - padding + reach.
        """
        if span.step % self.stride:
            return None
        first = -(-(span.first + self.padding - self.reach) // self.stride)
        last = (span.first + span.size - 1 + self.padding) // self.stride
        return Span(first, span.step // self.stride, max(0, last - first + 1))

    def taps(self, inputs: int, padding: int, outputs: int) -> int:
        """So many times do `outputs` outputs in a row look at one of `inputs` inputs, with zeros before the first."""
        total = 0
        for tap in range(0, self.reach + 1, self.dilation):
            first = max(0, -((tap - padding) // self.stride))
            last = min(outputs - 1, (inputs - 1 + padding - tap) // self.stride)
            total += max(0, last - first + 1)
        return total

    def extent(self, outputs: int) -> int:
        """So many inputs, counted from the first, do the first `outputs` outputs look at."""
        return max(0, (outputs - 1) * self.stride - self.padding + self.reach + 1) if outputs else 0

    def inputs(self, span: Span) -> Span:
        """All inputs that a window of outputs looks at."""
        first = span.first * self.stride - self.padding
        return Span(first, span.step * self.stride, (span.size - 1) * self.stride + self.reach + 1)


@dataclass(frozen=True)
class Footprint:
    """A window of a map: rows and columns."""

    rows: Span
    columns: Span

    @property
    def area(self) -> int:
        return self.rows.size * self.columns.size

    @property
    def fixed(self) -> bool:
        """Whether the window lies in the same place for all probes."""
        return self.rows.step == self.columns.step == 0

    def hull(self, other: "Footprint") -> "Footprint":
        return Footprint(self.rows.hull(other.rows), self.columns.hull(other.columns))


Place = Footprint | Literal["same", "whole"]
