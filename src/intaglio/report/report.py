"""The HTML report: one file with everything in it, which needs no network and allows none."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from intaglio.errors import NothingToExamineError
from intaglio.files import write_text
from intaglio.report import wording
from intaglio.report.pictures import colour_bar, data_uri
from intaglio.report.reading import check_verdict
from intaglio.report.sections import build_sections
from intaglio.scan.verdict import Verdict

TITLE = "Backdoor scan report"


def render_report(verdicts: Sequence[Verdict], title: str = TITLE) -> str:
    """An HTML page: an overview of all models where there are several, then each with its evidence and its costs.

    The same verdicts give the same bytes. Model paths and class names are shown as text, whatever is in them.

    Raises:
        NothingToExamineError: no verdicts.
        DataError: a verdict whose parts contradict one another.
    """
    if not verdicts:
        raise NothingToExamineError("no verdict to report on")
    for verdict in verdicts:
        check_verdict(verdict)
    template = environment().get_template("report.html.j2")
    models = len({verdict.subject.sha256 or verdict.subject.source for verdict in verdicts})
    sections, bar = build_sections(verdicts), data_uri(colour_bar())
    return template.render(title=title, models=models, sections=sections, colour_bar=bar)


def write_report(verdicts: Sequence[Verdict], path: Path | str, title: str = TITLE) -> None:
    """Writes the page of `render_report` to a file, atomically.

    Raises:
        StorageError: the file can't be written.
    """
    write_text(path, render_report(verdicts, title))


def environment() -> Environment:
    """The templates' environment: everything is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("intaglio.report"),
        autoescape=True,
        finalize=wording.visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(wording, name) for name in wording.FILTERS})
    return environment
