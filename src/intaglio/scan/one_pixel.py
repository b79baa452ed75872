"""The one-pixel-signature detector: scores only, no data needed."""

from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import DataError, NothingToExamineError, RecipeError
from intaglio.scan.calibration import Calibration, choose_calibration
from intaglio.scan.clean_scores import lowest_p_value
from intaglio.scan.detector import Detector, Finding, Request
from intaglio.scan.features import peak_places, smoothed
from intaglio.scan.measurement import FRAME_BASES, Measurement, measure
from intaglio.scan.places import frames_of
from intaglio.scan.probes import Probes, predicted_probes, synthetic_probes
from intaglio.scan.recognition import doubt
from intaglio.scan.verdict import ClassEvidence, EncodedMaps, Place

#: Maps of so many classes are kept in a verdict; with 1,000 classes the rest would only fill disks.
SHOWN_CLASSES = 24
#: A place is one frame's if that frame moves the answer so many times as far as the median frame does.
_ONE_FRAME = 2.0
_IMAGES_ONLY = "Those answer single images, and this one clips: the rank is a rough guide."


class OnePixelSignature(Detector):
    """Reads a model's one-pixel signature with an ensemble fitted on clean and backdoored models.

    responses to one changed pixel -> composed triggers -> scale-free class features -> signature networks -> score;
    p-value by rank among clean models. Attacks with right labels go unseen, and clean models of unequal classes are
    accused too often (docs/bench.md). Of a clip, a pixel is changed in all frames at once; a second, coarser pass
    through its frames tells in which of them a place matters, and has no part in the score.

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
        if max(classifier.input_shape[-2:]) == 1:
            raise RecipeError(f"{self.name} needs images of some pixels, but the model takes {classifier.input_shape}")
        calibration = choose_calibration(
            request.task or classifier.task,
            classifier.input_shape,
            classifier.num_classes,
            own=self.calibration,
            data=request.clean is not None,
        )
        doubted = ""
        if not calibration.recognises(classifier):
            doubted = doubt(calibration.meta.name)
            if self.calibration is not None:
                raise RecipeError(f"calibration {self.calibration}: {doubted}")
            calibration = choose_calibration(
                None, classifier.input_shape, classifier.num_classes, data=request.clean is not None
            )
        probes = choose_probes(calibration, classifier, request.clean)
        measurement = measure(classifier, probes, progress=request.progress)
        if measurement.alike:
            raise NothingToExamineError(
                f"{classifier.source}: answers every image alike, so no trigger can change anything"
            )
        with torch.inference_mode():
            scores, suspicions = calibration.ensemble(measurement.features[None], measurement.targets[None])
        summary = calibration.summary(scores[0], measurement.confidence)
        clips = calibration.meta.task_free and frames_of(classifier.input_shape)
        said = (doubted, summary.statement, _IMAGES_ONLY if clips else "")
        summary = summary.model_copy(update={"statement": " ".join(filter(None, said))})
        evidence = class_evidence(measurement, suspicions[0], classifier.input_shape)
        shown = tuple(entry.index for entry in evidence[:SHOWN_CLASSES])

        def encoded(maps: Tensor, bases: int) -> EncodedMaps:
            base = f"mean of {bases} {'images' if measurement.frames is None else 'clips'}"
            return EncodedMaps.encode(maps[list(shown)].numpy(), base=base, variant="logit", classes=shown)

        frames = measurement.frames
        return Finding(
            score=float(scores.mean()),
            p_value=calibration.p_value(scores[0], measurement.confidence),
            calibrated=not calibration.meta.task_free,
            calibration=summary,
            evidence=evidence,
            maps=encoded(measurement.responses.effect, measurement.bases),
            frame_maps=None if frames is None else encoded(frames, FRAME_BASES),
            grid=measurement.grid,
            lowest=lowest_p_value(task.rank(scores[0], measurement.confidence) for task in calibration.meta.clean),
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
                place=_framed(
                    Place(row=top, column=left, height=bottom - top, width=right - left),
                    None if measurement.frames is None else measurement.frames[index],
                    (height, width),
                ),
            )
        )
    return tuple(evidence)


def _framed(place: Place, frames: Tensor | None, size: tuple[int, int]) -> Place:
    """The place in the one frame whose map `[h, w]` of `[T, h, w]` stands out there from the others', if one does."""
    if frames is None or len(frames) < 2:
        return place
    top, left = (
        start * cells // pixels
        for start, cells, pixels in zip((place.row, place.column), frames.shape[1:], size, strict=True)
    )
    ends = (place.row + place.height - 1, place.column + place.width - 1)
    bottom, right = (end * cells // pixels + 1 for end, cells, pixels in zip(ends, frames.shape[1:], size, strict=True))
    strength = frames[:, top:bottom, left:right].amax(dim=(1, 2))
    strongest = int(strength.argmax())
    if float(strength[strongest]) <= _ONE_FRAME * float(strength.median()):
        return place
    return place.model_copy(update={"frame": strongest})


def _start(cell: int, pixels: int, cells: int) -> int:
    """First pixel of a grid cell; cells outside are clamped to the border."""
    return -(-min(max(cell, 0), cells) * pixels // cells)
