"""Markdown from figures: tables, intervals, and the places in the documents where they go."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.results import known

Figures = dict[str, Any]


def ranged(value: Figures, digits: int = 3) -> str:
    """An estimate with its interval."""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def percent(value: Figures) -> str:
    """A share with its interval, in per cent."""
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def load(name: str) -> Figures:
    """The figures of one file of results, without what says how they came about; none if it was not written yet."""
    return {key: value for key, value in known(name).items() if key not in ("provenance", "earlier")}


def render(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """`text` with every marked table replaced by a fresh one."""
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if pattern.search(text):
            text = pattern.sub(_with(make() + "\n"), text)
    return text


def _with(body: str) -> Callable[[re.Match[str]], str]:
    """A replacement that keeps both markers, whatever is in `body`."""
    return lambda found: found[1] + body + found[2]
