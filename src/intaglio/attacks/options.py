"""Attacks by name, with their options as text: what the command line shows and takes."""

import inspect
from collections.abc import Callable, Iterator, Mapping

from intaglio.attacks import ATTACKS, Attack
from intaglio.errors import RecipeError
from intaglio.textual_options import Option, own_options, read_options

#: Of shown defaults: many are n / 255.
_DIGITS = 6


def options_of(attack: type[Attack]) -> dict[str, Option]:
    """The options of an attack that text can set, by name; not its seed, which the command line has for itself."""
    return own_options(attack, left_out=("seed",), digits=_DIGITS)


def make_attack(name: str, options: Mapping[str, str], *, seed: int = 0) -> Attack:
    """The attack of this name with options given as text.

    Raises:
        RecipeError: an unknown name or option, or a value that makes no sense; the message names the choices.
    """
    if name not in ATTACKS:
        raise RecipeError(f"unknown attack '{name}'; known are {', '.join(ATTACKS)}")
    values = read_options(name, options_of(ATTACKS[name]), options)
    family: Callable[..., Attack] = ATTACKS[name]
    try:
        return family(**values, seed=seed)
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error


def catalogue() -> Iterator[str]:
    """Every attack with its options and their defaults, as lines for a person."""
    for name, attack in ATTACKS.items():
        kind = "clean label" if attack.clean_label else "dirty label"
        yield f"{name} ({kind}): {(inspect.getdoc(attack) or '').splitlines()[0]}"
        for option, entry in options_of(attack).items():
            yield f"    {option}={entry.shown_default}  {entry.doc} [{entry.choices}]"
