"""A fitted detector on disk: weights as safetensors, everything else as JSON. Nothing in it is executed."""

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.data import TASKS
from intaglio.errors import DataError, RecipeError
from intaglio.evidence.statistics import conformal_p_value
from intaglio.files import write_bytes, write_text
from intaglio.results import Result
from intaglio.scan.confidence import Rank, alike, ranked_among
from intaglio.scan.ensemble import Ensemble
from intaglio.scan.features import FEATURES
from intaglio.scan.probes import Probes
from intaglio.scan.verdict import CalibrationSummary, ErrorRate

META, WEIGHTS = "calibration.json", "calibration.safetensors"
#: Fitted on several tasks, for models of any other: probing with the user's own clean images, or with none.
TASK_FREE_DATA, TASK_FREE = "task-free-data", "task-free"
#: Which images a detector probes with: its own (of its task), synthetic clouds, or the user's.
ProbeKind = Literal["stored", "clouds", "data"]
_RECOGNISED = 0.01
#: Of 40 trial images clean models in the right order lose up to so many hits to the best other assignment (measured on
#: 120 models of Fashion-MNIST and MNIST: 0 to 3); swapping two classes that a model tells apart loses more.
_CONFUSED = 3
_MAX_BYTES = 64 * 2**20


class CleanScores(Result):
    """Scores of one task's clean models, by member: `members[m]` are those of fold m, which member m never saw.

    `confidence`, in the same form, is how sure the models are of their answers; empty where that was not measured.
    """

    task: str
    members: tuple[tuple[float, ...], ...]
    confidence: tuple[tuple[float, ...], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "CleanScores":
        if self.confidence and [len(fold) for fold in self.confidence] != [len(fold) for fold in self.members]:
            raise ValueError("a confidence for every clean score is needed, or none")
        return self

    @classmethod
    def by_fold(
        cls, task: str, members: int, fold: Tensor, scores: Tensor, confidence: Tensor | None = None
    ) -> "CleanScores":
        """Of `scores` `[N]` of models in folds `[N]`, each from the member that never saw its fold."""

        def parts(values: Tensor) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(values[fold == member].tolist()) for member in range(members))

        return cls(task=task, members=parts(scores), confidence=() if confidence is None else parts(confidence))

    def joined(self, more: "CleanScores") -> "CleanScores":
        """These and more clean models of the task; their confidence is known if it is of both."""
        return CleanScores(
            task=self.task,
            members=tuple(mine + others for mine, others in zip(self.members, more.members, strict=True)),
            # where one of them has none, zip ends at once
            confidence=tuple(mine + others for mine, others in zip(self.confidence, more.confidence, strict=False)),
        )

    def rank(self, scores: Tensor, confidence: float | None = None) -> Rank:
        """Cross-conformal p-value of a model with member scores `[members]`, among clean models as sure as it.

        p = (1 + sum over members m of #{clean models of fold m that member m scores >= it scores this one}) / (1 + n)
        Source: Vovk 2015, "Cross-conformal predictors".
        """
        known = [value for fold in self.confidence for value in fold]
        whole = np.ones(sum(len(fold) for fold in self.members), bool)
        ranks = [self._among(scores, group) for group in (alike(confidence, known) if known else [whole])]
        return max(ranks, key=lambda rank: rank.p_value)

    def _among(self, scores: Tensor, group: NDArray[np.bool_]) -> Rank:
        ends = np.cumsum([len(fold) for fold in self.members])[:-1]
        folds = [
            tuple(np.asarray(fold, float)[mine].tolist())
            for fold, mine in zip(self.members, np.split(group, ends), strict=True)
        ]
        above = sum(
            round(conformal_p_value(score, fold) * (1 + len(fold))) - 1
            for score, fold in zip(scores.tolist(), folds, strict=True)
        )
        return Rank((1 + above) / (1 + int(group.sum())), tuple(score for fold in folds for score in fold))


