"""`scan`: one call from a model to its verdict."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.classifiers.opening import Source, open_classifier
from intaglio.data import TASKS, ImageData, check_images, open_data
from intaglio.errors import DataError, RecipeError
from intaglio.scan.detector import Detector, Progress
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.verdict import Verdict

#: By name; each is made with `calibration=`, a folder of one's own or None.
DETECTORS: dict[str, Callable[..., Detector]] = {OnePixelSignature.name: OnePixelSignature}
AUTO = "auto"


def scan(
    model: Source,
    clean: Tensor | ImageData | None = None,
    task: str | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    *,
    detector: str | Detector = AUTO,
    calibration: Path | None = None,
    training: ImageData | None = None,
    inputs: Tensor | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Examines a model for a backdoor.

    Args:
        model: a `Classifier`, or anything `open_classifier` takes; a bare module or function takes the task's shapes.
        clean: images float32 `[N, C, H, W]` that the model was made for; checked against its input.
        task: what the model was trained for; chooses the clean models that its score is ranked against.
        alpha: accepted share of false alarms.
        detector: its name, or a `Detector`; "auto" takes the best that the access allows.
        calibration: folder of a calibration of your own.
        training: the labelled images that the model was trained on, for detectors that look for poison in them.
        inputs: images that the model was asked about, for detectors that look for triggers in them.

    Raises:
        IntaglioError: the model can't be opened or asked, or task and model do not fit.
    """
    classifier = _open(model, task)
    images = clean.images if isinstance(clean, ImageData) else clean
    if images is not None:
        classifier.predict(images[:1])
        check_images(images, "clean images")
    chosen = detector if isinstance(detector, Detector) else make_detector(detector, calibration)
    return chosen.inspect(
        classifier,
        clean=images,
        task=task or classifier.task,
        alpha=alpha,
        seed=seed,
        progress=progress,
        training=training,
        inputs=inputs,
    )


def scan_all(
    classifier: Classifier,
    *,
    detectors: Sequence[str],
    clean: Tensor | None = None,
    task: str | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    calibration: Path | None = None,
    training: ImageData | None = None,
    inputs: Tensor | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """One verdict per detector named."""
    return [
        scan(
            classifier,
            clean,
            task,
            alpha,
            seed,
            detector=name,
            calibration=calibration,
            training=training,
            inputs=inputs,
            progress=progress,
        )
        for name in dict.fromkeys(detectors)
    ]


def _open(model: Source, task: str | None) -> Classifier:
    """A module or function, which can't say its shapes itself, takes those of the task."""
    known = TASKS.get(task) if task is not None else None
    if known is None or isinstance(model, str | Path | Classifier):
        return open_classifier(model, task=task)
    return open_classifier(model, input_shape=known.input_shape, num_classes=len(known.classes), task=task)


def make_detector(name: str, calibration: Path | None = None) -> Detector:
    """A detector by name.

    Raises:
        RecipeError: unknown.
    """
    if name == AUTO:
        name = OnePixelSignature.name
    if name not in DETECTORS:
        raise RecipeError(f"unknown detector '{name}'; known are {AUTO}, {', '.join(DETECTORS)}")
    return DETECTORS[name](calibration=calibration)


def clean_images(source: str | Path, classifier: Classifier) -> Tensor:
    """The test images of a data source, if they are of the classifier's input shape.

    Raises:
        DataError: they can't be read, or are of another shape.
    """
    channels = classifier.input_shape[0] if classifier.input_shape[0] in (1, 3) else None
    data = open_data(source, "test", channels=channels)
    if data.input_shape != classifier.input_shape:
        raise DataError(f"{source}: images are {data.input_shape}, but the model takes {classifier.input_shape}")
    return data.images
