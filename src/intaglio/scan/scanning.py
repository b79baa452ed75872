"""`scan`: one call from a model to its verdict."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.classifiers.opening import Source, open_classifier
from intaglio.data import TASKS, Data, ImageData, image_data, images_alone
from intaglio.data.opening import open_data_for
from intaglio.errors import IntaglioError, RecipeError
from intaglio.plugins import named
from intaglio.scan.activation_clustering import ActivationClustering
from intaglio.scan.auto import Auto
from intaglio.scan.ban import BAN
from intaglio.scan.detector import Detector, Progress, Request, UndecidableError
from intaglio.scan.final_layer import FinalLayer
from intaglio.scan.mm_bd import MMBD
from intaglio.scan.neural_cleanse import NeuralCleanse
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.probes import CONSIDERED
from intaglio.scan.readiness import require_ready
from intaglio.scan.spectral_signatures import SpectralSignatures
from intaglio.scan.strip import STRIP
from intaglio.scan.trodo import TRODO
from intaglio.scan.verdict import Verdict

#: By name; each is made with `calibration=`, a folder of one's own or None.
DETECTORS: dict[str, Callable[..., Detector]] = {
    detector.name: detector
    for detector in (
        OnePixelSignature,
        NeuralCleanse,
        MMBD,
        FinalLayer,
        BAN,
        TRODO,
        STRIP,
        ActivationClustering,
        SpectralSignatures,
    )
}
AUTO = "auto"
#: Of a set of videos no more than so many are decoded as clean ones.
CLEAN_VIDEOS = 256
#: Of a folder of pictures no more than so many are: no detector looks at more of them.
CLEAN_PICTURES = CONSIDERED


class UndecidedError(UndecidableError):
    """Of several detectors all have run, but some could not decide at this alpha (exit code 3 if no other flagged).

    `verdicts` holds one of each, in order; `undecided` those of them that are neither flagged nor cleared. Those of
    detectors that failed are missing: `failed` has their errors, by name (exit code 2 if no other flagged).
    """

    def __init__(
        self,
        message: str,
        verdicts: Sequence[Verdict] = (),
        undecided: Sequence[Verdict] = (),
        failed: Mapping[str, IntaglioError] | None = None,
    ) -> None:
        super().__init__(message, undecided[0] if undecided else None)
        self.verdicts = tuple(verdicts)
        self.undecided = tuple(undecided)
        self.failed = dict(failed or {})


def scan(
    model: Source,
    clean: Tensor | Data | None = None,
    task: str | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    *,
    detector: str | Detector = AUTO,
    calibration: Path | None = None,
    training: Data | None = None,
    inputs: Tensor | None = None,
    budget: float | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Examines a model for a backdoor.

    Args:
        model: a `Classifier`, or anything `open_classifier` takes; a bare module or function takes the task's shapes.
        clean: images float32 `[N, C, H, W]`, or clips `[N, T, C, H, W]`, that the model was made for; checked against
            its input. Labels beside them are not looked at.
        task: what the model was trained for; chooses the clean models that its score is ranked against.
        alpha: accepted share of false alarms.
        detector: its name, or a `Detector`; "auto" takes the best that the access allows.
        calibration: folder of a calibration of your own.
        training: the labelled images that the model was trained on, for detectors that look for poison in them.
        inputs: images that the model was asked about, for detectors that look for triggers in them.
        budget: seconds that "auto" may take, roughly; by default as many as it finds worth taking.

    Raises:
        IntaglioError: the model can't be opened or asked, or task and model do not fit.
    """
    classifier = _open(model, task)
    images = images_alone(clean, "clean images")
    if images is not None:
        classifier.predict(images[:1])
    chosen = detector if isinstance(detector, Detector) else make_detector(detector, calibration, budget)
    return chosen.inspect(
        classifier,
        clean=images,
        task=task or classifier.task,
        alpha=alpha,
        seed=seed,
        progress=progress,
        training=None if training is None else image_data(training),
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
    training: Data | None = None,
    inputs: Tensor | None = None,
    budget: float | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """One verdict per detector named, in that order; a name that is given twice counts once.

    All detectors are made, and what each can't do without is checked, before the first of them runs: one that can't run
    must not cost hours of another's work.

    Raises:
        RecipeError: an unknown detector, or a calibration that is not all of theirs.
        DataError: data that one of them needs are missing.
        ClassifierError: too little access for one of them.
        UndecidedError: some could not decide at this alpha, or failed; raised when all have run, with all of the
            verdicts.
        IntaglioError: as `scan`, if there is no verdict at all.
    """
    made = [make_detector(name, calibration, budget) for name in dict.fromkeys(detectors)]
    labelled = None if training is None else image_data(training)
    request = Request(clean, task, seed, training=labelled, inputs=inputs)
    for detector in made:
        require_ready(detector, classifier, request)
    verdicts: list[Verdict] = []
    undecided: list[Verdict] = []
    failed: dict[str, IntaglioError] = {}
    messages: list[str] = []
    for detector in made:
        try:
            verdict = scan(
                classifier,
                clean,
                task,
                alpha,
                seed,
                detector=detector,
                training=labelled,
                inputs=inputs,
                progress=progress,
            )
        except IntaglioError as error:  # one detector's trouble must not cost the others' verdicts
            messages.append(str(error))
            if not isinstance(error, UndecidableError) or error.verdict is None:
                failed[detector.name] = error
                continue
            verdict = error.verdict
            undecided.append(verdict)
        verdicts.append(verdict)
    if failed and not verdicts:
        raise next(iter(failed.values()))
    if undecided or failed:
        raise UndecidedError(" ".join(messages), verdicts, undecided, failed)
    return verdicts


def _open(model: Source, task: str | None) -> Classifier:
    """A module or function, which can't say its shapes itself, takes those of the task."""
    known = TASKS.get(task) if task is not None else None
    if known is None or isinstance(model, str | Path | Classifier):
        return open_classifier(model, task=task)
    return open_classifier(model, input_shape=known.input_shape, num_classes=len(known.classes), task=task)


def make_detector(name: str, calibration: Path | None = None, budget: float | None = None) -> Detector:
    """A detector by name; `budget`, in seconds, is for "auto", which with a calibration of your own has no choice.

    Raises:
        RecipeError: unknown, or a budget of no time.
        IntaglioError: a plug-in that can't be used.
    """
    if budget is not None and not budget > 0:
        raise RecipeError(f"a budget is a number of seconds above 0, got {budget}")
    if name == AUTO and calibration is not None:
        name = OnePixelSignature.name
    if name == AUTO:
        return Auto(OnePixelSignature(), DETECTORS, budget=budget)
    make: Callable[..., Detector] = named("detector", name, {AUTO: OnePixelSignature, **DETECTORS}, Detector)
    return make(calibration=calibration)


def clean_images(source: str | Path, classifier: Classifier) -> Tensor:
    """The test images of a data source, if they are of the classifier's input shape.

    Of a folder of pictures at most 1,024 are decoded, of videos at most 256 clips, all classes in turn.

    Raises:
        DataError: they can't be read, or are of another shape.
    """
    most = CLEAN_VIDEOS if _takes_videos(classifier) else CLEAN_PICTURES
    return open_data_for(classifier.input_shape, source, "test", most=most).images


def suspected_inputs(source: str | Path, classifier: Classifier) -> Tensor:
    """Images that the model was asked about: all test images of a data source, but of videos at most 256 clips.

    Raises:
        DataError: they can't be read, or are of another shape.
    """
    most = CLEAN_VIDEOS if _takes_videos(classifier) else None
    return open_data_for(classifier.input_shape, source, "test", most=most).images


def _takes_videos(classifier: Classifier) -> bool:
    return len(classifier.input_shape) == 4


def fitting_data(source: str | Path, classifier: Classifier, split: str) -> ImageData:
    """The "train" or "test" images of a data source, if they are of the classifier's input shape.

    Videos become clips of the length and size that the model takes.

    Raises:
        DataError: they can't be read, or are of another shape.
    """
    return open_data_for(classifier.input_shape, source, split)
