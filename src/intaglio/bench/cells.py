"""One cell of a bench: one detector on one model. Finished cells are kept and never repeated."""

import time
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from intaglio.bench.memory import PeakMemory
from intaglio.bench.recipe import BenchRecipe, slug
from intaglio.bench.victims import open_given, open_network, read_victim, victim_folder
from intaglio.classifiers import TorchClassifier
from intaglio.errors import DataError, IntaglioError
from intaglio.files import write_json
from intaglio.results import package_versions
from intaglio.scan import scan

CELLS = "cells"


class Cell(BaseModel):
    """What a detector said of a model, and what that cost. `failed` says why it could say nothing.

    `by`: what the score is of, where a detector has several (a task's networks, or task-free ones; a stack, or a member
    alone); scores of different kinds are not comparable. `confidence`: how sure the model is of its answers, where that
    decides which clean models it is ranked among. `peak_memory_mb`: the highest resident memory of the worker's process
    while the detector ran, with interpreter, libraries, model and images; None on systems that can't say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str
    row: str
    index: int
    score: float | None = None
    by: str | None = None
    p_value: float | None = None
    calibrated: bool | None = None
    confidence: float | None = None
    guess: int | None = None
    seconds: float = 0.0
    queries: int = 0
    peak_memory_mb: float | None = None
    failed: str | None = None
    versions: dict[str, str] = {}  #: of what decided its numbers; older cells don't say


class CellJob(NamedTuple):
    """What a worker is sent: one cell to fill."""

    recipe: BenchRecipe
    source: str
    detector: str
    row: str
    number: int
    out: Path


def cell_path(out: Path, detector: str, row: str, index: int) -> Path:
    """Where a cell is kept."""
    return out / CELLS / slug(detector) / slug(row) / f"{index:03d}.json"


def read_cell(path: Path) -> Cell:
    """A finished cell.

    Raises:
        DataError: damaged.
    """
    try:
        return Cell.model_validate_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged cell; remove it and run again") from error


def without_model(detector: str, row: str, index: int, reason: str) -> Cell:
    """The cell of a model that could not be made; it isn't kept, for the model may be made yet."""
    return Cell(detector=detector, row=row, index=index, failed=f"no model: {reason}")


def fill_cell(job: CellJob) -> Cell:
    """Examines one model with one detector and keeps what it said, if there is a model.

    Raises:
        StorageError: the cell can't be written.
    """
    folder = victim_folder(job.out, job.row, job.number)
    victim = read_victim(folder)
    if victim is None:
        return without_model(job.detector, job.row, job.number, "not built")
    if victim.failed is not None:
        return without_model(job.detector, job.row, job.number, victim.failed)
    cell = Cell(detector=job.detector, row=job.row, index=job.number, versions=package_versions())
    given = open_given(folder, job.recipe, job.source)
    architecture = victim.architecture
    classifier = TorchClassifier(
        open_network(folder, architecture),
        input_shape=architecture.input_shape,
        num_classes=architecture.num_classes,
    )
    started, memory = time.perf_counter(), PeakMemory()
    try:
        verdict = scan(
            classifier,
            given.clean,
            job.recipe.task,
            seed=victim.seed,
            detector=job.detector,
            training=given.training,
            inputs=given.inputs,
        )
    except IntaglioError as error:
        cell = cell.model_copy(update={"failed": str(error), "seconds": time.perf_counter() - started})
    else:
        cell = cell.model_copy(
            update={
                "score": verdict.score,
                "by": f"{verdict.detector}, {'' if verdict.calibrated else 'not '}calibrated",
                "p_value": verdict.p_value,
                "calibrated": verdict.calibrated,
                "confidence": verdict.calibration.confidence,
                "guess": verdict.evidence[0].index,
                "seconds": verdict.seconds,
                "queries": verdict.queries,
                "peak_memory_mb": memory.megabytes(),
            }
        )
    write_json(cell_path(job.out, job.detector, job.row, job.number), cell.model_dump(mode="json"))
    return cell
