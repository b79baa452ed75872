"""Numbers and untrusted text as a reader should see them."""

import re
from typing import Any

from markupsafe import Markup

from intaglio.scan.verdict import Place

#: What the templates call by name.
FILTERS = ("duration", "figure", "measured", "memory", "percent", "place", "shape", "whole")

#: Characters that show nothing but change what their neighbours look like: controls, text direction, lone surrogates.
_DECEPTIVE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_SPACE = "\N{NO-BREAK SPACE}"
_TIMES = "\N{MULTIPLICATION SIGN}"

#: Of one-pixel signatures; other detectors' maps have names of their own.
_MEASURED = {
    "logit": "rise of the centred logit",
    "increase": "rise of the log-probability",
    "decrease": "fall of the log-probability",
    "probability": "change of the probability",
}


def visible(value: Any) -> Any:
    r"""Text with deceptive characters spelled out, as `\u202e`; anything else as it is.

    A class named with a right-to-left override could otherwise make a report read differently from what it says.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _DECEPTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", value)


def figure(value: float) -> str:
    """Three significant digits; whole numbers with thousands separators from 1,000 on."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def whole(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def percent(rate: float) -> str:
    """0.034 as 3.4 %."""
    return f"{100 * rate:.1f}".removesuffix(".0") + f"{_SPACE}%"


def duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    if seconds < 60:
        return f"{figure(seconds)}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s"
    return f"{minutes // 60}{_SPACE}h {minutes % 60}{_SPACE}min"


def memory(megabytes: float) -> str:
    """MB, or GB from 1,000 on."""
    return f"{figure(megabytes)}{_SPACE}MB" if megabytes < 1000 else f"{megabytes / 1000:.1f}{_SPACE}GB"


def shape(sizes: tuple[int, ...]) -> str:
    """(3, 32, 32) as 3 x 32 x 32."""
    return f"{_SPACE}{_TIMES}{_SPACE}".join(map(str, sizes))


def place(where: Place) -> str:
    """The rows and columns of a place, counted from 0 at the top left, and its frame, counted from 0 as well."""
    frame = "" if where.frame is None else f"frame{_SPACE}{where.frame}, "
    return f"{frame}{_span('row', where.row, where.height)}, {_span('column', where.column, where.width)}"


def measured(variant: str) -> str:
    """What the values of a map variant are."""
    return _MEASURED.get(variant, variant)


def is_signature(variant: str) -> bool:
    """Whether a map of this variant is a one-pixel signature."""
    return variant in _MEASURED


def _span(name: str, start: int, size: int) -> str:
    return f"{name}{_SPACE}{start}" if size == 1 else f"{name}s{_SPACE}{start}\N{EN DASH}{start + size - 1}"
