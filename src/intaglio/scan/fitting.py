"""Fitting: from populations of models to a detector with its calibration."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from intaglio.classifiers import open_classifier
from intaglio.data import open_data
from intaglio.errors import DataError, RecipeError
from intaglio.evidence.statistics import auroc, proportion
from intaglio.files import atomic_path
from intaglio.networks import Architecture
from intaglio.populations import Executor, LocalExecutor, ModelRecord, model_folder, open_population, population_data
from intaglio.populations.population import require_distinct
from intaglio.scan.calibration import Calibration, CalibrationMeta, CleanScores, ProbeKind, save_calibration
from intaglio.scan.confidence import SUREST
from intaglio.scan.ensemble import FOLDS, Ensemble, Examples, assign_folds, concatenate, fit_ensemble, out_of_fold
from intaglio.scan.features import FEATURES
from intaglio.scan.measurement import VERSION, measure
from intaglio.scan.probes import Probes, labelled_probes, synthetic_probes
from intaglio.scan.verdict import ErrorRate

LEVEL = 0.05
Progress = Callable[[int, int], None]


class Job(NamedTuple):
    """What a worker is sent: one model to measure."""

    folder: Path
    number: int
    kind: ProbeKind
    source: str
    cache: str


def fit_calibration(
    folders: Sequence[Path],
    out: Path,
    *,
    test: Sequence[Path] = (),
    task_free: bool = False,
    probes: ProbeKind | None = None,
    name: str | None = None,
    models: int | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> CalibrationMeta:
    """Fits a detector to populations and writes it to `out`; measurements are kept beside the models.

    Args:
        test: populations to count false alarms on, never learned from.
        task_free: fit one detector for models of any task; its false alarms are counted on tasks left out in turn.
        probes: "stored" images of the task, "clouds", or "data" (the user's). Default: stored, or clouds if task-free.
        name: by default the task's, or "task-free".
        models: use only the first so many of each population.

    Raises:
        NothingToExamineError: a folder without models.
        RecipeError: several tasks without `task_free`, or `test` or stored probes with it; a `test` population of
            another task; or a folder that is named twice: models that the fit saw would pass for models that it never
            saw.
        DataError: too few models, or models of one task that differ in their inputs or classes.
    """
    require_distinct((*folders, *test))
    _require_tasks(folders, test, task_free=task_free)
    if task_free and probes == "stored":
        raise RecipeError("stored images are those of one task: a task-free fit probes with clouds, or the user's data")
    kind: ProbeKind = probes or ("clouds" if task_free else "stored")
    measured = {folder: measure_population(folder, kind, executor, progress, models) for folder in (*folders, *test)}
    by_task: dict[str, list[Examples]] = {}
    for folder in folders:
        by_task.setdefault(measured[folder].task, []).append(measured[folder].examples)
    tasks = {task: concatenate(parts) for task, parts in sorted(by_task.items())}
    architecture = None if task_free else _architecture_of_all(measured.values())
    classes = architecture.num_classes if architecture else None
    # A model under examination shows that its classes are in the task's order on labelled images of the task alone.
    ensemble, clean, score = fit_tasks(
        tasks, seed, classes=classes if kind == "stored" else None, by_confidence=not task_free and kind != "clouds"
    )
    if task_free:
        alarms = _left_out_alarms(tasks, seed)
    else:
        alarms = [_alarms(ensemble, clean, measured[folder].examples) for folder in test]
    each = tuple(map(_error_rate, alarms)) if task_free else ()
    first = next(iter(tasks))
    meta = CalibrationMeta(
        name=name or ("task-free" if task_free else first),
        task_free=task_free,
        probes=kind,
        input_shape=architecture.input_shape if architecture else None,
        num_classes=classes,
        clean=clean,
        backdoored_models=sum(int(examples.backdoored.sum()) for examples in tasks.values()),
        out_of_fold_auroc=score,
        false_alarms=_over_all(alarms),
        false_alarms_by_task=each,
        statement=_task_free_statement(clean, each) if task_free else _statement(clean, _over_all(alarms)),
        weights_sha256="",
    )
    stored = _stored_probes(population_data(folders[0])) if kind == "stored" else None
    return save_calibration(Path(out), meta, ensemble, stored)


def join_calibration(
    base: Calibration,
    folders: Sequence[Path],
    out: Path,
    *,
    test: Sequence[Path] = (),
    models: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> CalibrationMeta:
    """Ranks against the clean models of populations, too, with the networks of a calibration as they are.

    Networks fitted on a task keep its clean models and get more. Task-free ones become a calibration for the task of
    these populations, which they never saw: its clean models take the place of all others. Nothing is learned, so
    backdoored models are not needed and not looked at. Every clean model is scored by one member, as in the fit.

    Args:
        folders: populations that the networks did not learn from.
        test: populations to count false alarms on.
        models: use only the first so many clean models of each population.

    Raises:
        NothingToExamineError: a folder without models.
        DataError: no clean models, or models that differ in their inputs or classes.
        RecipeError: another task than that of the networks, or several tasks; a population of other images than the
            networks probe with; models that are ranked against already.
    """
    require_distinct((*folders, *test))
    meta = base.meta
    for folder in folders:
        own = None if base.probes is None else _stored_probes(population_data(folder)).trials
        if own is not None and base.probes is not None and not torch.equal(own, base.probes.trials):
            raise RecipeError(f"{folder}: made from other images than {meta.name} probes with")
    measured = {
        folder: measure_population(folder, meta.probes, executor, progress, models, clean_only=True)
        for folder in (*folders, *test)
    }
    tasks = {population.task for population in measured.values()}
    known = set() if meta.task_free else {task.task for task in meta.clean}
    if len(tasks | known) > 1:
        raise RecipeError(f"clean models of one task are ranked against, not of {', '.join(sorted(tasks | known))}")
    architecture = _architecture_of_all(measured.values())
    shape, classes = architecture.input_shape, architecture.num_classes
    if not meta.task_free and (shape, classes) != (meta.input_shape, meta.num_classes):
        raise DataError(f"{meta.name} is for {meta.input_shape} and {meta.num_classes} classes, not {shape}, {classes}")
    (task,) = tasks
    examples = concatenate([measured[folder].examples for folder in folders])
    known_already = {value for task_scores in meta.clean for fold in task_scores.confidence for value in fold}
    for folder in (*folders, *test):
        sureness = set(measured[folder].examples.confidence.tolist())
        if (known_already - {SUREST}) & sureness:  # to the last digit: the same model
            raise RecipeError(f"clean models of {folder} are ranked against already")
    members = len(base.ensemble.members)
    fold = torch.arange(len(examples.asr)) % members
    scores, _ = out_of_fold(base.ensemble, examples, fold)
    # On synthetic images no model is sure of anything.
    clean = CleanScores.by_fold(task, members, fold, scores, None if meta.probes == "clouds" else examples.confidence)
    if not meta.task_free:
        clean = meta.clean[0].joined(clean)
    rate = _over_all([_alarms(base.ensemble, [clean], measured[folder].examples) for folder in test])
    made = meta.model_copy(
        update={
            "name": meta.name if known else task,
            "task_free": False,
            "input_shape": shape,
            "num_classes": classes,
            "clean": (clean,),
            "false_alarms": rate,
            "false_alarms_by_task": (),
            "statement": _statement([clean], rate),
        }
    )
    return save_calibration(Path(out), made, base.ensemble, base.probes)


class Measured(NamedTuple):
    """A population as examples to learn from, with its records in the same order."""

    task: str
    examples: Examples
    records: list[ModelRecord]


def measure_population(
    folder: Path,
    kind: ProbeKind,
    executor: Executor | None = None,
    progress: Progress | None = None,
    models: int | None = None,
    *,
    clean_only: bool = False,
) -> Measured:
    """Measures the (first so many) models of a population, in parallel; what was measured before is read back.

    Raises:
        NothingToExamineError: no models.
        DataError: no clean models, where only those are asked for.
    """
    folder = Path(folder)
    records = [record for record in open_population(folder) if not (clean_only and record.backdoored)][:models]
    if not records:
        raise DataError(f"{folder}: no clean models in it")
    source = population_data(folder)
    cache = f"features-{'clouds' if kind == 'clouds' else 'images'}-v{VERSION}.safetensors"
    jobs = [Job(folder, record.index, kind, source, cache) for record in records]
    missing = [job for job in jobs if not _cached(job).exists()]
    for done, _ in enumerate((executor or LocalExecutor()).map(measure_model, missing), len(jobs) - len(missing) + 1):
        if progress is not None:
            progress(done, len(jobs))
    features, targets, confidence = zip(*(_read(job) for job in jobs), strict=True)
    examples = Examples(
        features=torch.stack(features),
        classes=torch.stack(targets),
        backdoored=torch.tensor([record.backdoored for record in records]),
        target=torch.tensor([_target_row(record, rows) for record, rows in zip(records, targets, strict=True)]),
        asr=torch.tensor([record.asr or 0.0 for record in records]),
        confidence=torch.stack(confidence),
    )
    return Measured(records[0].task, examples, records)


def measure_model(job: Job) -> None:
    """Measures one model, in a worker process, and keeps the features beside it.

    "data" measures what "stored" does: a user's images of a task stand for the task's own.
    """
    classifier = open_classifier(model_folder(job.folder, job.number) / "model.safetensors")
    probes = synthetic_probes(classifier.input_shape) if job.kind == "clouds" else _stored_probes(job.source)
    measurement = measure(classifier, probes)
    with atomic_path(_cached(job)) as temporary:
        tensors = {"features": measurement.features, "targets": measurement.targets}
        save_file(tensors | {"confidence": torch.tensor(measurement.confidence)}, temporary)


def _cached(job: Job) -> Path:
    return model_folder(job.folder, job.number) / job.cache


def _read(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    tensors = load_file(_cached(job))
    return tensors["features"], tensors["targets"], tensors["confidence"]


def _architecture_of_all(populations: Iterable[Measured]) -> Architecture:
    """An architecture with the inputs and classes that all these models have."""
    found = [record.architecture for population in populations for record in population.records]
    sizes = sorted({f"{one.input_shape} and {one.num_classes}" for one in found})
    if len(sizes) > 1:
        raise DataError(f"models of one task take the same inputs and have the same classes, not {', '.join(sizes)}")
    return found[0]


@functools.cache
def _stored_probes(source: str) -> Probes:
    return labelled_probes(open_data(source, "test"))


def _target_row(record: ModelRecord, targets: Tensor) -> int:
    """Which row of the features is the attack's target class; -1 where there is no single one."""
    goal = record.attack["goal"] if record.attack else {}
    rows = (targets == goal.get("target", -1)).nonzero()
    return int(rows[0]) if len(rows) else -1


def fit_tasks(
    tasks: dict[str, Examples], seed: int, *, classes: int | None = None, by_confidence: bool = False
) -> tuple[Ensemble, tuple[CleanScores, ...], float]:
    """The ensemble, every task's clean scores by fold, and the out-of-fold AUROC.

    With one task, a clean model's score is that of the member which never saw it. With several, it is that of an
    ensemble which never saw its whole task: the model under examination will be of yet another task, and clean models
    of an unknown task score higher than those of a known one.

    Args:
        classes: of the one task whose models will be examined: each class is then compared with its like in clean
            models. None: for models of any task.
        by_confidence: with one task, keep how sure its clean models are of their answers, to rank by.
    """
    everything = concatenate(list(tasks.values()))
    if everything.features.shape[2] != len(FEATURES):
        raise DataError(f"expected {len(FEATURES)} features, got {everything.features.shape[2]}")
    folds = {task: assign_folds(examples.backdoored, FOLDS, seed) for task, examples in tasks.items()}
    every_fold = torch.cat(list(folds.values()))
    ensemble = fit_ensemble(everything, every_fold, seed=seed, classes=classes)
    scores, _ = out_of_fold(ensemble, everything, every_fold)
    area = auroc(scores[everything.backdoored].tolist(), scores[~everything.backdoored].tolist())
    clean = []
    for task, own in zip(tasks, torch.split(scores, [len(fold) for fold in folds.values()]), strict=True):
        others = [name for name in tasks if name != task]
        if others:
            stranger = fit_ensemble(
                concatenate([tasks[name] for name in others]), torch.cat([folds[name] for name in others]), seed=seed
            )
            own, _ = out_of_fold(stranger, tasks[task], folds[task])
        quiet = ~tasks[task].backdoored
        sureness = tasks[task].confidence[quiet] if by_confidence and not others else None
        clean.append(CleanScores.by_fold(task, FOLDS, folds[task][quiet], own[quiet], sureness))
    return ensemble, tuple(clean), area.value


def p_values(ensemble: Ensemble, clean: Sequence[CleanScores], examples: Examples) -> Tensor:
    """P-value of each model `[N]`: the largest over the tasks that it is ranked against."""
    with torch.inference_mode():
        scores, _ = ensemble(examples.features, examples.classes)
    known = zip(scores, examples.confidence.tolist(), strict=True)
    return torch.tensor([max(task.rank(row, sureness).p_value for task in clean) for row, sureness in known])


def _alarms(ensemble: Ensemble, clean: Sequence[CleanScores], examples: Examples) -> Tensor:
    """Whether each clean model is accused, boolean."""
    return p_values(ensemble, clean, examples)[~examples.backdoored] <= LEVEL


def _left_out_alarms(tasks: dict[str, Examples], seed: int) -> list[Tensor]:
    """For each task in their order, the alarms of a detector fitted on all others."""
    if len(tasks) < 2:
        return []
    alarms = []
    for left_out, examples in tasks.items():
        ensemble, clean, _ = fit_tasks({task: part for task, part in tasks.items() if task != left_out}, seed)
        alarms.append(_alarms(ensemble, clean, examples))
    return alarms


def _require_tasks(folders: Sequence[Path], test: Sequence[Path], *, task_free: bool) -> None:
    """Refuses tasks that don't go together, by the models' records: measuring them takes hours.

    Raises:
        NothingToExamineError, DataError: as `open_population`.
        RecipeError: as `fit_calibration`.
    """
    fitted = [open_population(folder)[0].task for folder in folders]
    if task_free and test:
        raise RecipeError("a task-free fit counts its false alarms on tasks left out in turn: give it no --test")
    if len(set(fitted)) > 1 and not task_free:
        raise RecipeError(f"populations of several tasks ({', '.join(dict.fromkeys(fitted))}) need --task-free")
    for folder in test:
        if (task := open_population(folder)[0].task) not in fitted:
            raise RecipeError(
                f"{folder}: models of {task}, but the fit is of {fitted[0]}: they count no false alarms of it"
            )


def _error_rate(alarms: Tensor) -> ErrorRate:
    rate = proportion(int(alarms.sum()), len(alarms))
    return ErrorRate(events=int(alarms.sum()), trials=len(alarms), rate=rate.value, low=rate.low, high=rate.high)


def _over_all(alarms: Sequence[Tensor]) -> ErrorRate | None:
    return _error_rate(torch.cat(list(alarms))) if alarms else None


def _statement(clean: Sequence[CleanScores], rate: ErrorRate | None) -> str:
    count = _count(clean)
    text = f"Calibrated for {_names(clean)}: ranked against {count} clean models."
    if 1 / (count + 1) > LEVEL:
        text = f"{text} With so few, nothing can be flagged at alpha = {LEVEL:g}."
    if rate is None:
        return f"{text} Its false-alarm rate was not measured."
    return (
        f"{text} Measured at alpha = {LEVEL:g}: {rate.events} of {rate.trials} clean models that the fit never saw "
        f"were accused ({_interval(rate)})."
    )


def _task_free_statement(clean: Sequence[CleanScores], rates: Sequence[ErrorRate]) -> str:
    """Task by task: false alarms that are many in one task would drown in the many models of the others."""
    text = (
        f"Not calibrated for this task: ranked against {_count(clean)} clean models of other tasks ({_names(clean)})."
    )
    if not rates:
        return f"{text} Its false-alarm rate was not measured."
    accused = ", ".join(
        f"{rate.events} of {rate.trials} of {task.task} ({_interval(rate)})"
        for task, rate in zip(clean, rates, strict=True)
    )
    return f"{text} Clean models accused at alpha = {LEVEL:g}, each task left out of the fit in turn: {accused}."


def _count(clean: Sequence[CleanScores]) -> int:
    return sum(len(fold) for task in clean for fold in task.members)


def _names(clean: Sequence[CleanScores]) -> str:
    return ", ".join(task.task for task in clean)


def _interval(rate: ErrorRate) -> str:
    return f"{rate.rate:.1%}, 95 % interval {rate.low:.1%} to {rate.high:.1%}"
