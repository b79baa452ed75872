"""Whether a detector can run on a model with what is given: asked before any of several is let loose."""

from intaglio.classifiers import Classifier
from intaglio.errors import ClassifierError, DataError
from intaglio.scan.calibration import choose_calibration
from intaglio.scan.clean_scores import choose_reference
from intaglio.scan.detector import Detector, Request
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.score_detector import ScoreDetector

#: By what a detector may declare in `needs`: what is missing, and how to give it.
_WANTED = {
    "clean": "clean images of the model's task (--data, or clean=images)",
    "training": "the labelled images that the model was trained on (--training, or training=ImageData(...))",
    "inputs": "images that the model was asked about and that you suspect (--inputs, or inputs=images)",
}


def require_ready(detector: Detector, classifier: Classifier, request: Request) -> None:
    """Does nothing if the detector has the access, the data and the calibration that it can't do without.

    The model isn't asked, so what only its answers show is not found out here.

    Raises:
        ClassifierError: too little access.
        DataError: data that the detector `needs` are not given, or a calibration of one's own can't be read.
        RecipeError: such a calibration is another detector's, or of models with other inputs or classes.
    """
    try:
        classifier.require(detector.requires)
    except ClassifierError as error:
        raise ClassifierError(f"{detector.name} {error}") from error
    for need in detector.needs:
        if getattr(request, need) is None:
            raise DataError(f"{detector.name} needs {_WANTED.get(need, need)}")
    task = request.task or classifier.task
    shape, classes = classifier.input_shape, classifier.num_classes
    if isinstance(detector, ScoreDetector) and detector.calibration is not None:
        choose_reference(detector.name, detector.settings(), task, shape, classes, own=detector.calibration)
    if isinstance(detector, OnePixelSignature) and detector.calibration is not None:
        choose_calibration(task, shape, classes, own=detector.calibration)
