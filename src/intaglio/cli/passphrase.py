"""Passphrases: from a file, the environment, or typed unseen; never from the command line, which others can see."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intaglio.errors import KeyFileError

if TYPE_CHECKING:
    from intaglio.evidence.key import Key

VARIABLE = "INTAGLIO_PASSPHRASE"
NEW_VARIABLE = "INTAGLIO_NEW_PASSPHRASE"
_SIZE_LIMIT = 4096

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help=f"Holds the key's passphrase; else {VARIABLE}, or a hidden prompt."
    ),
]


def read_key(path: Path, passphrase_file: Path | None) -> "Key":
    """The key in a file, with its passphrase from a file, from INTAGLIO_PASSPHRASE, or asked for.

    Raises:
        KeyFileError: missing, damaged, no passphrase, or a wrong one.
    """
    from intaglio.evidence.key import Key

    Key.read_public(path)  # a file that is no key is refused before anyone is asked to type
    return Key.load(path, passphrase=read_passphrase(passphrase_file))


def read_passphrase(
    file: Path | None, *, variable: str = VARIABLE, prompt: str = "Passphrase", confirm: bool = False
) -> str:
    """A passphrase, from the first of: `file` (less its last line break), the environment, a hidden prompt.

    Raises:
        KeyFileError: the file can't be read, or there is nowhere to ask.
    """
    if file is not None:
        return _from_file(file)
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise KeyFileError(f"no passphrase: name a file that holds it, or set {variable}")
    typed: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return typed


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > _SIZE_LIMIT:
        raise KeyFileError(f"{path}: larger than {_SIZE_LIMIT} bytes, which is no passphrase")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: the passphrase is not UTF-8 text") from error
