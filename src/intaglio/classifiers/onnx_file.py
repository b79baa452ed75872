"""ONNX files read with suspicion: what is inside, and which files it wants opened, is checked before ONNX Runtime."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.errors import ModelError, UnsafeFileError

if TYPE_CHECKING:
    import onnx

_PROTOBUF_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX model: its bytes, the folder that its external tensors may come from, and its SHA-256.

    The SHA-256 covers the model's bytes and then, in order of name, those of every external data file.
    """

    content: bytes
    folder: Path | None
    sha256: str


def read_onnx(source: Path | bytes, name: str) -> OnnxFile:
    """Reads and checks a model from a file or from bytes; `name` stands in messages.

    Raises:
        UnsafeFileError: a tensor that is stored outside the model's folder (absolute, `..`, or through a link).
        ModelError: missing, truncated, larger than 2 GiB, without a graph, or with weights that are NaN.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ModelError("ONNX models need onnx and onnxruntime: pip install 'intaglio[onnx]'") from error
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > _PROTOBUF_LIMIT:
        raise ModelError(f"{name}: larger than 2 GiB, the limit of ONNX: save the weights as external data")
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{name}: not an ONNX model, or truncated ({error})") from error
    if not model.graph.node:
        raise ModelError(f"{name}: not an ONNX model: there is no graph in it")
    folder = None if isinstance(source, bytes) else source.parent
    digest = hashlib.sha256(content)
    tensors = list(_all_tensors(model))
    for path in sorted({_external_file(tensor, folder, name) for tensor in tensors if _is_external(tensor)}):
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    _check_values(tensors, folder, name)
    return OnnxFile(content, folder, digest.hexdigest())


def _all_tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor anywhere: initializers, sparse ones, attributes, subgraphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable["onnx.NodeProto"]) -> Iterator["onnx.TensorProto"]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable["onnx.AttributeProto"]) -> Iterator["onnx.TensorProto"]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _is_external(tensor: "onnx.TensorProto") -> bool:
    # A location counts even where the tensor claims to be embedded: no reader may be tempted by it.
    return tensor.data_location == tensor.EXTERNAL or len(tensor.external_data) > 0


def _external_file(tensor: "onnx.TensorProto", folder: Path | None, name: str) -> Path:
    """The file that holds an external tensor, proven to lie inside `folder`."""
    if folder is None:
        raise UnsafeFileError(f"{name}: tensor '{tensor.name}' is stored in another file: open the model by its path")
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    location = locations[0] if len(locations) == 1 else ""
    home = folder.resolve()
    if not location or "\\" in location or "\0" in location or location.startswith("/"):
        raise UnsafeFileError(f"{name}: tensor '{tensor.name}' points to {location!r}, outside the model's folder")
    path = (home / location).resolve()
    if ".." in Path(location).parts or not path.is_relative_to(home):
        raise UnsafeFileError(f"{name}: tensor '{tensor.name}' points to {location!r}, outside the model's folder")
    if not path.is_file():
        raise ModelError(f"{name}: tensor '{tensor.name}' is stored in {location!r}, which isn't there")
    return path


def _check_values(tensors: Iterable["onnx.TensorProto"], folder: Path | None, name: str) -> None:
    """Refuses NaN; infinities are let through, for masks hold them."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    for tensor in tensors:
        if tensor.data_type not in floating:
            continue
        try:
            values = numpy_helper.to_array(tensor, str(folder) if folder is not None else "")
        except (ValueError, TypeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{name}: tensor '{tensor.name}' is damaged ({str(error).splitlines()[0]})") from error
        bad = int(np.isnan(values.astype(np.float32, copy=False)).sum())
        if bad:
            raise ModelError(f"{name}: {bad} of {values.size} values of tensor '{tensor.name}' are NaN")
