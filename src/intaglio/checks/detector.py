"""`check_detector`: what every detector must hold to."""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intaglio.checks.failures import Problems, state_of
from intaglio.checks.toy import CLASSES, SHAPE, toy_data, toy_module
from intaglio.classifiers import Access, CallableClassifier, Classifier, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError
from intaglio.scan import Detector, ScoreDetector, Verdict

_COSTS = ("seconds", "peak_memory_mb")


def check_detector(make: Callable[..., Detector], **options: Any) -> None:
    """Tries the detector that `make(calibration=None, **options)` gives on a small network, with all it may ask for.

    The model is offered with no more access than `requires`: a function where scores suffice. The verdict has a finite
    score, a p-value in (0, 1] and every class at most once, most suspicious first; it is JSON, and the same for the
    same seed. Module, images and torch's global generator are left alone. Less access is refused before a question is
    asked; without any images there is a verdict, or a DataError that says what is missing.

    Raises:
        CheckError: listing all that does not hold.
    """
    problems = Problems()
    detector = None
    with problems.during("making it with calibration=None"):
        detector = make(calibration=None, **options)
    if detector is not None and not isinstance(detector, Detector):
        problems.unless(False, f"it is a {type(detector).__name__}, not an intaglio.scan.Detector")
    elif detector is not None:
        problems.check_name(getattr(detector, "name", None))
        if not isinstance(getattr(detector, "requires", None), Access):
            problems.unless(False, f"its `requires` is {getattr(detector, 'requires', None)!r}, not an Access")
        else:
            _check_settings(problems, detector)
            _check_verdict(problems, detector)
            _check_access(problems, detector)
            _check_missing(problems, detector)
    problems.finish(f"detector {getattr(detector, 'name', None) or getattr(make, '__name__', make)}")


def _classifier(access: Access) -> tuple[Classifier, torch.nn.Module]:
    """The toy network, showing no more than this."""
    module = toy_module()
    if access > Access.SCORES:
        return TorchClassifier(module, input_shape=SHAPE, num_classes=len(CLASSES)), module

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = module(images)
        return scores if access is Access.SCORES else scores.argmax(dim=1)

    outputs: Any = {} if access is Access.LABELS else {"outputs": "logits"}
    classifier = CallableClassifier(answer, input_shape=SHAPE, num_classes=len(CLASSES), access=access, **outputs)
    return classifier, module


def _given() -> dict[str, Any]:
    return {"clean": toy_data(120, 1).images, "training": toy_data(120, 2), "inputs": toy_data(40, 3).images}


def _check_settings(problems: Problems, detector: Detector) -> None:
    if isinstance(detector, ScoreDetector):
        with problems.during("settings()"):
            kept = json.loads(json.dumps(detector.settings(), allow_nan=False)) == detector.settings()
            problems.unless(kept, f"its settings are not what JSON gives back: {detector.settings()}")


def _check_verdict(problems: Problems, detector: Detector) -> None:
    classifier, module = _classifier(detector.requires)
    before, given, reference = state_of(module), _given(), _given()
    steps: list[tuple[Any, ...]] = []
    verdict = None
    with problems.during("inspect"):
        verdict = detector.inspect(classifier, seed=3, progress=lambda *step: steps.append(step), **given)
    problems.unless(state_of(module) == before, "it changes the module: weights, modes, gradients or hooks")
    for name, value in given.items():
        problems.unless(_same(value, reference[name]), f"it writes into the {name} images")
    orderly = all(len(step) == 2 and 0 <= step[0] <= step[1] for step in steps)
    problems.unless(orderly, f"progress is told something else than (done, total): {steps[:3]}")
    if verdict is None:
        return
    classes = [entry.index for entry in verdict.evidence]
    known = len(set(classes)) == len(classes) and set(classes) <= set(range(len(CLASSES)))
    problems.unless(known, f"its evidence names the classes {classes}")
    suspicions = [entry.suspicion for entry in verdict.evidence]
    problems.unless(suspicions == sorted(suspicions, reverse=True), "its evidence is not sorted by suspicion")
    with problems.during("JSON of the verdict"):
        problems.unless(Verdict.from_json(verdict.to_json()) == verdict, "its verdict does not survive JSON")
    with problems.during("inspect again"):
        again = detector.inspect(_classifier(detector.requires)[0], seed=3, **given)
        problems.unless(_facts(again) == _facts(verdict), "with the same seed, its verdict differs")


def _check_access(problems: Problems, detector: Detector) -> None:
    if detector.requires > Access.LABELS:
        less = Access.LABELS if detector.requires is Access.SCORES else Access.SCORES
        classifier, _ = _classifier(less)
        with problems.refused(
            ClassifierError, f"a model that offers {less.name}, where {detector.requires.name} is needed"
        ):
            detector.inspect(classifier, **_given())
        problems.unless(classifier.queries == 0, "it asks a model that offers too little access")


def _check_missing(problems: Problems, detector: Detector) -> None:
    with problems.during("inspect without any images"):
        try:
            detector.inspect(_classifier(detector.requires)[0])
        except DataError as error:
            problems.unless(bool(str(error)), "without any images, its DataError says nothing")


def _facts(verdict: Verdict) -> dict[str, Any]:
    return {name: value for name, value in verdict.to_dict().items() if name not in _COSTS}


def _same(given: Tensor | ImageData, reference: Tensor | ImageData) -> bool:
    pairs = zip(_tensors(given), _tensors(reference), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _tensors(value: Tensor | ImageData) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else (value.images, value.labels)
