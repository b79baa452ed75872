"""Tamperings by name, with their options as text: what the command line shows and takes."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from intaglio.errors import IntaglioError, RecipeError
from intaglio.plugins import known_names
from intaglio.tampering import TAMPERINGS, tampering_named
from intaglio.tampering.retraining import OPTION_DOCS, Retraining
from intaglio.tampering.tampering import Tampering
from intaglio.training import TrainingSettings

_ATOMS = (bool, int, float, str, type(None))
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", type(None): "none"}


@dataclass(frozen=True)
class Option:
    """An option of a tampering that text can set: its type, its default, what it does, and whether it is training's."""

    name: str
    kind: Any
    default: Any
    doc: str
    training: bool = False

    @property
    def shown_default(self) -> str:
        """The default as text that `read` takes."""
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


def options_of(tampering: type[Tampering]) -> dict[str, Option]:
    """The options of a tampering that text can set, by name; its own first, then those of training."""
    hints = get_type_hints(tampering.__init__)
    docs = _argument_docs(inspect.getdoc(tampering) or "")
    found: dict[str, Option] = {}
    for name, parameter in inspect.signature(tampering).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= _training_options(tampering)
        elif kinds := [part for part in _parts(hints[name]) if part in _ATOMS or get_origin(part) is Literal]:
            found[name] = Option(name, Union[tuple(kinds)], parameter.default, docs.get(name, ""))  # noqa: UP007
    return found


def make_tampering(name: str, options: Mapping[str, str], **objects: Any) -> Tampering:
    """The tampering of this name with options given as text, and with `objects` that no text can stand for.

    Raises:
        RecipeError: an unknown name or option, or a value that makes no sense; the message names the choices.
        IntaglioError: a plug-in that can't be used.
    """
    tampering = tampering_named(name)
    known = options_of(tampering)
    values: dict[str, Any] = {}
    for option, text in options.items():
        if option not in known:
            raise RecipeError(f"{name} has no option '{option}'; it has {', '.join(known)}")
        try:
            values[option] = known[option].read(text)
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}") from error
    try:
        return tampering(**values, **objects)
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error


def catalogue() -> Iterator[str]:
    """Every tampering with its options and their defaults, as lines for a person; plug-ins that are broken say so."""
    training: dict[str, Option] = {}
    for name in known_names("tampering", TAMPERINGS):
        try:
            tampering = tampering_named(name)
        except IntaglioError as error:
            yield f"{name}: {error}"
            continue
        options = options_of(tampering).values()
        purpose = inspect.getdoc(tampering) or ""
        yield f"{name}{' (needs data)' if tampering.needs_data else ''}: {purpose.splitlines()[0]}"
        for option in options:
            if not option.training:
                yield f"    {option.name}={option.shown_default}  {option.doc} [{option.choices}]"
        if trained := [option for option in options if option.training]:
            training |= {option.name: option for option in trained}
            yield f"    training: {' '.join(f'{option.name}={option.shown_default}' for option in trained)}"
    yield "Options of training:"
    for option in training.values():
        yield f"    {option.name}  {option.doc} [{option.choices}]"


def _training_options(tampering: type[Tampering]) -> dict[str, Option]:
    defaults: Mapping[str, Any] = getattr(tampering, "training_defaults", {})
    fields = TrainingSettings.model_fields
    return {
        name: Option(name, kind, defaults.get(name, fields[name].default), OPTION_DOCS[name], training=True)
        for name, kind in get_type_hints(Retraining).items()
    }


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none, itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _argument_docs(docstring: str) -> dict[str, str]:
    """What stands under `Args:`, by argument."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = re.split(r"\n\n|\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
