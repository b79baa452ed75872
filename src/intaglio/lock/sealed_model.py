"""A locked model at rest: plain as any other model, or encrypted and opened into memory only."""

from pathlib import Path

from torch import nn

from intaglio.classifiers import Sidecar, TorchClassifier, export_onnx, save_classifier
from intaglio.classifiers.weights import build_with_weights, check_fits
from intaglio.errors import ModelError
from intaglio.lock.container import Opener, read_container, write_container
from intaglio.tensors import pack, unpack

_METADATA = "sidecar"


def write_locked(module: nn.Module, path: Path, sidecar: Sidecar, *, opener: Opener | None = None) -> None:
    """Writes a model to `path`: .safetensors or .onnx with a side-car, or .sealed, encrypted with `opener`.

    Raises:
        ModelError: another suffix, weights without a known architecture, or a module that ONNX can't hold.
        StorageError: it can't be written.
    """
    if path.suffix == ".onnx":
        shape = sidecar.input_shape or (sidecar.architecture.input_shape if sidecar.architecture else None)
        if shape is None:
            raise ModelError(f"{path}: the input shape must be known")
        export_onnx(module, path, input_shape=sidecar.preprocessing.model_shape(shape), sidecar=sidecar)
    elif path.suffix == ".safetensors":
        save_classifier(module, path, sidecar)
    elif path.suffix == ".sealed" and opener is not None:
        seal_model(module, path, sidecar, opener)
    else:
        raise ModelError(f"{path}: locked models are written as .safetensors, .onnx, or, encrypted, as .sealed")


def seal_model(module: nn.Module, path: Path | str, sidecar: Sidecar, opener: Opener) -> None:
    """Writes weights and side-car encrypted with the owner's key or a passphrase.

    Raises:
        ModelError: no architecture in the side-car, or weights that aren't that architecture's.
        StorageError: it can't be written.
    """
    if sidecar.architecture is None:
        raise ModelError(f"{path}: only networks of a known architecture are kept encrypted; give its name")
    tensors = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
    check_fits(sidecar.architecture, tensors, str(path))
    write_container(path, pack(tensors, {_METADATA: sidecar.model_dump_json(exclude_defaults=True)}), opener)


def open_sealed(path: Path | str, opener: Opener) -> TorchClassifier:
    """Opens what `seal_model` wrote; nothing but memory ever holds it decrypted.

    Raises:
        ModelError: missing, not a sealed file, or one that holds something else.
        KeyFileError: the key or passphrase is wrong, or the file was changed or cut short.
    """
    content = read_container(path, opener)
    try:
        tensors, metadata = unpack(content)
        sidecar = Sidecar.model_validate_json(metadata[_METADATA])
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path}: holds no model") from error
    if sidecar.architecture is None:
        raise ModelError(f"{path}: holds no model")
    architecture = sidecar.architecture
    return TorchClassifier(
        build_with_weights(architecture, tensors, str(path)),
        input_shape=sidecar.input_shape or architecture.input_shape,
        num_classes=architecture.num_classes,
        format="sealed",
        preprocessing=sidecar.preprocessing,
        outputs=sidecar.outputs,
        source=str(path),
        task=sidecar.task,
        classes=sidecar.classes,
    )
