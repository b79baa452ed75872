"""Options that every command takes, those included that have no use for them: scripts may pass them to all alike."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_IDLE = "Taken by every command; this one has no use for it."
#: Name -> its annotation and default, where a command has no such parameter of its own.
_UNUSED: dict[str, tuple[Any, Any]] = {
    "seed": (Annotated[int, typer.Option(help=_IDLE)], 0),
    "device": (Annotated[str, typer.Option(help=_IDLE)], "cpu"),
}


def complete(app: typer.Typer) -> None:
    """Lets every command of an app, and of the apps in it, take `--seed` and `--device`."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _taking_more(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            complete(group.typer_instance)


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
