"""Options of a scheme as text: what `mark embed --option` takes."""

from collections.abc import Callable, Mapping
from typing import Any

from intaglio.mark.deep_fidelity import DeepFidelity
from intaglio.mark.marking import scheme_named
from intaglio.textual_options import Option, own_options, read_options

#: What the command line has for itself; `batch_size` means triggers there, and clean images here.
_LEFT_OUT = ("mode", "epochs", "learning_rate", "batch_size")


def scheme_options(scheme: type[DeepFidelity]) -> dict[str, Option]:
    """The options of a scheme that text can set, by name: those of `DeepFidelity`, and its own."""
    return own_options(DeepFidelity, left_out=_LEFT_OUT) | own_options(scheme, left_out=_LEFT_OUT)


def read_scheme_options(name: str, texts: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the scheme of this name: those that texts stand for, and those that are `given` as they are.

    Raises:
        RecipeError: an unknown scheme or option, or a value that makes no sense; the message names the choices.
    """
    scheme: Callable[..., DeepFidelity] = scheme_named(name)
    options = {**given, **read_options(name, scheme_options(scheme_named(name)), texts)}
    scheme(**options)  # refuses what makes no sense
    return options
