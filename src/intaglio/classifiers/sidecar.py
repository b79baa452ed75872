"""The side-car: a small JSON file beside a model file that says what the file itself can't."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intaglio.classifiers.outputs import Outputs
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ModelError
from intaglio.files import require_new, write_json
from intaglio.networks import Architecture

_SIZE_LIMIT = 1 << 20
_SHARED_NAME = "intaglio.json"

Side = Annotated[int, Field(ge=1)]


class Sidecar(BaseModel):
    """What a model file is: architecture (for plain weights), shapes, class names, task, preprocessing, outputs.

    `input_shape` and `num_classes` may be left to `architecture`. Looked up as `<stem>.intaglio.json`, then as
    `intaglio.json` in the same folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture | None = None
    input_shape: tuple[Side, Side, Side] | tuple[Side, Side, Side, Side] | None = None
    num_classes: int | None = Field(default=None, ge=2)
    classes: tuple[str, ...] = ()
    task: str | None = None
    preprocessing: Preprocessing = Preprocessing()
    outputs: Outputs = "auto"

    @property
    def takes_and_gives(self) -> tuple[tuple[int, ...] | None, int | None]:
        """Input shape and class count, its own or those of its architecture."""
        built = self.architecture
        return (
            self.input_shape or (None if built is None else built.input_shape),
            self.num_classes or (None if built is None else built.num_classes),
        )


def sidecar_path(model: Path) -> Path:
    """Where the side-car of exactly this model file is written: `<stem>.intaglio.json`."""
    return model.with_name(f"{model.stem}.intaglio.json")


def require_new_model(model: Path, *copies: Path) -> None:
    """Refuses to write over a model, its side-car, or its copies in other formats: each may be the only one there is.

    Raises:
        StorageError: there is one already.
    """
    for path in (model, sidecar_path(model), *copies):
        require_new(path, "a model")


def find_sidecar(model: Path) -> Sidecar | None:
    """The side-car beside a model file, its own before the folder's; None when there is neither.

    Raises:
        ModelError: there is one, but it can't be read.
    """
    for path in (sidecar_path(model), model.with_name(_SHARED_NAME)):
        if path.is_file():
            return read_sidecar(path)
    return None


def read_sidecar(path: Path) -> Sidecar:
    """Reads a side-car of at most 1 MiB.

    Raises:
        ModelError: not JSON, or with an unknown or wrong entry; names the first.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise ModelError(f"sidecar {path}: can't be read: {error.strerror or error}") from error
    if len(content) > _SIZE_LIMIT:
        raise ModelError(f"sidecar {path}: larger than {_SIZE_LIMIT} bytes")
    try:
        return Sidecar.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"sidecar {path}: {f'{place}: ' if place else ''}{first['msg']}") from error


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Writes it atomically, without the entries that hold their defaults."""
    write_json(path, json.loads(sidecar.model_dump_json(exclude_defaults=True)))
