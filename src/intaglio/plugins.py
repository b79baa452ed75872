"""Plug-ins: detectors, triggers and tamperings that installed packages offer by entry point, loaded when asked for."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Any, Literal, TypeVar, cast

from intaglio.errors import IntaglioError, RecipeError

#: What can be plugged in; the entry points' group is `intaglio.detectors`, and so on.
Kind = Literal["detector", "trigger", "tampering"]
Method = TypeVar("Method")


def known_names(kind: Kind, builtin: Mapping[str, object]) -> tuple[str, ...]:
    """The names that `named` takes: built-in ones, then those of plug-ins. Nothing is imported for it."""
    offered = {entry.name for entry in _offered(kind)}
    return (*builtin, *sorted(offered - builtin.keys()))


def named(kind: Kind, name: str, builtin: Mapping[str, Method], base: type) -> Method:
    """The built-in class of this name, else the one that an installed package offers.

    A plug-in can't take a built-in name's place. Only the one asked for is imported.

    Args:
        base: what a plug-in's class must be a subclass of.

    Raises:
        RecipeError: unknown.
        IntaglioError: two packages offer it, or one does whose entry can't be imported or is no such class.
    """
    if name in builtin:
        return builtin[name]
    entries = [entry for entry in _offered(kind) if entry.name == name]
    if not entries:
        raise RecipeError(f"unknown {kind} '{name}'; known are {', '.join(known_names(kind, builtin))}")
    if len(entries) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        raise IntaglioError(f"{kind} '{name}' is offered by the packages {packages}: uninstall all but one")
    return cast(Method, _load(entries[0], kind, base))


def _offered(kind: Kind) -> set[EntryPoint]:
    """Entry points of this kind; a package found twice on the path counts once."""
    return set(entry_points(group=f"intaglio.{kind}s"))


def _load(entry: EntryPoint, kind: Kind, base: type) -> Any:
    where = f"{kind} '{entry.name}' of package {_package(entry)} ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:  # whatever a stranger's module raises while it is imported
        reason = " ".join(str(error).split())
        raise IntaglioError(f"{where} can't be imported: {type(error).__name__}: {reason}") from error
    if not isinstance(found, type) or not issubclass(found, base):
        what = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
        raise IntaglioError(f"{where} is {what}, not a subclass of {base.__module__}.{base.__name__}")
    if isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise IntaglioError(f"{where} is abstract: it lacks {missing}")
    if getattr(found, "name", None) != entry.name:
        raise IntaglioError(f"{where} calls itself {getattr(found, 'name', None)!r}: entry point and name must agree")
    return found


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "?"
