"""Attacks by name, with their options as text: what the command line shows and takes."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from intaglio.attacks import ATTACKS, Attack
from intaglio.errors import RecipeError

_ATOMS = (bool, int, float, str, type(None))
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", type(None): "none"}


class Option(NamedTuple):
    """An option of an attack that text can set: the types it may have, its default, and what it does."""

    kinds: tuple[Any, ...]
    default: Any
    doc: str

    @property
    def choices(self) -> str:
        """What may be given, in words."""
        words: list[str] = []
        for kind in self.kinds:
            words += get_args(kind) if get_origin(kind) is Literal else [_KINDS[kind]]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

    @property
    def shown_default(self) -> str:
        """The default as text that `read` takes."""
        if isinstance(self.default, float):
            return f"{self.default:.6g}"
        return str(self.default).lower() if isinstance(self.default, bool | None) else str(self.default)

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            RecipeError: it stands for none.
        """
        if text == "none" and type(None) in self.kinds:
            return None
        kind: Any = Union[self.kinds]  # noqa: UP007
        try:
            return TypeAdapter(kind).validate_python(text)
        except ValidationError as error:
            raise RecipeError(f"must be {self.choices}, got '{text}'") from error


def options_of(attack: type[Attack]) -> dict[str, Option]:
    """The options of an attack that text can set, by name; not its seed, which the command line has for itself."""
    hints = get_type_hints(attack.__init__)
    docs = _argument_docs(inspect.getdoc(attack) or "")
    found = {}
    for name, parameter in inspect.signature(attack).parameters.items():
        kinds = tuple(part for part in _parts(hints[name]) if part in _ATOMS or get_origin(part) is Literal)
        if name != "seed" and any(kind is not type(None) for kind in kinds):
            found[name] = Option(kinds, parameter.default, docs.get(name, ""))
    return found


def make_attack(name: str, options: Mapping[str, str], *, seed: int = 0) -> Attack:
    """The attack of this name with options given as text.

    Raises:
        RecipeError: an unknown name or option, or a value that makes no sense; the message names the choices.
    """
    if name not in ATTACKS:
        raise RecipeError(f"unknown attack '{name}'; known are {', '.join(ATTACKS)}")
    known = options_of(ATTACKS[name])
    values: dict[str, Any] = {"seed": seed}
    for option, text in options.items():
        if option not in known:
            raise RecipeError(f"{name} has no option '{option}'; it has {', '.join(known)}")
        try:
            values[option] = known[option].read(text)
        except RecipeError as error:
            raise RecipeError(f"{name}: option {option} {error}") from error
    family: Callable[..., Attack] = ATTACKS[name]
    try:
        return family(**values)
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error


def catalogue() -> Iterator[str]:
    """Every attack with its options and their defaults, as lines for a person."""
    for name, attack in ATTACKS.items():
        kind = "clean label" if attack.clean_label else "dirty label"
        yield f"{name} ({kind}): {(inspect.getdoc(attack) or '').splitlines()[0]}"
        for option, entry in options_of(attack).items():
            yield f"    {option}={entry.shown_default}  {entry.doc} [{entry.choices}]"


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none, itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _argument_docs(docstring: str) -> dict[str, str]:
    """What stands under `Args:`, by argument."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = re.split(r"\n\n|\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
