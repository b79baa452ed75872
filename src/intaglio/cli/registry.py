"""`intaglio registry`: owners, models, commitments, spent batches, and what was verified, scanned and checked."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intaglio.cli.options import Debug, JsonFile, Quiet
from intaglio.errors import printable

if TYPE_CHECKING:
    from intaglio.evidence.registry import Registry
    from intaglio.results import Result

registry_app = typer.Typer(
    name="registry", no_args_is_help=True, help="Show what is registered: owners, marks, spent evidence, checks."
)

Place = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        help="A file, or postgresql+psycopg://USER@HOST/DATABASE; by default $INTAGLIO_REGISTRY or the user's own.",
    ),
]
Mark = Annotated[str | None, typer.Option(metavar="ID", help="Only those of this mark.")]
Suspect = Annotated[str | None, typer.Option(help="Only those of this suspect.")]


@registry_app.command()
def show(
    identity: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A mark, seal, model digest, owner's key or suspect.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the newest events to show.")] = 20,
    registry: Place = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Show how much the registry holds, and what happened last."""
    from json import dumps

    from intaglio.cli.console import deliver_json, say

    with _open(registry) as opened:
        summary, history = opened.summary(), opened.history(identity, limit=limit)
    content = summary.to_dict() | {"history": [entry.to_dict() for entry in history]}
    deliver_json(dumps(content, indent=1) + "\n", json)
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.counts.items())
    lines: list[Any] = [f"{summary.location}: version {summary.version}; {counts}"]
    if history:
        rows = [(entry.recorded, entry.event, entry.identity, entry.suspect, entry.statement) for entry in history]
        lines.append(_table(("recorded", "event", "of", "suspect", ""), rows))
    say(*lines, quiet=quiet, json_to_stdout=json == "-")
    return 0


@registry_app.command()
def upgrade(registry: Place = None, json: JsonFile = None, quiet: Quiet = False, debug: Debug = False) -> int:
    """Make the registry if there is none, and bring its tables up to date."""
    from intaglio.cli.console import deliver_json, say
    from intaglio.evidence.registry import Registry

    with Registry.open(registry) as opened:
        summary = opened.summary()
    deliver_json(summary.to_json(), json)
    say(f"{summary.location}: version {summary.version}", quiet=quiet, json_to_stdout=json == "-")
    return 0


@registry_app.command()
def owners(registry: Place = None, json: JsonFile = None, quiet: Quiet = False, debug: Debug = False) -> int:
    """List owners."""
    return _list("owners", registry, json, quiet, ("recorded", "public_key", "name"), lambda opened: opened.owners())


@registry_app.command()
def models(registry: Place = None, json: JsonFile = None, quiet: Quiet = False, debug: Debug = False) -> int:
    """List models."""
    columns = ("recorded", "sha256", "name", "input_shape", "classes", "notes")
    return _list("models", registry, json, quiet, columns, lambda opened: opened.models())


@registry_app.command()
def commitments(
    mark: Mark = None, registry: Place = None, json: JsonFile = None, quiet: Quiet = False, debug: Debug = False
) -> int:
    """List commitments; --json has the signed envelopes."""
    columns = ("recorded", "mark_id", "owner", "model_sha256", "stamp")
    return _list("commitments", registry, json, quiet, columns, lambda opened: opened.commitments(mark_id=mark))


@registry_app.command()
def spent(
    mark: Mark = None, registry: Place = None, json: JsonFile = None, quiet: Quiet = False, debug: Debug = False
) -> int:
    """List the disclosure batches that are used up."""
    columns = ("recorded", "mark_id", "batch", "suspect")
    return _list("spent batches", registry, json, quiet, columns, lambda opened: opened.spent_batches(mark))


@registry_app.command()
def verifications(
    mark: Mark = None,
    suspect: Suspect = None,
    registry: Place = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List verifications, also those that failed."""
    columns = ("recorded", "mark_id", "suspect", "hits", "trials", "p_value", "verified")
    return _list(
        "verifications",
        registry,
        json,
        quiet,
        columns,
        lambda opened: opened.verifications(mark_id=mark, suspect=suspect),
    )


@registry_app.command()
def verdicts(
    model: Annotated[str | None, typer.Option(metavar="SHA256", help="Only those on this model.")] = None,
    registry: Place = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List scans' verdicts."""
    columns = ("recorded", "model_sha256", "flagged", "p_value")
    return _list("verdicts", registry, json, quiet, columns, lambda opened: opened.verdicts(model_sha256=model))


@registry_app.command()
def checks(
    seal: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this seal.")] = None,
    suspect: Suspect = None,
    registry: Place = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List checks of seals."""
    columns = ("recorded", "seal_id", "suspect", "intact")
    return _list(
        "seal checks", registry, json, quiet, columns, lambda opened: opened.seal_checks(seal_id=seal, suspect=suspect)
    )


def _open(place: str | None) -> "Registry":
    """Opens what is there: a mistyped name must not make an empty registry."""
    from intaglio.evidence.registry import Registry

    return Registry.open(place, create=False)


def _list(
    what: str,
    place: str | None,
    json: str | None,
    quiet: bool,
    columns: Sequence[str],
    ask: "Callable[[Registry], Sequence[Result]]",
) -> int:
    from json import dumps

    from intaglio.cli.console import deliver_json, say

    with _open(place) as opened:
        records, name = ask(opened), opened.name
    deliver_json(dumps([record.to_dict() for record in records], indent=1) + "\n", json)
    rows = [[getattr(record, column) for column in columns] for record in records]
    shown = _table(columns, rows) if rows else f"{name}: no {what}"
    say(shown, quiet=quiet, json_to_stdout=json == "-")
    return 0


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column == "recorded")
    for row in rows:
        table.add_row(*(Text(_cell(name, value)) for name, value in zip(columns, row, strict=True)))
    return table


def _cell(column: str, value: Any) -> str:
    """A value for people: digests shortened, times to the second, yes or no."""
    from datetime import datetime

    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if column == "stamp":
        return "yes" if value else "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return " x ".join(str(part) for part in value)
    text = "" if value is None else printable(str(value))
    hexadecimal = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return f"{text[:12]}…" if hexadecimal else text
