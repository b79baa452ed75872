"""A model file in, a marked model with its commitment and fidelity report out: what `intaglio mark embed` does."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from intaglio.classifiers import Classifier, export_onnx, open_classifier, save_classifier
from intaglio.classifiers.derived import architecture_of, sidecar_of, with_weights
from intaglio.classifiers.sidecar import require_new_model
from intaglio.classifiers.weights import check_fits
from intaglio.data import ImageData
from intaglio.errors import DataError, IntaglioError
from intaglio.evidence.commitment import SignedCommitment
from intaglio.evidence.key import Key
from intaglio.files import require_new, require_writable, write_json
from intaglio.mark.fidelity_report import FidelityReport, fidelity_report
from intaglio.mark.marking import draw_triggers, mark, public_images
from intaglio.mark.verification import verify_mark
from intaglio.networks import Architecture

MODEL, ONNX, COMMITMENT, FIDELITY = "model.safetensors", "model.onnx", "commitment.json", "fidelity.json"


class MarkedFiles(NamedTuple):
    """What was written."""

    commitment: SignedCommitment
    fidelity: FidelityReport
    unverified: tuple[int, ...] = ()  #: batches that don't tell the marked model itself, by the committed rule
    undone: tuple[str, ...] = ()  #: what was asked for beside and failed, each with its reason: stamp, ONNX


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

    A stamp or an ONNX copy that fails after the training takes nothing of it away: the result says that it is undone.

    Args:
        test: labelled images for the fidelity report; by default `data`, which the mark was embedded with.
        architecture: of the model, where it has no side-car that says it.
        stamp_url: an RFC 3161 time-stamp authority, asked last.
        options: of `mark`.

    Raises:
        ModelError, DataError, ClassifierError, RecipeError: see `mark`.
        StorageError: the files can't be written, or `out` holds a commitment or a model already.
    """
    out = Path(out)
    require_writable(out / MODEL)
    require_new(out / COMMITMENT, "a commitment")
    require_new_model(out / MODEL, *([out / ONNX] if onnx else []))  # perhaps the host's own folder, and its only copy
    classifier = with_weights(classifier)
    built = architecture_of(classifier, architecture)
    for part in (data, test or data):
        if part.input_shape != classifier.input_shape:
            raise DataError(f"{part.name}: images are {part.input_shape}, but the model takes {classifier.input_shape}")
    check_fits(built, classifier.module.state_dict(), classifier.source)
    if onnx:
        _check_exportable(classifier)
    marked, commitment = mark(classifier, data, key, public=public, trigger=trigger, **options)
    sidecar, undone = sidecar_of(classifier, built), []
    save_classifier(marked, out / MODEL, sidecar)
    commitment.write(out / COMMITMENT)  # a folder with a commitment holds the marked model
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
    write_json(out / FIDELITY, report.to_dict())
    written = open_classifier(out / MODEL)
    unverified = tuple(
        batch
        for batch in range(plan.batches)
        if not verify_mark(written, commitment, key, batch=batch, public=public).verified
    )
    if onnx:
        shape = tuple(classifier.preprocessing.apply(data.images[:1]).shape[1:])
        try:
            export_onnx(marked, out / ONNX, input_shape=shape, sidecar=sidecar)
        except IntaglioError as error:
            undone.append(f"no ONNX copy was written: {error}")
    if stamp_url is not None:
        try:
            commitment = _stamped(commitment, stamp_url, out / COMMITMENT)
        except IntaglioError as error:
            undone.append(
                f"the commitment has no time stamp, which `intaglio evidence stamp {out / COMMITMENT} --authority URL` "
                f"can still add: {error}"
            )
    return MarkedFiles(commitment, report, unverified, tuple(undone))


def _stamped(commitment: SignedCommitment, authority: str, path: Path) -> SignedCommitment:
    stamped = commitment.stamped(authority)
    stamped.write(path)
    return stamped


def _check_exportable(classifier: Classifier) -> None:
    if classifier.preprocessing.layout != "NCHW":
        raise DataError(f"{classifier.source}: a model of layout {classifier.preprocessing.layout} can't be exported")
