"""What a population's folder says about itself: one record per model, and a manifest over all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from intaglio.errors import DataError
from intaglio.files import write_json
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings

#: Lies in a failed model's folder, in place of its record; without it the model is built anew.
FAILED = "failed.json"
Record = TypeVar("Record", bound=BaseModel)


class ModelRecord(BaseModel):
    """One model: what it was made from and how it turned out. `sha256` is that of its weights file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    seed: int
    task: str
    architecture: Architecture
    training: TrainingSettings
    attack: dict[str, Any] | None
    clean_accuracy: float
    asr: float | None
    sha256: str
    seconds: float

    @property
    def backdoored(self) -> bool:
        """Whether an attack was planted, however well it works."""
        return self.attack is not None

    @property
    def family(self) -> str:
        """ "clean", or the attack as `trigger/goal`."""
        return "clean" if self.attack is None else f"{self.attack['trigger']}/{self.attack['goal']['kind']}"


class FailedModel(BaseModel):
    """A model that its recipe or the data do not allow, and why. Trying again would fail again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    seed: int
    reason: str


def model_folder(out: Path, index: int) -> Path:
    """Where model `index` lies."""
    return out / f"{index:05d}"


def read_records(out: Path) -> list[ModelRecord]:
    """The records of all finished models, by index; failed ones have none.

    Raises:
        DataError: a record that is damaged.
    """
    return sorted(_read(out, "record.json", ModelRecord), key=lambda record: record.index)


def read_failures(out: Path) -> list[FailedModel]:
    """The models that could not be trained, by index.

    Raises:
        DataError: a record of a failure that is damaged.
    """
    return sorted(_read(out, FAILED, FailedModel), key=lambda failure: failure.index)


def _read(out: Path, name: str, kind: type[Record]) -> Iterator[Record]:
    for path in sorted(out.glob(f"[0-9]*/{name}")):
        try:
            yield kind.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise DataError(f"{path}: damaged record; remove its folder and build again") from error


def write_manifest(out: Path, recipe: dict[str, Any], digest: str) -> None:
    """Writes `manifest.json`: the recipe, its digest, every finished model's record, and which models failed."""
    records = [record.model_dump(mode="json") for record in read_records(out)]
    failed = [failure.model_dump(mode="json") for failure in read_failures(out)]
    write_json(out / "manifest.json", {"recipe": recipe, "recipe_sha256": digest, "models": records, "failed": failed})
