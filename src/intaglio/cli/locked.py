"""What the commands of `intaglio lock` open, and how they show a leak table."""

from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.cli.model import open_model
from intaglio.cli.passphrase import read_key

if TYPE_CHECKING:
    from intaglio.classifiers import Classifier
    from intaglio.evidence.key import Key
    from intaglio.lock import LeakTable, Lock


def open_locked(
    model: str,
    owner: "Key",
    arch: str | None,
    input_shape: str | None,
    classes: int | None,
    preprocess: str | None,
    device: str,
) -> "Classifier":
    """The locked model, from whatever it was written as."""
    from intaglio.lock.container import SUFFIX
    from intaglio.lock.sealed_model import open_sealed

    if Path(model).suffix == SUFFIX:
        return open_sealed(model, owner)
    return open_model(model, arch, input_shape, classes, preprocess, device)


def open_lock(folder: Path, key: Path, passphrase_file: Path | None) -> "Lock":
    from intaglio.lock import Lock

    return Lock.open(folder, read_key(key, passphrase_file))


def show(table: "LeakTable", json: str | None, quiet: bool, title: str) -> int:
    from intaglio.cli.console import deliver_json, say

    deliver_json(table.to_json(), json)
    advice = ["to refuse such keys: intaglio lock refine MODEL --unlocked ... --out ..."] if table.wrong_keys else []
    say(title, *table.lines(), *advice, quiet=quiet, json_to_stdout=json == "-")
    return int(not (table.tight and table.opens))
