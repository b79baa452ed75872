"""What a population's folder says about itself: one record per model, and a manifest over all of them."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from intaglio.errors import DataError
from intaglio.files import write_json
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings


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


def model_folder(out: Path, index: int) -> Path:
    """Where model `index` lies."""
    return out / f"{index:05d}"


def read_records(out: Path) -> list[ModelRecord]:
    """The records of all finished models, by index.

    Raises:
        DataError: a record that is damaged.
    """
    records = []
    for path in sorted(out.glob("[0-9]*/record.json")):
        try:
            records.append(ModelRecord.model_validate_json(path.read_bytes()))
        except (ValidationError, OSError) as error:
            raise DataError(f"{path}: damaged record; remove its folder and build again") from error
    return sorted(records, key=lambda record: record.index)


def write_manifest(out: Path, recipe: dict[str, Any], digest: str) -> None:
    """Writes `manifest.json`: the recipe, its digest, and every finished model's record."""
    records = [record.model_dump(mode="json") for record in read_records(out)]
    write_json(out / "manifest.json", {"recipe": recipe, "recipe_sha256": digest, "models": records})
