"""Building a population: resumable, in parallel, and the same models whatever the order or the interruptions."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from intaglio.data import TASKS, ImageData, classes_in_turn, open_data
from intaglio.data.matching import in_classes_of
from intaglio.errors import ClassifierError, DataError, NothingToExamineError, RecipeError
from intaglio.files import holding, write_json
from intaglio.populations.build import build_model
from intaglio.populations.executor import Executor, LocalExecutor
from intaglio.populations.manifest import (
    FAILED,
    FailedModel,
    ModelRecord,
    model_folder,
    read_failures,
    read_records,
    write_manifest,
)
from intaglio.populations.recipe import Plan, Recipe

RECIPE = "recipe.json"


class Job(NamedTuple):
    """What a worker is sent: one model to build."""

    plan: Plan
    source: str
    samples: int | None
    task: str
    out: Path


def build_population(
    recipe: Recipe,
    out: Path | str,
    *,
    data: str | Path | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ModelRecord]:
    """Builds what is missing of the population in `out` and returns all its records.

    A model whose training diverges, or whose attack the data don't allow, is kept as failed, with the reason
    (`read_failures`, and `failed` in the manifest): it would fail again. Remove its folder to try nevertheless.

    Args:
        data: overrides the recipe's data source (the recipe's digest stays the same).
        progress: called with (models finished, models in all).

    Raises:
        RecipeError: `out` holds a population of another recipe, or of other data.
        DataError: the images can't be read, or are the same for training and test; or a file of the population is
            damaged.
        StorageError: `out` can't be written, or another run is at work in it.
        ClassifierError: not one model could be trained.
    """
    out = Path(out)
    source = str(data or recipe.source)
    if not (out / RECIPE).exists():
        splits_digest(settled(source), recipe.samples)  # a bad data set is reported once, here, and leaves nothing
    with holding(out, wait=False):  # two runs would remove each other's half-built models
        _claim(out, recipe, source)
        return _build(recipe, out, settled(source), executor or LocalExecutor(), progress)


def _build(
    recipe: Recipe, out: Path, source: str, executor: Executor, progress: Callable[[int, int], None] | None
) -> list[ModelRecord]:
    done = {record.index for record in read_records(out)} | {failure.index for failure in read_failures(out)}
    missing = [index for index in range(recipe.models) if index not in done]
    jobs = [Job(recipe.plan(index), source, recipe.samples, recipe.task, out) for index in missing]
    finished = recipe.models - len(missing)
    try:
        if progress is not None:
            progress(finished, recipe.models)
        if jobs:  # of a finished population the data may be gone
            require_images(out / RECIPE, splits_digest(source, recipe.samples))
        for _ in executor.map(run_job, jobs):
            finished += 1
            if progress is not None:
                progress(finished, recipe.models)
    finally:
        for scratch in out.glob(".building-*"):
            shutil.rmtree(scratch, ignore_errors=True)
        write_manifest(out, recipe.model_dump(mode="json"), recipe.digest)
    records = read_records(out)
    if not records and (failed := read_failures(out)):
        raise ClassifierError(f"{out}: none of its {len(failed)} models could be trained ({failed[0].reason})")
    return records


def open_population(out: Path | str) -> list[ModelRecord]:
    """The records of a population on disk.

    Raises:
        DataError: no such folder.
        NothingToExamineError: there are no finished models.
    """
    if not Path(out).is_dir():
        raise DataError(f"{out}: no such folder")
    records = read_records(Path(out))
    if not records:
        raise NothingToExamineError(f"{out}: no finished models in it")
    return records


def population_data(out: Path | str) -> str:
    """The data source that a population was trained on.

    Raises:
        DataError: the folder doesn't say.
    """
    path = Path(out) / RECIPE
    try:
        return str(json.loads(path.read_text())["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not name the population's data ({error})") from error


def run_job(job: Job) -> ModelRecord | FailedModel:
    """Builds one model, in a worker process; or keeps why it can't be trained, which must not end the others.

    Raises:
        RecipeError: the recipe asks for what these data don't allow; the message names the model.
    """
    train_data, test_data = load_splits(job.source, job.samples)
    try:
        return build_model(job.plan, train_data, test_data, job.task, job.out)
    except (ClassifierError, DataError) as error:  # the data were read: it is this model's plan that they don't fit
        failure = FailedModel(index=job.plan.index, seed=job.plan.seed, reason=str(error))
        write_json(model_folder(job.out, job.plan.index) / FAILED, failure.model_dump(mode="json"))
        return failure
    except RecipeError as error:
        raise RecipeError(f"model {job.plan.index}: {error}") from error


@functools.cache
def load_splits(source: str, samples: int | None) -> tuple[ImageData, ImageData]:
    """Training and test images, read once per process.

    Raises:
        DataError: they can't be read; test images of other classes; or they are the same images, as of data without
            splits: accuracies, success rates and detectors' scores on images that were trained on flatter.
    """
    train_data = open_data(source, "train")
    test_data = in_classes_of(train_data, open_data(source, "test"))
    if torch.equal(train_data.images, test_data.images):
        raise DataError(
            f"{source}: its test images are those that are trained on, and figures on them flatter; give data with a "
            "test split: an .npz with x_train and x_test, or a folder with train/ and test/"
        )
    if samples is not None and samples < len(train_data):
        train_data = train_data.take(classes_in_turn(train_data.labels)[:samples])
    return train_data, test_data


def _claim(out: Path, recipe: Recipe, source: str) -> None:
    """Writes the recipe into a new folder, or checks that the folder was made from this one."""
    path = out / RECIPE
    if claimed(path, recipe.digest, "population"):
        require_data(population_data(out), source, path)
        return
    content = {"sha256": recipe.digest, "data": settled(source), "recipe": recipe.model_dump(mode="json")}
    write_json(path, content | {"images": splits_digest(settled(source), recipe.samples)})


def settled(source: str) -> str:
    """A data source as it is called from every working directory: the absolute path of files, the name of a task."""
    return source if source in TASKS or not Path(source).exists() else str(Path(source).absolute())


def require_data(begun: str, source: str, path: Path) -> None:
    """Refuses to go on with other images than a folder was begun with, as its recipe file at `path` names them.

    Raises:
        RecipeError: they are others.
    """
    if begun not in (source, settled(source)):  # older files may name a relative place
        raise RecipeError(
            f"{path.parent}: its models were trained on {begun}, not {source}; choose another folder (or, if these are "
            f"the same images in another place, say so in {path.name})"
        )


@functools.cache
def splits_digest(source: str, samples: int | None) -> str:
    """SHA-256 over the images, labels and classes of both splits, as they are trained on and measured with.

    Raises:
        DataError: see `load_splits`.
    """
    digest = hashlib.sha256()
    for part in load_splits(source, samples):
        digest.update(json.dumps([part.images.shape, part.classes]).encode())
        for tensor in part:
            digest.update(tensor.contiguous().numpy().reshape(-1).data)
    return digest.hexdigest()


def require_images(path: Path, digest: str) -> None:
    """Refuses to go on where the file that models were trained on holds other images now; older folders don't say.

    Raises:
        RecipeError: it does.
    """
    if json.loads(path.read_text()).get("images", digest) != digest:
        raise RecipeError(
            f"{path.parent}: the images are no longer those that its models were trained on; choose another folder"
        )


def require_distinct(folders: Sequence[Path]) -> None:
    """Refuses to count a folder of models twice, under whatever names.

    Raises:
        RecipeError: with its name.
    """
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise RecipeError(f"{folder}: named twice; a fit is tested on models that it never saw")


def claimed(path: Path, digest: str, what: str) -> bool:
    """Whether a folder's recipe file is there, for the recipe of this digest.

    Raises:
        RecipeError: it is of another recipe.
        DataError: it doesn't say.
    """
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not name the {what}'s recipe ({error})") from error
    if found != digest:
        raise RecipeError(f"{path.parent} holds a {what} of another recipe; choose another folder")
    return True
