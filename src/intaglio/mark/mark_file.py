"""A model file in, a marked model with its commitment and fidelity report out: what `intaglio mark embed` does."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from intaglio.classifiers import Classifier, export_onnx, save_classifier
from intaglio.classifiers.derived import architecture_of, sidecar_of, with_weights
from intaglio.classifiers.weights import check_fits
from intaglio.data import ImageData
from intaglio.errors import DataError
from intaglio.evidence.commitment import SignedCommitment
from intaglio.evidence.key import Key
from intaglio.files import require_new, require_writable, write_json
from intaglio.mark.fidelity_report import FidelityReport, fidelity_report
from intaglio.mark.marking import draw_triggers, mark, public_images
from intaglio.networks import Architecture

MODEL, ONNX, COMMITMENT, FIDELITY = "model.safetensors", "model.onnx", "commitment.json", "fidelity.json"


class MarkedFiles(NamedTuple):
    """What was written."""

    commitment: SignedCommitment
    fidelity: FidelityReport


def mark_file(
    classifier: Classifier,
    data: ImageData,
    key: Key,
    out: Path | str,
    *,
    test: ImageData | None = None,
    architecture: str | Architecture | None = None,
    public: Tensor | None = None,
    trigger: str = "noise-blocks",
    onnx: bool = False,
    stamp_url: str | None = None,
    **options: Any,
) -> MarkedFiles:
    """Marks an opened model and writes the folder `out`: weights and side-car, commitment, fidelity report, ONNX.

    Args:
        test: labelled images for the fidelity report; by default `data`, which the mark was embedded with.
        architecture: of the model, where it has no side-car that says it.
        stamp_url: an RFC 3161 time-stamp authority.
        options: of `mark`.

    Raises:
        ModelError, DataError, ClassifierError, RecipeError: see `mark`.
        RemoteError: the authority does not answer; nothing is written then.
        StorageError: the files can't be written, or `out` holds a commitment already.
    """
    out = Path(out)
    require_writable(out / MODEL)
    require_new(out / COMMITMENT, "a commitment")
    classifier = with_weights(classifier)
    built = architecture_of(classifier, architecture)
    for part in (data, test or data):
        if part.input_shape != classifier.input_shape:
            raise DataError(f"{part.name}: images are {part.input_shape}, but the model takes {classifier.input_shape}")
    check_fits(built, classifier.module.state_dict(), classifier.source)
    if onnx:
        _check_exportable(classifier)
    marked, commitment = mark(classifier, data, key, public=public, trigger=trigger, **options)
    if stamp_url is not None:
        commitment = commitment.stamped(stamp_url)
    plan = commitment.commitment
    report = fidelity_report(
        classifier.module,
        marked,
        test or data,
        draw_triggers(key, plan, public_images(trigger, plan.input_shape, public)),
        scheme=plan.scheme,
        mode=plan.mode,
        preprocessing=classifier.preprocessing,
    )
    if onnx:
        shape = tuple(classifier.preprocessing.apply(data.images[:1]).shape[1:])
        export_onnx(marked, out / ONNX, input_shape=shape, sidecar=sidecar_of(classifier, None))
    save_classifier(marked, out / MODEL, sidecar_of(classifier, built))
    write_json(out / FIDELITY, report.to_dict())
    commitment.write(out / COMMITMENT)  # last: a folder with a commitment is whole
    return MarkedFiles(commitment, report)


def _check_exportable(classifier: Classifier) -> None:
    if classifier.preprocessing.layout != "NCHW":
        raise DataError(f"{classifier.source}: a model of layout {classifier.preprocessing.layout} can't be exported")
