"""A verdict on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from intaglio.scan import Verdict


def json_text(verdicts: Sequence[Verdict]) -> str:
    """One verdict as a JSON object; several as an array."""
    if len(verdicts) == 1:
        return verdicts[0].to_json()
    return "[" + ",\n".join(verdict.to_json().rstrip() for verdict in verdicts) + "]\n"


def verdict_panel(verdict: Verdict) -> Panel:
    """Statement, figures, most suspicious classes and costs."""
    colour = "red" if verdict.flagged else "green" if verdict.calibrated else "yellow"
    figures = Table.grid(padding=(0, 2))
    figures.add_row("score", f"{verdict.score:.3f} (higher is more suspicious)")
    figures.add_row("calibration", escape(verdict.calibration.statement))
    most = verdict.evidence[:3]
    subject = verdict.subject
    figures.add_row(
        "suspicion", ", ".join(f"{escape(subject.class_name(entry.index))} {entry.suspicion:.2f}" for entry in most)
    )
    if verdict.grid is not None:
        figures.add_row("grid", f"probed in {verdict.grid[0]} x {verdict.grid[1]} blocks, not pixel by pixel")
    figures.add_row(
        "costs", f"{verdict.queries:,} queries, {verdict.seconds:.1f} s, {verdict.peak_memory_mb:,.0f} MB at the peak"
    )
    title = escape(Path(subject.source).name)
    return Panel(
        Group(Text(verdict.statement, style=f"bold {colour}"), figures),
        title=title,
        title_align="left",
        border_style=colour,
    )
