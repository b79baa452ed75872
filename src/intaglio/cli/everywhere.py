"""What holds for every command: options that all of them take, and what they write goes over nothing that was named.

Scripts may pass the same options to all commands alike, those included that have no use for them.
"""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from intaglio.files import PNG, require_writable, starts_as

#: Options that name a file to write a result to; those for a claim or a model refuse any file that is there.
_WRITTEN = frozenset({"json", "html"})
_BEGINNINGS = {"json": (b"{", b"["), "html": (b"<",)}
_SIDECAR = "intaglio.json"
_IDLE = "Taken by every command; this one has no use for it."
#: Name -> its annotation and default, where a command has no such parameter of its own.
_UNUSED: dict[str, tuple[Any, Any]] = {
    "seed": (Annotated[int, typer.Option(help=_IDLE)], 0),
    "device": (Annotated[str, typer.Option(help=_IDLE)], "cpu"),
}


def complete(app: typer.Typer) -> None:
    """Lets every command of an app, and of the apps in it, take `--seed` and `--device`, and keep what it was given."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _taking_more(_sparing(command.callback))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            complete(group.typer_instance)


def require_apart(target: Path | str | None, *kept: Any, option: str = "--json") -> None:
    """Refuses, as wrong usage, to write over a file that is read, or that can't be made again.

    Args:
        target: what `option` said; `-` is standard output.
        kept: paths; anything else is passed over.
    """
    written = None if target in (None, "-") else _real(target)
    if written is None or (os.path.exists(written) and not os.path.isfile(written)):  # a device keeps nothing
        return
    if any(_real(path) == written for path in kept):
        raise typer.BadParameter(f"{Path(str(target))} would be written over", param_hint=option)


def _require_like(target: Path | str | None, kind: str) -> None:
    """Refuses a result over a file of another kind, or over a side-car: what a folder holds isn't named."""
    written = None if target in (None, "-") else _real(target)
    if written is None or not os.path.isfile(written):
        return
    if written.endswith(_SIDECAR) or not starts_as(written, *_BEGINNINGS[kind]):
        raise typer.BadParameter(
            f"{target} would be written over: it is there already, and no earlier result", param_hint=f"--{kind}"
        )


def require_picture(out: Path) -> None:
    """Refuses, before any work, what no picture can be written to: another name than .png, or a file of another kind.

    Raises:
        StorageError: it can't be written.
    """
    if out.suffix.lower() != ".png" or not starts_as(out, PNG):
        raise typer.BadParameter(f"{out}: a picture is written as .png, and over nothing else", param_hint="--out")
    require_writable(out)


def _real(value: Any) -> str | None:
    try:
        return os.path.realpath(value) if isinstance(value, Path | str) else None
    except (OSError, ValueError):  # no path at all
        return None


def _sparing(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        for written in _WRITTEN & options.keys():
            named = [value for name, value in options.items() if name != written]
            listed = [part for value in named if isinstance(value, list | tuple) for part in value]
            require_apart(options[written], *named, *listed, option=f"--{written}")
            _require_like(options[written], written)
        return callback(*arguments, **options)

    return wrapped


def _taking_more(callback: Callable[..., Any]) -> Callable[..., Any]:
    own = inspect.signature(callback)
    more = {name: extra for name, extra in _UNUSED.items() if name not in own.parameters}
    if not more:
        return callback

    @functools.wraps(callback)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        return callback(*arguments, **{name: value for name, value in options.items() if name not in more})

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in more.items()
    ]
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = callback.__annotations__ | {name: kind for name, (kind, _) in more.items()}
    return wrapped
