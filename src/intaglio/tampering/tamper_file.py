"""A model file in, a tampered model file out."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.classifiers import Classifier, TorchClassifier, save_classifier
from intaglio.classifiers.derived import architecture_of, sidecar_of, with_weights
from intaglio.classifiers.sidecar import sidecar_path
from intaglio.classifiers.weights import check_fits
from intaglio.data import ImageData
from intaglio.errors import DataError, ModelError
from intaglio.files import require_other, require_writable, sha256_file
from intaglio.networks import Architecture
from intaglio.results import Result, package_versions
from intaglio.tampering.tampering import Tampering


class Tampered(Result):
    """What was done to which model.

    `changed` is the share of weights that differ, `distance` is ||w' - w|| / ||w||, both None where the result is of
    another architecture. `agreement` is the share of the given images that both models answer alike; the accuracies
    are on those with a label. All of these are None without images.
    """

    tampering: str
    options: dict[str, Any]
    source: str
    source_sha256: str | None
    output: str
    sha256: str
    seed: int
    data: str | None
    changed: float | None
    distance: float | None
    agreement: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float
    versions: dict[str, str]


def tamper_file(
    tampering: Tampering,
    classifier: Classifier,
    out: Path | str,
    *,
    data: ImageData | None = None,
    architecture: str | Architecture | None = None,
    seed: int = 0,
) -> Tampered:
    """Tampers with an opened model and writes the result as `.safetensors` with its side-car.

    Args:
        data: raw images, as `tampering.apply` takes them; the classifier's preprocessing is put before the module.
        architecture: of the model, where it has no side-car that says it.

    Raises:
        ModelError: weights that can't be changed (ONNX, functions), or of a network that no file can name.
        RecipeError: an option whose effect no file of weights holds.
        DataError: images that the model doesn't take.
        StorageError: the files can't be written, or one of them is the model's own or its side-car.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ModelError(f"{out}: tampered models are written as .safetensors")
    tampering.check_storable()
    require_writable(out)
    require_other(out, classifier.source)
    require_other(sidecar_path(out), sidecar_path(Path(classifier.source)))
    classifier = with_weights(classifier)
    original = architecture_of(classifier, architecture)
    check_fits(original, classifier.module.state_dict(), classifier.source)
    target = tampering.architecture(original)
    if data is not None and data.input_shape != classifier.input_shape:
        raise DataError(f"{data.name}: images are {data.input_shape}, but the model takes {classifier.input_shape}")
    module = tampering.apply(classifier.module, data, seed=seed, preprocessing=classifier.preprocessing)
    result = TorchClassifier(
        module,
        input_shape=classifier.input_shape,
        num_classes=classifier.num_classes,
        preprocessing=classifier.preprocessing,
        outputs=classifier.outputs if target == original else "auto",
        task=classifier.task,
        classes=classifier.classes,
        source=str(out),
    )
    sidecar = sidecar_of(classifier, target, result.outputs)
    compared = _compared(classifier, result, data)
    changed, distance = _moved(classifier, result) if target == original else (None, None)
    save_classifier(module, out, sidecar)
    options = tampering.describe()
    return Tampered(
        tampering=options.pop("tampering"),
        options=options,
        source=classifier.source,
        source_sha256=classifier.sha256,
        output=out.name,
        sha256=sha256_file(out),
        seed=seed,
        data=None if data is None else data.name,
        changed=changed,
        distance=distance,
        agreement=compared[0],
        accuracy_before=compared[1],
        accuracy_after=compared[2],
        seconds=round(time.perf_counter() - started, 3),
        versions=package_versions(),
    )


def _compared(
    before: Classifier, after: Classifier, data: ImageData | None
) -> tuple[float | None, float | None, float | None]:
    """Agreement and the two accuracies."""
    if data is None:
        return None, None, None
    old, new = before.predict(data.images), after.predict(data.images)
    known = data.labels >= 0
    agreement = float((old == new).float().mean())
    if not bool(known.any()):
        return agreement, None, None
    right = [float((answers == data.labels)[known].float().mean()) for answers in (old, new)]
    return agreement, right[0], right[1]


def _moved(before: TorchClassifier, after: TorchClassifier) -> tuple[float, float]:
    """The share of weights that differ, and the distance ||w' - w|| / ||w||, in double precision."""
    old, new = _flat(before), _flat(after)
    return float((old != new).double().mean()), float((new - old).norm() / old.norm().clamp_min(1e-300))


def _flat(classifier: TorchClassifier) -> Tensor:
    return torch.cat([parameter.detach().cpu().double().flatten() for parameter in classifier.module.parameters()])
