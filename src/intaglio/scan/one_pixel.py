"""The one-pixel-signature detector: scores only, no data needed."""

from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import DataError, RecipeError
from intaglio.scan.calibration import Calibration, choose_calibration
from intaglio.scan.detector import Detector, Finding, Request
from intaglio.scan.features import peak_places, smoothed
from intaglio.scan.measurement import Measurement, measure
from intaglio.scan.probes import Probes, predicted_probes, synthetic_probes
from intaglio.scan.verdict import ClassEvidence, EncodedMaps, Place

#: Maps of so many classes are kept in a verdict; with 1,000 classes the rest would only fill disks.
SHOWN_CLASSES = 24


class OnePixelSignature(Detector):
    """Reads a model's one-pixel signature with an ensemble fitted on clean and backdoored models.

    responses to one changed pixel -> composed triggers -> scale-free class features -> signature networks -> score;
    p-value by rank among clean models.

    Args:
        calibration: folder of a calibration of your own (`intaglio population fit`); by default the one shipped for
            the model's task, or the task-free one.

    Source: Huang et al. 2020, "One-pixel Signature: Characterizing CNN Models for Backdoor Detection".
    """

    name = "one-pixel-signature"
    requires = Access.SCORES

    def __init__(self, *, calibration: Path | None = None) -> None:
        self.calibration = calibration

    def run(self, classifier: Classifier, request: Request) -> Finding:
        if len(classifier.input_shape) != 3 or max(classifier.input_shape[1:]) == 1:
            raise RecipeError(f"{self.name} needs images of some pixels, but the model takes {classifier.input_shape}")
        calibration = choose_calibration(
            request.task or classifier.task,
            classifier.input_shape,
            classifier.num_classes,
            own=self.calibration,
            data=request.clean is not None,
        )
        summary = calibration.summary()
        if not calibration.recognises(classifier):
            doubt = (
                f"This model does not answer {calibration.meta.name} images with that task's classes in their order, "
                f"so it can't be compared with that task's clean models."
            )
            if self.calibration is not None:
                raise RecipeError(f"calibration {self.calibration}: {doubt}")
            calibration = choose_calibration(
                None, classifier.input_shape, classifier.num_classes, data=request.clean is not None
            )
            summary = calibration.summary()
            summary = summary.model_copy(update={"statement": f"{doubt} {summary.statement}"})
        probes = choose_probes(calibration, classifier, request.clean)
        measurement = measure(classifier, probes, progress=request.progress)
        with torch.inference_mode():
            scores, suspicions = calibration.ensemble(measurement.features[None], measurement.targets[None])
        evidence = class_evidence(measurement, suspicions[0], classifier.input_shape)
        shown = tuple(entry.index for entry in evidence[:SHOWN_CLASSES])
        maps = measurement.responses.effect[list(shown)].numpy()
        return Finding(
            score=float(scores.mean()),
            p_value=calibration.p_value(scores[0]),
            calibrated=not calibration.meta.task_free,
            calibration=summary,
            evidence=evidence,
            maps=EncodedMaps.encode(maps, base=f"mean of {len(probes.bases)} images", variant="logit", classes=shown),
            grid=measurement.grid,
        )


def choose_probes(calibration: Calibration, classifier: Classifier, clean: Tensor | None) -> Probes:
    """The images that this calibration was fitted to probe with.

    Raises:
        DataError: it needs clean images, and there are none.
    """
    if calibration.probes is not None:
        return calibration.probes
    if calibration.meta.probes == "clouds":
        return synthetic_probes(classifier.input_shape)
    if clean is None:
        raise DataError(f"calibration {calibration.meta.name} needs clean images of the model's task (--data)")
    return predicted_probes(classifier, clean)


def class_evidence(
    measurement: Measurement, suspicions: Tensor, input_shape: tuple[int, ...]
) -> tuple[ClassEvidence, ...]:
    """Every examined class's suspicion and the peak of its smoothed map, most suspicious class first."""
    height, width = input_shape[-2:]
    smooth = smoothed(measurement.responses.effect)
    rows, columns = peak_places(smooth)
    cells = smooth.shape[-2:]
    evidence = []
    for position in suspicions.argsort(descending=True, stable=True).tolist():
        index = int(measurement.targets[position])
        row, column = int(rows[index]), int(columns[index])
        top, left = _start(row - 1, height, cells[0]), _start(column - 1, width, cells[1])
        bottom, right = _start(row + 2, height, cells[0]), _start(column + 2, width, cells[1])
        evidence.append(
            ClassEvidence(
                index=index,
                suspicion=float(suspicions[position]),
                peak=float(smooth[index, row, column]),
                place=Place(row=top, column=left, height=bottom - top, width=right - left),
            )
        )
    return tuple(evidence)


def _start(cell: int, pixels: int, cells: int) -> int:
    """First pixel of a grid cell; cells outside are clamped to the border."""
    return -(-min(max(cell, 0), cells) * pixels // cells)