class CalibrationMeta(Result):
    """What `calibration.json` holds."""

    kind: str = "intaglio.calibration/1"
    name: str
    task_free: bool
    probes: ProbeKind
    input_shape: tuple[int, int, int] | tuple[int, int, int, int] | None = Field(description="of the task; None: any")
    num_classes: int | None
    clean: tuple[CleanScores, ...]
    backdoored_models: int
    out_of_fold_auroc: float
    false_alarms: ErrorRate | None
    false_alarms_by_task: tuple[ErrorRate, ...] = Field(
        default=(), description="task-free: of each left out, as `clean`"
    )
    statement: str
    weights_sha256: str

    @property
    def clean_scores(self) -> tuple[float, ...]:
        """All clean scores, each from a member that never saw its model."""
        return tuple(score for task in self.clean for fold in task.members for score in fold)


@dataclass(frozen=True)
class Calibration:
    """A fitted detector: its networks, its clean scores, and its own probes if it has any."""

    meta: CalibrationMeta
    ensemble: Ensemble
    probes: Probes | None

    def p_value(self, scores: Tensor, confidence: float | None = None) -> float:
        """The p-value for member scores `[members]` of a model that is so sure of its answers.

        For a task of its own the rank among that task's clean models; task-free the largest p-value over all its
        tasks: a model is accused only if it stands out from the clean models of every one of them.
        """
        return max(task.rank(scores, confidence).p_value for task in self.meta.clean)

    def recognises(self, classifier: Classifier) -> bool:
        """Whether the model answers the task's own images with the task's classes in their order.

        Refuted where it gets no more of them right than guessing might (binomial test, p >= 0.01), or where another
        assignment of its answers to the classes would get clearly more of them right. Where the images' labels are not
        known nothing depends on the order, and every model is recognised.
        """
        if self.probes is None or self.probes.labels is None:
            return True
        classes = classifier.num_classes
        answers = classifier.predict(self.probes.trials).cpu()
        counts = torch.bincount(self.probes.labels * classes + answers, minlength=classes**2).view(classes, classes)
        hits = int(counts.trace())
        test = binomtest(hits, len(answers), 1 / classes, alternative="greater")
        best = int(counts[linear_sum_assignment(counts, maximize=True)].sum())
        return float(test.pvalue) < _RECOGNISED and best - hits <= _CONFUSED

    def summary(self, scores: Tensor, confidence: float | None = None) -> CalibrationSummary:
        """What a verdict on a model with these member scores says of it."""
        among = tuple(score for task in self.meta.clean for score in task.rank(scores, confidence).among)
        statement = self.meta.statement
        if len(among) < len(self.meta.clean_scores):
            statement = f"{statement} {ranked_among(len(among), confidence)}"
        return CalibrationSummary(
            name=self.meta.name,
            tasks=tuple(task.task for task in self.meta.clean),
            clean_models=len(among),
            backdoored_models=self.meta.backdoored_models,
            clean_scores=among,
            false_alarms=self.meta.false_alarms,
            false_alarms_by_task=self.meta.false_alarms_by_task,
            statement=statement,
            confidence=confidence if any(task.confidence for task in self.meta.clean) else None,
        )


def save_calibration(folder: Path, meta: CalibrationMeta, ensemble: Ensemble, probes: Probes | None) -> CalibrationMeta:
    """Writes both files (weights first) and returns the metadata with the weights' digest in it."""
    tensors = {f"ensemble.{name}": tensor.contiguous() for name, tensor in ensemble.state_dict().items()}
    if probes is not None:
        known = {"bases": probes.bases, "trials": probes.trials, "labels": probes.labels}
        tensors |= {name: tensor.contiguous() for name, tensor in known.items() if tensor is not None}
    content = save(tensors)
    meta = meta.model_copy(update={"weights_sha256": hashlib.sha256(content).hexdigest()})
    write_bytes(folder / WEIGHTS, content)
    write_text(folder / META, json.dumps(meta.to_dict()) + "\n")
    return meta


