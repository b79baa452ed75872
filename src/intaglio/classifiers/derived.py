"""New model files made from an opened one: a marked, tampered or locked copy keeps what its side-car said."""

from pathlib import Path

from intaglio.classifiers.base import Classifier
from intaglio.classifiers.outputs import Outputs
from intaglio.classifiers.sidecar import Sidecar, find_sidecar
from intaglio.classifiers.torch_classifier import TorchClassifier
from intaglio.errors import ModelError
from intaglio.networks import Architecture


def with_weights(classifier: Classifier) -> TorchClassifier:
    """The classifier, if its weights can be changed here.

    Raises:
        ModelError: they can't (ONNX, functions, remote models).
    """
    if isinstance(classifier, TorchClassifier):
        return classifier
    raise ModelError(
        f"{classifier.source}: the weights of a model opened as {classifier.format} can't be changed here; give it as "
        ".safetensors with its side-car, or as a .pt state dict with its architecture"
    )


def architecture_of(classifier: Classifier, given: str | Architecture | None = None) -> Architecture:
    """The architecture that a copy's file will name: `given`, else what the model's side-car says.

    Raises:
        ModelError: neither says it.
    """
    if isinstance(given, Architecture):
        return given
    if isinstance(given, str):
        return Architecture(name=given, input_shape=classifier.input_shape, num_classes=classifier.num_classes)
    path = Path(classifier.source)
    sidecar = find_sidecar(path) if path.is_file() else None
    if sidecar is None or sidecar.architecture is None:
        raise ModelError(
            f"{classifier.source}: a copy could not be opened again without the name of its architecture; write it "
            "into a side-car, or give it"
        )
    return sidecar.architecture


def sidecar_of(classifier: Classifier, architecture: Architecture | None, outputs: Outputs | None = None) -> Sidecar:
    """The side-car of a copy: the original's shapes, classes, task and preprocessing."""
    return Sidecar(
        architecture=architecture,
        input_shape=_sides(classifier.input_shape),
        num_classes=classifier.num_classes,
        classes=classifier.classes,
        task=classifier.task,
        preprocessing=classifier.preprocessing,
        outputs=outputs or classifier.outputs,
    )


def _sides(shape: tuple[int, ...]) -> tuple[int, int, int] | tuple[int, int, int, int]:
    *frames, channels, height, width = shape
    return (frames[0], channels, height, width) if frames else (channels, height, width)
