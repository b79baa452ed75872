"""`intaglio key`: make, look at and re-encrypt the owner's key."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.options import Debug, JsonFile, Quiet
from intaglio.cli.passphrase import NEW_VARIABLE, PassphraseFile, read_key, read_passphrase

key_app = typer.Typer(name="key", no_args_is_help=True, help="Make, show and re-encrypt keys.")

KeyFile = Annotated[Path, typer.Argument(help="The key's file.", metavar="FILE")]


@key_app.command()
def new(
    file: KeyFile,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Make a new key in FILE, encrypted with a passphrase. Never overwrites: a lost key can't be made again."""
    from intaglio.cli.console import require_deliverable
    from intaglio.evidence.key import Key
    from intaglio.files import require_new

    require_new(file, "a key")
    require_deliverable(json)
    key = Key.generate()
    key.save(file, passphrase=read_passphrase(passphrase_file, prompt="New passphrase", confirm=True))
    _tell(file, key.public_key, json, quiet)
    return 0


@key_app.command()
def show(
    file: KeyFile,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Show FILE's public key, without its passphrase; with --passphrase-file, also check that it opens."""
    from intaglio.evidence.key import Key

    public_key = Key.read_public(file) if passphrase_file is None else read_key(file, passphrase_file).public_key
    _tell(file, public_key, json, quiet)
    return 0


@key_app.command()
def rotate(
    file: KeyFile,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Holds the new passphrase; else {NEW_VARIABLE}, or a hidden prompt."),
    ] = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Encrypt FILE under a new passphrase. The key stays the same, and older copies of FILE still open as before."""
    from intaglio.cli.console import require_deliverable

    require_deliverable(json)
    key = read_key(file, passphrase_file)
    passphrase = read_passphrase(new_passphrase_file, variable=NEW_VARIABLE, prompt="New passphrase", confirm=True)
    key.save(file, passphrase=passphrase, overwrite=True)
    _tell(file, key.public_key, json, quiet)
    return 0


def _tell(file: Path, public_key: bytes, json: str | None, quiet: bool) -> None:
    import json as text

    from intaglio.cli.console import deliver_json, say
    from intaglio.evidence.envelope import fingerprint

    facts = {"file": str(file), "public_key": public_key.hex(), "fingerprint": fingerprint(public_key)}
    deliver_json(text.dumps(facts, indent=1) + "\n", json)
    say(
        f"{file}: public key {facts['public_key']}",
        f"fingerprint {facts['fingerprint']}",
        quiet=quiet,
        json_to_stdout=json == "-",
    )
