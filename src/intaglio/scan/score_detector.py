"""`ScoreDetector`: the frame of methods that make one number of a model; clean models' numbers make a p-value of it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.errors import ClassifierError
from intaglio.scan.clean_scores import Reference, choose_reference
from intaglio.scan.confidence import confidence_of
from intaglio.scan.detector import Detector, Finding, Request
from intaglio.scan.recognition import doubt_about
from intaglio.scan.verdict import CalibrationSummary, ClassEvidence, EncodedMaps, Place

#: Maps of so many classes are kept in a verdict; with 1,000 classes the rest would only fill disks.
SHOWN_CLASSES = 24


@dataclass(frozen=True)
class Measured:
    """What a method measures of one model.

    Args:
        score: higher is more suspicious; comparable between models of one task.
        suspicions: `[K]`, for each class how suspicious it is as a backdoor's target; higher is more.
        maps: `[K, H, W]`, where in the image (of a clip: over all frames) each class's evidence lies; None: nowhere.
        map_name: what the maps show, in a word or two.
        places: `[K]` rectangles of the image; by default the whole of it.
        p_value: the method's own, where its theory gives one: used where no clean models of the task are known.
        details: further numbers worth keeping, for benchmarks; not part of a verdict.
    """

    score: float
    suspicions: Tensor
    maps: Tensor | None = None
    map_name: str = "pattern"
    places: Sequence[Place] | None = None
    p_value: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class ScoreDetector(Detector):
    """A method that scores a model; a subclass writes `measure` alone.

    The p-value is the score's conformal rank among clean models of the same task, scored by the same method with the
    same settings: those shipped, or the user's own (`intaglio population fit --detector NAME`), and of these the ones
    that are about as sure of their answers (`scan.confidence`). Where none are known, or the model does not answer the
    task's images as one of the task would (`scan.recognition`), the method's own p-value stands, if it has one, else
    the largest rank over the clean models of all tasks; both are called uncalibrated.

    Args:
        calibration: folder of clean scores of your own.
    """

    def __init__(self, *, calibration: Path | None = None) -> None:
        self.calibration = calibration

    @abstractmethod
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        """The score and its evidence."""

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters that change scores: scores of other settings are not compared."""
        return {name: value for name, value in vars(self).items() if name != "calibration"}

    @final
    def run(self, classifier: Classifier, request: Request) -> Finding:
        measured = self.measure(classifier, request)
        if not torch.isfinite(torch.tensor(measured.score)):
            raise ClassifierError(f"{classifier.source}: its {self.name} score is {measured.score}: nothing to rank")
        reference, doubt = self._reference(classifier, request.task or classifier.task)
        calibrated = reference is not None and reference.same_task
        lowest = None
        if reference is not None and (calibrated or measured.p_value is None):
            sureness = confidence_of(classifier, request) if reference.by_confidence else None
            p_value = reference.p_value(measured.score, sureness)
            summary = reference.summary(measured.score, sureness)
            lowest = reference.lowest(measured.score, sureness)
        elif measured.p_value is not None:
            p_value, summary = measured.p_value, _own_summary(self.name)
        else:
            p_value, summary = 1.0, _no_summary(self.name)
        summary = summary.model_copy(update={"statement": f"{doubt} {summary.statement}".lstrip()})
        order = measured.suspicions.argsort(descending=True, stable=True).tolist()
        shown = tuple(order[:SHOWN_CLASSES]) if measured.maps is not None else ()
        return Finding(
            score=measured.score,
            p_value=p_value,
            calibrated=calibrated,
            calibration=summary,
            evidence=_evidence(measured, order, classifier.input_shape),
            maps=_encoded(measured, shown, classifier.input_shape),
            grid=None,
            lowest=lowest,
        )

    def _reference(self, classifier: Classifier, task: str | None) -> tuple[Reference | None, str]:
        """The clean models to rank among; and why those of the task are passed over, where the model is not of it.

        One's own clean scores are taken to be of the model's task: there are no images of it to ask.
        """
        form = (classifier.input_shape, classifier.num_classes)
        chosen = choose_reference(self.name, self.settings(), task, *form, own=self.calibration)
        if chosen is None or not chosen.same_task or self.calibration is not None:
            return chosen, ""
        doubt = doubt_about(classifier, task)
        return (choose_reference(self.name, self.settings(), None, *form), doubt) if doubt else (chosen, "")


def _evidence(measured: Measured, order: list[int], input_shape: tuple[int, ...]) -> tuple[ClassEvidence, ...]:
    """Every class, most suspicious first."""
    whole = Place(row=0, column=0, height=input_shape[-2], width=input_shape[-1])
    return tuple(
        ClassEvidence(
            index=index,
            suspicion=float(measured.suspicions[index]),
            peak=float(measured.suspicions[index] if measured.maps is None else measured.maps[index].max()),
            place=whole if measured.places is None else measured.places[index],
        )
        for index in order
    )


def _encoded(measured: Measured, shown: tuple[int, ...], input_shape: tuple[int, ...]) -> EncodedMaps:
    maps = torch.zeros(0, *input_shape[-2:]) if measured.maps is None else measured.maps[list(shown)]
    return EncodedMaps.encode(maps.cpu().numpy(), base="clean images", variant=measured.map_name, classes=shown)


def _without_models(name: str, statement: str) -> CalibrationSummary:
    return CalibrationSummary(
        name=name, tasks=(), clean_models=0, backdoored_models=0, clean_scores=(), statement=statement
    )


def _own_summary(name: str) -> CalibrationSummary:
    return _without_models(
        name,
        f"No clean models of this task are known: the p-value is the one that {name} computes from the model alone, by "
        "its own assumptions.",
    )


def _no_summary(name: str) -> CalibrationSummary:
    return _without_models(
        name,
        f"No clean models were scored with {name} and these settings, so its score can't be ranked: fit it to some "
        f"with intaglio population fit --detector {name}.",
    )
