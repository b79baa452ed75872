"""`intaglio report`: one HTML page from the verdicts in a folder."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.everywhere import require_apart
from intaglio.cli.options import Debug, HtmlFile, JsonFile, Quiet


def report(
    folder: Annotated[Path, typer.Argument(help="A folder with verdicts as JSON.", metavar="DIR")],
    html: HtmlFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Write a self-contained HTML report of the verdicts in DIR (by default to DIR/report.html)."""
    from intaglio.cli.console import deliver_file, deliver_json, require_deliverable, say
    from intaglio.cli.verdict import json_text
    from intaglio.report import read_verdicts, render_report

    verdicts = read_verdicts(folder)
    target = html or folder / "report.html"
    require_apart(target, *folder.glob("*.json"), option="--html")
    require_deliverable(target, json)
    deliver_file(render_report(verdicts), target)
    deliver_json(json_text(verdicts), json)
    flagged = sum(verdict.flagged for verdict in verdicts)
    say(f"{target}: {len(verdicts)} verdicts, {flagged} flagged", quiet=quiet, json_to_stdout=json == "-")
    return 0
