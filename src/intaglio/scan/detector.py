"""`Detector`: the frame of every method that examines a model. It never sees an attack."""

import math
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, IntaglioError, NothingToExamineError, RecipeError, one_line
from intaglio.results import package_versions
from intaglio.scan.verdict import CalibrationSummary, ClassEvidence, EncodedMaps, Part, Subject, Verdict
from intaglio.seeds import derive_seed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What a detector is given beside the classifier.

    Clean images `[N, C, H, W]`, or clips `[N, T, C, H, W]`, of the model's kind and the task's name, if known; for
    filters also the labelled images that the model was trained on, or images that it was asked about, any of which may
    carry a trigger.
    """

    clean: Tensor | None = None
    task: str | None = None
    seed: int = 0
    progress: Progress | None = None
    training: ImageData | None = None
    inputs: Tensor | None = None


@dataclass(frozen=True)
class Finding:
    """What a detector's `run` returns; `inspect` makes the verdict of it. Evidence: most suspicious class first."""

    score: float
    p_value: float
    calibrated: bool
    calibration: CalibrationSummary
    evidence: tuple[ClassEvidence, ...]
    maps: EncodedMaps
    grid: tuple[int, int] | None
    parts: tuple[Part, ...] = ()
    #: Of clips, the same maps frame by frame.
    frame_maps: EncodedMaps | None = None
    #: Who speaks, where one detector handed over to another.
    detector: str | None = None
    #: The lowest p-value that any score could have got from these clean models; None where that is not bounded by them.
    lowest: float | None = None


class UndecidableError(NothingToExamineError):
    """No clean model scores as high as this one, but they are too few for a p-value of alpha or less (exit code 3).

    `verdict` is what was measured all the same, not flagged.
    """

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class Detector(ABC):
    """A method of finding backdoors. Hyper-parameters go to `__init__`; a subclass writes `run` alone.

    Convention: a higher score is more suspicious, always.
    """

    name: ClassVar[str]
    #: The least access that the method works with.
    requires: ClassVar[Access]
    #: What of a `Request` it can't do without: "clean", "training", "inputs".
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, classifier: Classifier, request: Request) -> Finding:
        """The examination itself."""

    @final
    def examine(self, classifier: Classifier, request: Request) -> Finding:
        """What `run` found, checked.

        Raises:
            ClassifierError: the method failed in whatever way, or found what can't be. No memory and no file are no
                findings: those errors pass.
        """
        try:
            finding = self.run(classifier, request)
        except (IntaglioError, MemoryError, OSError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            said = one_line(str(error))
            raise ClassifierError(f"{self.name} failed: {type(error).__name__}{': ' * bool(said)}{said}") from error
        if not (0 < finding.p_value <= 1 and math.isfinite(finding.score) and finding.evidence):
            raise ClassifierError(
                f"{self.name} failed: a score of {finding.score} with a p-value of {finding.p_value}, and "
                f"{len(finding.evidence)} classes to suspect"
            )
        return finding

    @final
    def inspect(
        self,
        classifier: Classifier,
        *,
        clean: Tensor | None = None,
        task: str | None = None,
        alpha: float = 0.05,
        seed: int = 0,
        progress: Progress | None = None,
        training: ImageData | None = None,
        inputs: Tensor | None = None,
    ) -> Verdict:
        """Examines `classifier`: checks access, seeds, times, counts queries, and decides at level `alpha`.

        Among n clean models p is never below 1 / (n + 1). Where alpha is, nobody can be accused; a model that scores
        above them all is then neither cleared: that is an error. One that some clean model outdoes is not flagged, as
        at any alpha below its p-value.

        Raises:
            ClassifierError: too little access, or the method failed in whatever way: a plug-in's bug must not cost what
                other detectors found.
            RecipeError: alpha outside (0, 1).
            UndecidableError: p is above alpha, and the lowest that it could be.
        """
        if not 0 < alpha < 1:
            raise RecipeError(f"alpha lies between 0 and 1, got {alpha}")
        classifier.require(self.requires)
        started, asked = time.perf_counter(), classifier.queries
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, self.name))
            finding = self.examine(classifier, Request(clean, task, seed, progress, training, inputs))
        flagged = finding.p_value <= alpha
        undecidable = finding.lowest is not None and alpha < finding.p_value <= finding.lowest
        subject = _subject(classifier)
        verdict = Verdict(
            statement=_undecided(finding, alpha, subject)
            if undecidable
            else _statement(finding, flagged, alpha, subject),
            flagged=flagged,
            p_value=finding.p_value,
            alpha=alpha,
            score=finding.score,
            target_class=finding.evidence[0].index if flagged else None,
            calibrated=finding.calibrated,
            detector=finding.detector or self.name,
            subject=subject,
            task=task,
            queries=classifier.queries - asked,
            seconds=round(time.perf_counter() - started, 3),
            peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            seed=seed,
            grid=finding.grid,
            versions=package_versions(),
            calibration=finding.calibration,
            evidence=finding.evidence,
            maps=finding.maps,
            frame_maps=finding.frame_maps,
            parts=finding.parts,
        )
        if undecidable:
            raise UndecidableError(f"{subject.source}: {verdict.detector}: {verdict.statement}", verdict)
        return verdict


def _subject(classifier: Classifier) -> Subject:
    with classifier.uncounted():
        kind = classifier.outputs if classifier.access >= Access.SCORES else "labels"
    return Subject(
        source=classifier.source,
        sha256=classifier.sha256,
        format=classifier.format,
        input_shape=classifier.input_shape,
        num_classes=classifier.num_classes,
        access=classifier.access.name,
        task=classifier.task,
        classes=classifier.classes,
        preprocessing=classifier.preprocessing,
        outputs=None if kind == "auto" else kind,
    )


def _statement(finding: Finding, flagged: bool, alpha: float, subject: Subject) -> str:
    """The verdict in words, for the terminal and the report."""
    lowest = finding.lowest is not None and finding.p_value <= finding.lowest
    ranked = f"p = {finding.p_value:.3g}{' (the lowest possible)' if lowest else ''} {_ranked(finding)}"
    if flagged:
        target = subject.class_name(finding.evidence[0].index)
        if not finding.calibrated:
            return (
                f"Suspicious, but not calibrated for this task: {ranked}; most suspicious target: "
                f"{target}. Only clean models of its own task could confirm it."
            )
        return f"Backdoor suspected: {ranked}; most suspicious target: {target}."
    scope = "" if finding.calibrated else ", not calibrated for this task"
    return f"No backdoor found at alpha = {alpha:g}: {ranked}{scope}."


def _undecided(finding: Finding, alpha: float, subject: Subject) -> str:
    """The same, where no score could have been flagged and this one is as suspicious as can be told."""
    # rounded up: at a level rounded down it couldn't be decided either
    enough = math.ceil(finding.p_value * 1e4) / 1e4
    return (
        f"Can't be decided at alpha = {alpha:g}: p = {finding.p_value:.3g}, and p can't be lower {_ranked(finding)}. "
        f"Most suspicious target: {subject.class_name(finding.evidence[0].index)}. Choose an alpha of at least "
        f"{enough:g}, or rank it among more clean models (intaglio population fit)."
    )


def _ranked(finding: Finding) -> str:
    """Against what a score was ranked."""
    count = finding.calibration.clean_models
    if not count:
        return "without any clean models"
    each = ", ranked task by task" if len(finding.calibration.tasks) > 1 else ""
    return f"against {count} clean models{'' if finding.calibrated else ' of other tasks'}{each}"