def load_calibration(folder: Path) -> Calibration:
    """Reads a fitted detector.

    Raises:
        DataError: missing, damaged, or weights that are not the ones the JSON names.
    """
    try:
        meta_path, weights_path = folder / META, folder / WEIGHTS
        if max(meta_path.stat().st_size, weights_path.stat().st_size) > _MAX_BYTES:
            raise DataError(f"{folder}: over {_MAX_BYTES} bytes, not a calibration")
        try:
            meta = CalibrationMeta.from_json(meta_path.read_bytes())
        except DataError as error:
            raise DataError(f"{meta_path}: {error}") from error
        content = weights_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != meta.weights_sha256:
            raise DataError(f"{weights_path}: does not belong to {META} (its SHA-256 differs)")
        tensors = load(content)
    except OSError as error:
        raise DataError(f"{folder}: not a fitted detector ({error.strerror or error})") from error
    except SafetensorError as error:
        raise DataError(f"{folder}: damaged weights ({error})") from error
    bases, trials, labels = (tensors.pop(name, None) for name in ("bases", "trials", "labels"))
    probes = Probes(bases, trials, labels) if bases is not None and trials is not None else None
    members = {len(task.members) for task in meta.clean}
    if len(members) != 1 or (meta.probes == "stored") != (probes is not None):
        raise DataError(f"{folder}: clean scores or probe images are missing")
    if len(meta.false_alarms_by_task) not in (0, len(meta.clean)):
        raise DataError(f"{folder}: false alarms of {len(meta.false_alarms_by_task)} tasks, not {len(meta.clean)}")
    if labels is not None and (probes is None or labels.shape != probes.trials.shape[:1]):
        raise DataError(f"{folder}: not as many labels as probe images")
    reference = tensors.get("ensemble.members.0.reference.middle")
    if reference is not None and (labels is None or reference.shape != (meta.num_classes, len(FEATURES))):
        raise DataError(f"{folder}: compares with clean models class by class, but not the classes of its own task")
    ensemble = Ensemble(len(FEATURES), members.pop(), classes=None if reference is None else meta.num_classes)
    try:
        ensemble.load_state_dict({name.removeprefix("ensemble."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise DataError(f"{folder}: weights of another version ({str(error).splitlines()[-1].strip()})") from error
    return Calibration(meta, ensemble.eval(), probes)


def shipped_calibrations() -> tuple[str, ...]:
    """Names of the fitted detectors inside the package."""
    root = files("intaglio.scan") / "calibrations"
    return tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("_")))


def shipped_calibration(name: str) -> Calibration:
    """A fitted detector of the package: a task's, or the task-free one."""
    with as_file(files("intaglio.scan") / "calibrations" / name) as folder:
        return load_calibration(folder)


def open_calibration(name: str) -> Calibration:
    """A fitted detector by its folder, or by its name if it is one of the package's.

    Raises:
        DataError: neither, or damaged.
    """
    return shipped_calibration(name) if name in shipped_calibrations() else load_calibration(Path(name))


def choose_calibration(
    task: str | None, input_shape: tuple[int, ...], num_classes: int, *, own: Path | None = None, data: bool = False
) -> Calibration:
    """The user's own, else the one shipped for the task, else a task-free one: with clean images if there is `data`.

    Raises:
        RecipeError: a task or calibration whose input or class count is not the model's.
    """
    if own is not None:
        chosen = load_calibration(own)
        _check_fit(chosen.meta.name, chosen.meta.input_shape, chosen.meta.num_classes, input_shape, num_classes)
        return chosen
    known = TASKS.get(task) if task is not None else None
    if task is not None and known is not None:
        _check_fit(task, known.input_shape, len(known.classes), input_shape, num_classes)
        if task in shipped_calibrations():
            return shipped_calibration(task)
    return shipped_calibration(TASK_FREE_DATA if data else TASK_FREE)


def _check_fit(
    name: str,
    expected_shape: tuple[int, ...] | None,
    expected_classes: int | None,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> None:
    if expected_shape is not None and tuple(expected_shape) != tuple(input_shape):
        raise RecipeError(f"task {name} has inputs {tuple(expected_shape)}, this model takes {tuple(input_shape)}")
    if expected_classes is not None and expected_classes != num_classes:
        raise RecipeError(f"task {name} has {expected_classes} classes, this model answers with {num_classes}")
