"""Tamperings by name, with their options as text: what the command line shows and takes."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from intaglio.errors import IntaglioError, RecipeError
from intaglio.plugins import known_names
from intaglio.tampering import TAMPERINGS, tampering_named
from intaglio.tampering.retraining import OPTION_DOCS, Retraining
from intaglio.tampering.tampering import Tampering
from intaglio.textual_options import Option, own_options, read_options
from intaglio.training import TrainingSettings


def options_of(tampering: type[Tampering]) -> dict[str, Option]:
    """The options of a tampering that text can set, by name; its own first, then those of training."""
    found = own_options(tampering)
    kinds = {parameter.kind for parameter in inspect.signature(tampering).parameters.values()}
    return found | _training_options(tampering) if inspect.Parameter.VAR_KEYWORD in kinds else found


def make_tampering(name: str, options: Mapping[str, str], **objects: Any) -> Tampering:
    """The tampering of this name with options given as text, and with `objects` that no text can stand for.

    Raises:
        RecipeError: an unknown name or option, or a value that makes no sense; the message names the choices.
        IntaglioError: a plug-in that can't be used.
    """
    tampering = tampering_named(name)
    values = read_options(name, options_of(tampering), options)
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
