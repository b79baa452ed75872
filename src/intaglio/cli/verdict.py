"""A verdict on the terminal, as JSON and in the registry."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from intaglio.errors import RecipeError, printable
from intaglio.scan import Verdict

if TYPE_CHECKING:
    from intaglio.classifiers import Classifier


def json_text(verdicts: Sequence[Verdict]) -> str:
    """One verdict as a JSON object; several as an array."""
    if len(verdicts) == 1:
        return verdicts[0].to_json()
    return "[" + ",\n".join(verdict.to_json().rstrip() for verdict in verdicts) + "]\n"


def recordable_digest(classifier: "Classifier", registry: str) -> str:
    """The digest of the model's file, if verdicts on it can be recorded there: asked before the work.

    Raises:
        RecipeError: the model is no file, so it has no digest.
        EvidenceError: the registry is locked, damaged, or of a newer version.
    """
    from intaglio.evidence.registry import Registry

    if classifier.sha256 is None:
        raise RecipeError(f"{classifier.source}: not a file, so it has no digest to be registered by")
    Registry.open(registry).close()
    return classifier.sha256


def record_verdicts(verdicts: Sequence[Verdict], digest: str, registry: str) -> None:
    """Records verdicts on the model of this digest, and the model."""
    from intaglio.evidence.registry import Registry

    with Registry.open(registry) as book:
        subject = verdicts[0].subject
        book.add_model(digest, name=subject.source, input_shape=subject.input_shape, classes=subject.num_classes)
        for verdict in verdicts:
            book.record_verdict(digest, verdict)


def verdict_panel(verdict: Verdict) -> Panel:
    """Statement, figures, most suspicious classes and costs."""
    from intaglio.report.sections import p_value_is_lowest

    clear = verdict.calibrated and not p_value_is_lowest(verdict)
    colour = "red" if verdict.flagged else "green" if clear else "yellow"
    figures = Table.grid(padding=(0, 2))
    figures.add_row("score", f"{verdict.score:.3f} (higher is more suspicious)")
    figures.add_row("calibration", _plain(verdict.calibration.statement))
    most = verdict.evidence[:3]
    subject = verdict.subject
    figures.add_row(
        "suspicion", ", ".join(f"{_plain(subject.class_name(entry.index))} {entry.suspicion:.2f}" for entry in most)
    )
    if verdict.grid is not None:
        figures.add_row("grid", f"probed in {verdict.grid[0]} x {verdict.grid[1]} blocks, not pixel by pixel")
    figures.add_row(
        "costs", f"{verdict.queries:,} queries, {verdict.seconds:.1f} s, {verdict.peak_memory_mb:,.0f} MB at the peak"
    )
    title = _plain(Path(subject.source).name)
    return Panel(
        Group(Text(printable(verdict.statement), style=f"bold {colour}"), figures),
        title=title,
        title_align="left",
        border_style=colour,
    )


def _plain(text: str) -> str:
    """A suspect's own words, which steer neither the terminal nor the markup."""
    return escape(printable(text))
