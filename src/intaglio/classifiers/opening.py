"""`open_classifier`: from a file, a module, a function or a factory's name to a `Classifier`, unpickling nothing."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.classifiers.base import Classifier, Options
from intaglio.classifiers.callable_classifier import CallableClassifier
from intaglio.classifiers.exported import read_exported
from intaglio.classifiers.http_address import is_address
from intaglio.classifiers.http_classifier import HttpClassifier
from intaglio.classifiers.http_mapping import HttpMapping
from intaglio.classifiers.huggingface import open_huggingface
from intaglio.classifiers.onnx_classifier import OnnxClassifier
from intaglio.classifiers.outputs import Outputs
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.classifiers.safetensors_file import read_safetensors
from intaglio.classifiers.sidecar import Sidecar, find_sidecar
from intaglio.classifiers.state_dict import read_state_dict
from intaglio.classifiers.torch_classifier import TorchClassifier
from intaglio.classifiers.weights import build_with_weights
from intaglio.errors import ClassifierError, ModelError, UnsafeFileError
from intaglio.files import sha256_file
from intaglio.networks import Architecture

Source = str | Path | nn.Module | Classifier | Callable[[Tensor], Any]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_INSTEAD = "save a state dict, safetensors, ONNX or torch.export file"
_REFUSED = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".npy"), "may hold pickled objects that execute code when loaded"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "is a Keras model, whose layers may execute code when loaded"),
    **dict.fromkeys((".tflite", ".pb", ".mlmodel"), "is of a format that isn't supported"),
}


@dataclass(frozen=True)
class _Request:
    """What the caller said about the model, completed by the side-car where the caller said nothing."""

    architecture: str | Architecture | None
    input_shape: tuple[int, ...] | None
    num_classes: int | None
    preprocessing: Preprocessing | None
    outputs: Outputs
    task: str | None
    device: str | torch.device | None
    batch_size: int | None
    classes: tuple[str, ...] = ()

    def completed(self, sidecar: Sidecar) -> "_Request":
        built = sidecar.architecture
        return replace(
            self,
            architecture=self.architecture or built,
            input_shape=self.input_shape or sidecar.input_shape or (built.input_shape if built else None),
            num_classes=self.num_classes or sidecar.num_classes or (built.num_classes if built else None),
            preprocessing=self.preprocessing or sidecar.preprocessing,
            outputs=sidecar.outputs if self.outputs == "auto" else self.outputs,
            task=self.task or sidecar.task,
            classes=sidecar.classes,
        )

    def options(self, source: str, sha256: str | None = None) -> Options:
        options = Options(
            preprocessing=self.preprocessing or Preprocessing(),
            outputs=self.outputs,
            batch_size=self.batch_size,
            source=source,
            task=self.task,
            classes=self.classes,
        )
        return options if sha256 is None else Options(**options, sha256=sha256)

    def shapes(self, what: str) -> tuple[tuple[int, ...], int]:
        """The input shape and class count, which must be known by now."""
        if self.input_shape is None or self.num_classes is None:
            missing = "input_shape" if self.input_shape is None else "num_classes"
            raise ModelError(f"{what}: doesn't say its {missing}: give {missing}, or write a side-car intaglio.json")
        return tuple(self.input_shape), self.num_classes


def open_classifier(
    source: Source,
    *,
    architecture: str | Architecture | None = None,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    outputs: Outputs = "auto",
    task: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    mapping: HttpMapping | str | Path | None = None,
) -> Classifier:
    """Opens whatever holds a classifier; what isn't given is taken from the side-car (see `Sidecar`) or the file.

    `source` is one of:
        `model.onnx`; `model.pt2` from torch.export.save; `model.safetensors`, or a state dict in `.pt` or `.pth`, both
        with an `architecture` given or in the side-car;
        `http(s)://...`, a remote model: of an Open Inference Protocol server, or of any JSON API that `mapping`, a YAML
        file, describes (see `HttpClassifier`);
        a `torch.nn.Module`, or a function from images to scores, with `input_shape` and `num_classes`;
        `package.module:factory`, which is imported and called without arguments, and returns a module or a classifier:
        this runs the named code, which must be the caller's own;
        a folder that Hugging Face's `save_pretrained` wrote (see `open_huggingface`);
        a `Classifier`, returned as it is.

    Raises:
        UnsafeFileError: a file that could only be opened by executing what is in it.
        ModelError: missing, damaged, of an unknown format, or with too little said about it; or, of a folder or a
            factory's classifier, something that contradicts it, or that it has no use for.
        ClassifierError: it opens, but doesn't answer as it says.
        RemoteError: a server that can't be reached, hangs, or answers garbage.
    """
    if mapping is not None and not (isinstance(source, str) and is_address(source)):
        raise ModelError("a mapping describes a remote model: give it with an http:// or https:// address")
    if isinstance(source, Classifier):
        return source
    shape = None if input_shape is None else tuple(input_shape)
    request = _Request(architecture, shape, num_classes, preprocessing, outputs, task, device, batch_size)
    if isinstance(source, nn.Module):
        return _from_module(source, request, "module")
    if isinstance(source, str) and is_address(source):
        return _from_address(source, request, mapping)
    if isinstance(source, str | Path):
        return _from_name(str(source), request)
    if callable(source):
        known, count = request.shapes("callable")
        return CallableClassifier(source, input_shape=known, num_classes=count, **request.options("callable"))
    raise ModelError(f"can't open a {type(source).__name__}: give a path, a module, a function or a classifier")


def _from_name(name: str, request: _Request) -> Classifier:
    path = Path(name)
    if _FACTORY.fullmatch(name) and not path.exists():
        return _from_factory(name, request)
    try:
        return _from_file(path, request)
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error


def _from_address(address: str, request: _Request, mapping: HttpMapping | str | Path | None) -> Classifier:
    return HttpClassifier(
        address,
        input_shape=request.input_shape,
        num_classes=request.num_classes,
        mapping=mapping,
        **request.options(address),
    )


def _from_file(path: Path, request: _Request) -> Classifier:
    suffix = path.suffix.lower()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: is a folder, but not a Hugging Face model (no config.json); give a model file")
        return _open_folder(path, request)
    if not path.exists():
        raise ModelError(f"no such file: {path}")
    if suffix in _REFUSED:
        raise UnsafeFileError(f"{path}: {_REFUSED[suffix]}; {_INSTEAD}")
    opener = _OPENERS.get(suffix)
    if opener is None:
        raise ModelError(f"{path}: unknown format '{suffix}'; accepted are {', '.join(_OPENERS)}")
    if not path.is_file():
        raise ModelError(f"{path}: is not a regular file")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: is empty")
    sidecar = find_sidecar(path)
    return opener(path, request if sidecar is None else request.completed(sidecar))


def _open_folder(path: Path, request: _Request) -> Classifier:
    if request.architecture is not None:
        raise ModelError(f"{path}: a Hugging Face folder names its own architecture: give none")
    return open_huggingface(
        path,
        input_shape=request.input_shape,
        num_classes=request.num_classes,
        preprocessing=request.preprocessing,
        outputs=request.outputs,
        device=request.device,
        task=request.task,
        batch_size=request.batch_size,
    )


def _open_onnx(path: Path, request: _Request) -> Classifier:
    if str(request.device or "cpu") != "cpu":
        raise ClassifierError(f"can't use device '{request.device}' for {path}: ONNX models run on the CPU")
    return OnnxClassifier(
        path, input_shape=request.input_shape, num_classes=request.num_classes, **request.options(str(path))
    )


def _open_exported(path: Path, request: _Request) -> Classifier:
    model = read_exported(path)
    preprocessing = request.preprocessing or Preprocessing()
    batch, *sides = model.input_sizes
    known = tuple(side for side in sides if side is not None)
    if request.input_shape is None and len(known) == len(sides) and len(sides) in (3, 4):
        request = replace(request, input_shape=preprocessing.raw_shape(known))
    if request.num_classes is None and len(model.output_sizes) == 2:
        request = replace(request, num_classes=model.output_sizes[-1])
    options = request.options(str(path), sha256_file(path))
    if batch is not None:
        options["fixed_batch"] = batch
    shape, count = request.shapes(str(path))
    return TorchClassifier(
        model.module, input_shape=shape, num_classes=count, device=request.device, format="pt2", **options
    )


def _open_safetensors(path: Path, request: _Request) -> Classifier:
    return _from_weights(path, request, read_safetensors(path), "safetensors")


def _open_state_dict(path: Path, request: _Request) -> Classifier:
    return _from_weights(path, request, read_state_dict(path), "state-dict")


def _from_weights(path: Path, request: _Request, tensors: dict[str, Tensor], format: str) -> Classifier:
    if request.architecture is None:
        raise ModelError(
            f"{path}: holds weights only: give the architecture, or write a side-car {path.stem}.intaglio.json"
        )
    built = _architecture(path, request, request.architecture)
    if request.num_classes not in (None, built.num_classes):
        raise ModelError(f"{path}: has {built.num_classes} classes, but {request.num_classes} were given")
    module = build_with_weights(built, tensors, str(path))
    return TorchClassifier(
        module,
        input_shape=request.input_shape or built.input_shape,
        num_classes=built.num_classes,
        device=request.device,
        format=format,
        **request.options(str(path), sha256_file(path)),
    )


def _architecture(path: Path, request: _Request, given: str | Architecture) -> Architecture:
    if isinstance(given, Architecture):
        return given
    shape, count = request.shapes(str(path))
    return Architecture(name=given, input_shape=shape, num_classes=count)


def _from_module(module: nn.Module, request: _Request, source: str) -> Classifier:
    shape, count = request.shapes(source)
    return TorchClassifier(
        module, input_shape=shape, num_classes=count, device=request.device, **request.options(source)
    )


def _from_factory(name: str, request: _Request) -> Classifier:
    """Imports and calls the caller's own code; what it raises itself is passed on, but for an end of the program."""
    module_name, function_name = name.split(":")
    try:
        try:
            factory = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise ModelError(f"{name}: can't be imported: {error}") from error
        made = factory()
    except SystemExit as error:
        raise ModelError(f"{name}: ended the program (exit code {error.code}) in place of making a model") from error
    if request.architecture is not None:
        raise ModelError(f"{name}: the factory makes its own network: give no architecture")
    if isinstance(made, Classifier):
        _require_agreement(made, request, name)
        return made
    if isinstance(made, nn.Module):
        return _from_module(made, request, name)
    raise ModelError(f"{name}: expected the factory to return a module or a classifier, got {type(made).__name__}")


def _require_agreement(made: Classifier, request: _Request, name: str) -> None:
    """Refuses what was said of a classifier that a factory made ready, unless it says the same itself."""
    own = {"input_shape": made.input_shape, "num_classes": made.num_classes, "preprocessing": made.preprocessing}
    for what, value in own.items():
        if getattr(request, what) not in (None, value):
            raise ModelError(f"{name}: the factory returns a classifier with its own {what}: give none")
    if request.outputs != "auto" and request.outputs != made.outputs:
        raise ModelError(f"{name}: the factory returns a classifier that answers {made.outputs}, not {request.outputs}")


_OPENERS: dict[str, Callable[[Path, _Request], Classifier]] = {
    ".onnx": _open_onnx,
    ".safetensors": _open_safetensors,
    ".pt2": _open_exported,
    ".pt": _open_state_dict,
    ".pth": _open_state_dict,
}
