"""A model file in, a locked model and its lock's folder out: what `intaglio lock train` does, and `lock refine`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from intaglio.classifiers import Classifier, TorchClassifier
from intaglio.classifiers.derived import architecture_of, sidecar_of, with_weights
from intaglio.classifiers.sidecar import require_new_model
from intaglio.classifiers.weights import check_fits
from intaglio.data import ImageData
from intaglio.errors import DataError, ModelError
from intaglio.evidence.key import Key
from intaglio.files import require_new, require_writable, write_json
from intaglio.lock.checking import LeakTable, check_lock, check_measurable
from intaglio.lock.lock import KEY_NETWORK_FILE, Lock
from intaglio.lock.locking import train_lock
from intaglio.lock.mending import refine_lock
from intaglio.lock.sealed_model import seal_model, write_locked
from intaglio.networks import Architecture

MODEL, ONNX, SEALED, LEAKS = "model.safetensors", "model.onnx", "model.sealed", "leaks.json"
CHECKPOINT = "training.checkpoint"


class LockedFiles(NamedTuple):
    """What was written: the locked model's file, and what it was found to leak."""

    model: Path
    lock: Lock
    leaks: LeakTable


def lock_file(
    classifier: Classifier,
    data: ImageData,
    key: Key,
    out: Path | str,
    *,
    test: ImageData,
    architecture: str | Architecture | None = None,
    onnx: bool = False,
    encrypt: bool = False,
    earlier: Lock | Sequence[Lock] | None = None,
    **options: Any,
) -> LockedFiles:
    """Locks an opened model and writes the folder `out`: the model, the encrypted key network, the list of users.

    The model is written as safetensors where its architecture is known, else as ONNX. An interrupted run goes on
    from the last pass over the data, or the last stage of refining, that it had finished; with another model, other
    data or settings, another key or seed, or other earlier locks it is refused.

    Args:
        test: labelled images to measure the leak table on.
        architecture: of the model, where it has no side-car that says it.
        onnx: write the locked model as ONNX too.
        encrypt: write the locked model encrypted under the owner's key, and not in the plain.
        earlier: locks whose keys are to open nothing any more; the leak table tries them too.
        options: of `train_lock`.

    Raises:
        ModelError, DataError, ClassifierError: see `train_lock`; `test` that no leak table can be made of.
        StorageError: the files can't be written, or `out` holds a lock or a model already.
    """
    out = Path(out)
    classifier = with_weights(classifier)
    _check_shapes(classifier, data, test)
    built = _architecture(classifier, architecture)
    if encrypt and (built is None or onnx):
        raise ModelError("an encrypted model needs a known architecture, and no plain copy as ONNX beside it")
    check_measurable(test, classifier.num_classes)
    target, checkpoint = out / (SEALED if encrypt else ONNX if built is None else MODEL), out / CHECKPOINT
    require_writable(target)
    require_new(out / KEY_NETWORK_FILE, "a lock")
    if not checkpoint.exists():  # what an interrupted run has written is its own
        require_new_model(target, *([out / ONNX] if onnx else []))
    locked, lock = train_lock(classifier, data, key, earlier=earlier, checkpoint=checkpoint, **options)
    sidecar = sidecar_of(classifier, built, "logits")
    if encrypt:
        seal_model(locked, target, sidecar, key)
    else:
        write_locked(locked, target, sidecar)
    if onnx and built is not None:
        write_locked(locked, out / ONNX, sidecar)
    leaks = check_lock(_same_but(classifier, locked, str(target)), lock, test, other=earlier)
    write_json(out / LEAKS, leaks.to_dict())
    lock.save(out, key)  # last: a folder with a lock is whole
    checkpoint.unlink(missing_ok=True)
    return LockedFiles(target, lock, leaks)


def refine_file(
    locked: Classifier,
    unlocked: Classifier,
    data: ImageData,
    lock: Lock,
    key: Key,
    out: Path | str,
    *,
    test: ImageData,
    architecture: str | Architecture | None = None,
    earlier: Sequence[Lock] = (),
    **options: Any,
) -> LockedFiles:
    """Refines an opened locked model again (`refine_lock`) and writes it: .safetensors, .onnx, or encrypted, .sealed.

    An interrupted run goes on from the last stage that it had finished.

    Args:
        unlocked: the model that was locked, of the same architecture.
        test: labelled images to measure the leak table on.
        architecture: of both models, where neither has a side-car that says it.
        options: of `refine_lock`.

    Raises:
        ModelError, DataError, ClassifierError: see `refine_lock`; `test` that no leak table can be made of; an
            architecture that isn't known, but for .onnx, or isn't the model's.
        KeyFileError: another key than the lock's.
        StorageError: the file can't be written, or there is one already.
    """
    out, locked, unlocked = Path(out), with_weights(locked), with_weights(unlocked)
    _check_shapes(locked, data, test)
    _check_shapes(unlocked, data)
    lock.require_key(key, out)
    built = _architecture(locked, architecture) or _architecture(unlocked, None)
    if out.suffix not in (".safetensors", ".onnx", ".sealed"):
        raise ModelError(f"{out}: a locked model is written as .safetensors, .onnx or .sealed")
    if built is None and out.suffix != ".onnx":
        raise ModelError(f"{out}: the architecture isn't known, so that the model can be written as .onnx only")
    if built is not None:
        check_fits(built, locked.module.state_dict(), locked.source)
    check_measurable(test, locked.num_classes)
    require_writable(out)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if not checkpoint.exists():  # what an interrupted run has written is its own
        if out.suffix == ".sealed":  # has no side-car: a plain copy's may lie there
            require_new(out, "a model")
        else:
            require_new_model(out)
    refined = refine_lock(locked, unlocked, data, lock, earlier=earlier, checkpoint=checkpoint, **options)
    write_locked(refined, out, sidecar_of(locked, built, "logits"), opener=key)
    leaks = check_lock(_same_but(locked, refined, str(out)), lock, test, other=earlier)
    checkpoint.unlink(missing_ok=True)
    return LockedFiles(out, lock, leaks)


def _check_shapes(classifier: TorchClassifier, *parts: ImageData) -> None:
    for part in parts:
        if part.input_shape != classifier.input_shape:
            raise DataError(f"{part.name}: images are {part.input_shape}, but the model takes {classifier.input_shape}")


def _same_but(classifier: TorchClassifier, module: nn.Module, source: str) -> TorchClassifier:
    return TorchClassifier(
        module,
        input_shape=classifier.input_shape,
        num_classes=classifier.num_classes,
        preprocessing=classifier.preprocessing,
        outputs="logits",
        source=source,
        classes=classifier.classes,
    )


def _architecture(classifier: Classifier, given: str | Architecture | None) -> Architecture | None:
    try:
        return architecture_of(classifier, given)
    except ModelError:
        return None
