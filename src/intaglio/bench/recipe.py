"""A bench's recipe: which attacks meet which detectors, on how many models, trained how."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from intaglio.attacks import ATTACKS, Attack
from intaglio.errors import IntaglioError
from intaglio.networks import NETWORKS, Architecture
from intaglio.populations.reading import read_yaml
from intaglio.populations.recipe import MAX_MODELS
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings

CLEAN = "clean"


def slug(name: str) -> str:
    """A row's or detector's name as a folder's: one inside its parent, never `.` or `..`."""
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name.lower())
    return folder if folder.strip(".") else "-" * len(folder)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkRow(_Part):
    """A network by name and width; models take them in turn."""

    name: str
    width: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "NetworkRow":
        if self.name not in NETWORKS:
            raise ValueError(f"unknown architecture '{self.name}'; known are {', '.join(sorted(NETWORKS))}")
        return self


class AttackRow(_Part):
    """One row of the table: an attack with its options. The target class goes round the classes if none is given."""

    attack: str
    label: str = ""
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "AttackRow":
        try:
            self.make(10, 0, 0)
        except (TypeError, ValueError, AttributeError, ArithmeticError, IntaglioError) as error:
            raise ValueError(f"attack {self.attack}: {error}") from error
        if self.title == CLEAN:
            raise ValueError(f"'{CLEAN}' is the row of clean models")
        return self

    @property
    def title(self) -> str:
        """How the row is called."""
        return self.label or self.attack

    def make(self, num_classes: int, index: int, seed: int) -> Attack:
        """The attack of victim `index`.

        Raises:
            ValueError: no attack of this name.
            TypeError: an option that it doesn't have.
            IntaglioError: an option's value makes no sense.
        """
        if self.attack not in ATTACKS:
            raise ValueError(f"unknown; known are {', '.join(ATTACKS)}")
        return ATTACKS[self.attack](**{"target": index % num_classes, "seed": seed, **self.options})


class BenchRecipe(_Part):
    """Attack x detector: `models` victims of every attack and `clean` models, each examined by every detector.

    Model i of a row depends on `seed`, the row's title and i alone, so rows and models can be added later; whatever is
    finished stays. `asked` images, half of them triggered, stand for what a model is asked in use.
    """

    name: str
    task: str = Field(description="a task's name; its bundled images are used unless `data` names others")
    data: str | None = Field(default=None, description="path of a data set, relative to the recipe's folder")
    samples: int | None = Field(default=None, ge=1, description="use only so many training images, classes in turn")
    seed: int = 0
    clean: int = Field(default=40, ge=2, le=MAX_MODELS)
    models: int = Field(default=12, ge=1, le=MAX_MODELS)
    asked: int = Field(default=200, ge=20, multiple_of=2)
    architectures: tuple[NetworkRow, ...] = Field(min_length=1)
    training: TrainingSettings = TrainingSettings()
    attacks: tuple[AttackRow, ...] = Field(min_length=1)
    detectors: tuple[str, ...] = Field(min_length=1)
    _folder: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _check(self) -> "BenchRecipe":
        for names in ([CLEAN, *(row.title for row in self.attacks)], list(self.detectors)):
            folders = [slug(name) for name in names]
            twice = {name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1}
            if twice:
                raise ValueError(
                    f"{', '.join(sorted(twice))}: named twice, or alike but for capitals and punctuation; give rows of "
                    "one attack labels"
                )
        return self

    @property
    def source(self) -> str:
        """Where the images come from: `data`, seen from the recipe's folder, or the task itself."""
        return str(self._folder / self.data) if self.data else self.task

    @property
    def digest(self) -> str:
        """SHA-256 over what decides a model: not the lists of rows and detectors, which may grow."""
        left_out = {"models", "clean", "attacks", "detectors"}
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()

    def specifications(self) -> dict[str, dict[str, Any]]:
        """What every attack's row says, by title."""
        return {row.title: row.model_dump(mode="json") for row in self.attacks}

    def row(self, title: str) -> AttackRow | None:
        """The attack of this title; None for clean models."""
        return next((row for row in self.attacks if row.title == title), None)

    def rows(self) -> list[tuple[str, int]]:
        """Every row's title and number of models, clean ones first: others are compared with them."""
        return [(CLEAN, self.clean), *((row.title, self.models) for row in self.attacks)]

    def model_seed(self, title: str, index: int) -> int:
        """The seed that all of one model follows from."""
        return derive_seed(self.seed, "bench", self.name, title, index)

    def network(self, index: int, input_shape: tuple[int, ...], num_classes: int) -> Architecture:
        """The network of model `index`."""
        chosen = self.architectures[index % len(self.architectures)]
        return Architecture(name=chosen.name, input_shape=input_shape, num_classes=num_classes, width=chosen.width)


def read_bench_recipe(path: Path | str) -> BenchRecipe:
    """Reads a recipe; a relative `data` path is resolved against the recipe's folder.

    Raises:
        RecipeError: missing, not YAML, or with a value that makes no sense (the first one is named).
    """
    recipe = read_yaml(path, BenchRecipe)
    recipe._folder = Path(path).resolve().parent
    return recipe
