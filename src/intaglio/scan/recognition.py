"""Whether a model is of the task that it is said to be of: asked before it is ranked among that task's clean models."""

from intaglio.classifiers import Classifier
from intaglio.scan.calibration import shipped_calibration, shipped_calibrations


def doubt_about(classifier: Classifier, task: str | None) -> str:
    """Why the model can't be compared with clean models of a task that ships; empty where nothing speaks against it.

    The model is asked 40 images of the task (`Calibration.recognises`). A task that does not ship, or whose inputs or
    classes are others than the model's, is taken at its word: there are no clean models of it to mistake this one for.
    """
    if task is None or task not in shipped_calibrations():
        return ""
    calibration = shipped_calibration(task)
    fits = (calibration.meta.input_shape, calibration.meta.num_classes) == (
        tuple(classifier.input_shape),
        classifier.num_classes,
    )
    return doubt(task) if fits and not calibration.recognises(classifier) else ""


def doubt(name: str) -> str:
    """What a verdict says of a model that a calibration does not recognise."""
    return (
        f"This model does not answer {name} images with that task's classes in their order, so it can't be compared "
        "with that task's clean models."
    )
