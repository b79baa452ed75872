"""Small models, and files that attack whoever opens them, for the tests of classifiers."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from intaglio.networks import Architecture

SHAPE = (1, 12, 12)
CLASSES = 5
ARCHITECTURE = Architecture(name="lenet", input_shape=SHAPE, num_classes=CLASSES, width=4)


def lenet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARCHITECTURE.build().eval()


def noise(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def save_exported(path: Path, module: nn.Module | None = None, shape: tuple[int, ...] = SHAPE, batch: int = 0) -> None:
    """`torch.export.save`, with a dynamic batch size unless one is given."""
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module or lenet(), (noise(batch or 2, shape),), dynamic_shapes=dynamic)
    torch.export.save(program, path)


def rewrite_zip(
    source: Path,
    target: Path,
    edit: Callable[[str, bytes], bytes | None],
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Copies an archive; `edit` is given each member below the root folder and returns its new bytes, None to drop."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = edit(name.removeprefix(f"{root}/"), old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(f"{root}/{name}", content)


def edit_json(member: str, change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    """An `edit` for `rewrite_zip` that changes one JSON member in place."""

    def edit(name: str, content: bytes) -> bytes:
        if name != member:
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edit


def onnx_linear(
    shape: tuple[int | str | None, ...] = ("n", 1, 2, 2),
    classes: int | str = 3,
    weight: Tensor | None = None,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Flatten and multiply: scores = flatten(x) @ weight, weight `[4, 3]`."""
    weight = torch.arange(12.0).reshape(4, 3) / 12 if weight is None else weight
    matrix = weight.numpy().astype(helper.tensor_dtype_to_np_dtype(element))
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("scores", element, [shape[0], classes])],
        [numpy_helper.from_array(matrix, "w")],
    )
    return onnx_model(graph)


def onnx_model(graph: onnx.GraphProto, domain: str = "") -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
