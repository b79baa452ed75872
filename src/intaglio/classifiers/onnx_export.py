"""Writes a module as ONNX, and proves that the file answers as the module does."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from intaglio.classifiers.onnx_classifier import OnnxClassifier
from intaglio.classifiers.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from intaglio.errors import ModelError
from intaglio.files import write_bytes
from intaglio.seeds import torch_generator

_TOLERANCE = 1e-4
_CHECKED = 8


def export_onnx(
    module: nn.Module, path: Path | str, *, input_shape: tuple[int, ...], sidecar: Sidecar | None = None
) -> None:
    """Writes `path` (.onnx: any batch size, weights inside) and its side-car `<stem>.intaglio.json` beside it.

    `input_shape` is what the module takes, after preprocessing. Without a `sidecar` one that is there already stays,
    for it may be that of the same model's weights, and names their architecture. A copy in evaluation mode, on the CPU,
    is exported; before anything is written it must give the module's scores on 8 noise images within 1e-4, relative to
    the largest score.

    Raises:
        ModelError: a module that can't be exported, a file that answers differently, or a side-car of another model.
        StorageError: the files can't be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: ONNX models are written as .onnx")
    module = copy.deepcopy(module).cpu().eval()
    images = torch.rand(_CHECKED, *input_shape, generator=torch_generator(0, "classifiers", "onnx-export"))
    with torch.no_grad():
        expected = module(images)
    content = onnx_bytes(module, images, path, output="scores")
    check = OnnxClassifier(content, input_shape=input_shape, num_classes=expected.shape[1], source=str(path))
    difference = float((check.scores(images) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    if not difference <= _TOLERANCE:  # also true for NaN
        raise ModelError(f"{path}: the exported model's scores differ by {difference:.2g}: not written")
    made = sidecar or Sidecar(input_shape=input_shape, num_classes=expected.shape[1])
    present = sidecar_path(path)
    keep = sidecar is None and present.is_file()
    if keep and read_sidecar(present).takes_and_gives != made.takes_and_gives:
        raise ModelError(f"{present}: belongs to another model; choose another name than {path.name}: not written")
    write_bytes(path, content)
    if not keep:
        write_sidecar(present, made)


def onnx_bytes(module: nn.Module, images: torch.Tensor, path: Path, *, output: str) -> bytes:
    """The module as ONNX for any number of `images`, its input; nothing of this machine's paths is in it.

    Raises:
        ModelError: it can't be exported; `path` is named.
    """
    from torch.onnx.errors import OnnxExporterError

    try:
        with _quiet():
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(
                module, (images,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"],
                output_names=[output], verbose=False, external_data=False,
            )  # fmt: skip
            if program is None:
                raise ModelError(f"{path}: torch.onnx.export returned nothing")
    except (OnnxExporterError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: can't be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    proto = program.model_proto
    graph = proto.graph
    for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, proto):
        del entry.metadata_props[:]  # stack traces, with the paths of the machine that exported
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs a missing torchvision and warns of its own deprecations: none of the user's business."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
