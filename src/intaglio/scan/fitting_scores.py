"""Fitting a `ScoreDetector`: it learns nothing but what clean models of a task score, which is all a p-value needs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from intaglio.classifiers import open_classifier
from intaglio.data import ImageData, classes_in_turn
from intaglio.errors import DataError, RecipeError
from intaglio.evidence.canonical import canonical_json
from intaglio.files import write_json
from intaglio.populations import Executor, LocalExecutor, model_folder, open_population, population_data
from intaglio.populations.population import load_splits, require_distinct
from intaglio.scan.clean_scores import CleanModelScores, TaskScores
from intaglio.scan.confidence import confidence_of
from intaglio.scan.detector import Progress, Request
from intaglio.scan.scanning import make_detector, scan
from intaglio.scan.score_detector import ScoreDetector

#: Images that stand for what a model is asked in use, for detectors that look at those; the rest are clean images.
ASKED = 200
#: Raise it when more is kept beside models: they are then scored anew.
VERSION = 3


class ScoreJob(NamedTuple):
    """What a worker is sent: one clean model to score."""

    detector: str
    folder: Path
    number: int
    seed: int
    source: str
    samples: int | None
    cache: str


def fit_clean_scores(
    detector: str,
    folders: Sequence[Path],
    out: Path,
    *,
    test: Sequence[Path] = (),
    models: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> CleanModelScores:
    """Scores the clean models of populations and writes `clean-scores.json` to `out`; scores are kept beside models.

    Args:
        detector: a `ScoreDetector`'s name.
        test: populations to count false alarms on, never ranked against.
        models: use only the first so many clean models of each population.

    Raises:
        RecipeError: a detector that is fitted otherwise, or a folder that is named twice.
        NothingToExamineError: a folder without models.
        DataError: no clean models in it, or models of one task that differ in their inputs or classes.
        IntaglioError: what the detector says where it can't score a model.
    """
    require_distinct((*folders, *test))
    made = make_detector(detector)
    if not isinstance(made, ScoreDetector):
        raise RecipeError(f"{detector} does not rank one number among clean models; fit it without --detector")
    settings = made.settings()
    digest = hashlib.sha256(canonical_json(settings)).hexdigest()[:12]
    cache = f"score-{detector}-{digest}-v{VERSION}.json"
    jobs = {folder: _jobs(detector, Path(folder), models, cache) for folder in folders}
    tests = {folder: _jobs(detector, Path(folder), models, cache) for folder in test}
    every = [job for group in (*jobs.values(), *tests.values()) for job in group]
    missing = [job for job in every if not _cached(job).exists()]
    for done, _ in enumerate((executor or LocalExecutor()).map(score_model, missing), len(every) - len(missing) + 1):
        if progress is not None:
            progress(done, len(every))
    tasks: dict[str, TaskScores] = {}
    for group, tested in ((jobs, False), (tests, True)):
        for folder, mine in group.items():
            _collect(tasks, Path(folder), mine, tested=tested)
    scores = CleanModelScores(detector=detector, settings=settings, tasks=tuple(tasks.values()))
    scores.save(Path(out))
    return scores


def score_model(job: ScoreJob) -> float:
    """One clean model's score, in a worker process."""
    data, test = load_splits(job.source, job.samples)
    given = split_test(test)
    path = model_folder(job.folder, job.number) / "model.safetensors"
    classifier = open_classifier(path)
    # The detector is ranked against nothing here, so a reference that is shipped has no say.
    verdict = scan(classifier, given[1], None, seed=job.seed, detector=job.detector, training=data, inputs=given[0])
    sureness = confidence_of(classifier, Request(given[1], seed=job.seed))
    costs = {"seconds": verdict.seconds, "queries": verdict.queries}
    write_json(_cached(job), {"score": verdict.score, "confidence": sureness, **costs})
    return verdict.score


def split_test(test: ImageData) -> tuple[Tensor, Tensor]:
    """Test images as (asked, clean), each of all classes."""
    count, images = min(ASKED, len(test) // 2), test.images[classes_in_turn(test.labels)]
    return images[:count], images[count:]


def _jobs(detector: str, folder: Path, models: int | None, cache: str) -> list[ScoreJob]:
    source = population_data(folder)
    try:
        samples = json.loads((folder / "recipe.json").read_text()).get("recipe", {}).get("samples")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'recipe.json'}: not a population's recipe ({error})") from error
    clean = [record for record in open_population(folder) if not record.backdoored][:models]
    if not clean:
        raise DataError(f"{folder}: no clean models in it")
    return [ScoreJob(detector, folder, record.index, record.seed, source, samples, cache) for record in clean]


def _collect(tasks: dict[str, TaskScores], folder: Path, jobs: list[ScoreJob], *, tested: bool) -> None:
    """Adds a population's scores to those of its task."""
    records = {record.index: record for record in open_population(folder)}
    mine = [records[job.number] for job in jobs]
    task, first = mine[0].task, mine[0].architecture
    known = tasks.get(task)
    if known is None and tested:
        raise DataError(f"{folder}: its task {task} is none of the populations that are ranked against")
    shape, classes = (known.input_shape, known.num_classes) if known else (first.input_shape, first.num_classes)
    kinds = {(shape, classes), *((each.architecture.input_shape, each.architecture.num_classes) for each in mine)}
    if len(kinds) > 1:
        raise DataError(f"{folder}: models of {task} differ in their inputs or classes: {sorted(kinds)}")
    found = [json.loads(_cached(job).read_text()) for job in jobs]
    scores, sureness = (tuple(float(one[key]) for one in found) for key in ("score", "confidence"))
    if known is None:
        tasks[task] = TaskScores(task=task, input_shape=shape, num_classes=classes, scores=scores, confidence=sureness)
    else:
        scored, sure = ("tested", "tested_confidence") if tested else ("scores", "confidence")
        more = {scored: getattr(known, scored) + scores, sure: getattr(known, sure) + sureness}
        tasks[task] = known.model_copy(update=more)


def _cached(job: ScoreJob) -> Path:
    return model_folder(job.folder, job.number) / job.cache
