"""Options of a method as text: read off the signature and docstring of its class, for command lines and catalogues."""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from intaglio.errors import RecipeError

_ATOMS = (bool, int, float, str, type(None))
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", type(None): "none"}


@dataclass(frozen=True)
class Option:
    """An option that text can set: its type, its default, and what it does.

    `training` marks those of training, which many methods share. With `digits` a number's default is shown rounded.
    """

    name: str
    kind: Any
    default: Any
    doc: str
    training: bool = False
    digits: int | None = None

    @property
    def shown_default(self) -> str:
        """The default as text that `read` takes."""
        if self.digits is not None and isinstance(self.default, float):
            return f"{self.default:.{self.digits}g}"
        return str(self.default).lower() if isinstance(self.default, bool | None) else str(self.default)

    @property
    def choices(self) -> str:
        """What may be given, in words."""
        words = [
            choice if isinstance(choice, str) else _KINDS[choice]
            for part in _parts(self.kind)
            for choice in (get_args(part) if get_origin(part) is Literal else (part,))
        ]
        return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            RecipeError: it stands for none.
        """
        if text == "none" and type(None) in _parts(self.kind):
            return None
        try:
            return TypeAdapter(self.kind).validate_python(text)
        except ValidationError as error:
            raise RecipeError(f"option {self.name} must be {self.choices}, got '{text}'") from error


def own_options(method: type, *, left_out: Collection[str] = (), digits: int | None = None) -> dict[str, Option]:
    """The options of a class that text can set, by name: those of its constructor with plain types or choices."""
    hints = get_type_hints(method.__init__)  # type: ignore[misc]
    docs = _argument_docs(inspect.getdoc(method) or "")
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or name in left_out:
            continue
        kinds = tuple(part for part in _parts(hints[name]) if part in _ATOMS or get_origin(part) is Literal)
        if any(kind is not type(None) for kind in kinds):
            found[name] = Option(name, Union[kinds], parameter.default, docs.get(name, ""), digits=digits)  # noqa: UP007
    return found


def read_options(name: str, known: Mapping[str, Option], texts: Mapping[str, str]) -> dict[str, Any]:
    """The values that texts stand for, for a method of this name.

    Raises:
        RecipeError: an option that it doesn't have, or a value that makes no sense.
    """
    values = {}
    for option, text in texts.items():
        if option not in known:
            raise RecipeError(f"{name} has no option '{option}'; it has {', '.join(known)}")
        try:
            values[option] = known[option].read(text)
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}") from error
    return values


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none, itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _argument_docs(docstring: str) -> dict[str, str]:
    """What stands under `Args:`, by argument."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = re.split(r"\n\n|\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
