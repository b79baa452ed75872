"""ONNX files that point outside their folder are refused; exporting writes all or nothing."""

import os
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from classifier_models import (
    SHAPE,
    lenet,
    noise,
    onnx_linear,
    onnx_model,
)
from intaglio.classifiers import (
    Sidecar,
    export_onnx,
    open_classifier,
    save_classifier,
)
from intaglio.errors import ModelError, UnsafeFileError
from intaglio.networks import Architecture

torch.set_num_threads(1)


def external_onnx(folder: Path, location: str) -> Path:
    """A model whose weights are said to be at `location`."""
    model = onnx_linear()
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_inside_the_folder_is_read_and_hashed(tmp_path: Path) -> None:
    path = external_onnx(tmp_path, "weights.bin")
    first = open_classifier(path)
    images = noise(5, (1, 2, 2))
    torch.testing.assert_close(first.scores(images), images.flatten(1) @ (torch.arange(12.0).reshape(4, 3) / 12))
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    assert open_classifier(path).sha256 != first.sha256


@pytest.mark.parametrize(
    "location", ["../weights.bin", "{home}/weights.bin", "a/../../weights.bin", "link", "", "a\\b"]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    (inside / "link").symlink_to(tmp_path / "weights.bin")
    path = external_onnx(inside, location.format(home=tmp_path))
    with pytest.raises(UnsafeFileError, match=r"tensor 'w' points to .* outside the model's folder"):
        open_classifier(path)


def test_external_data_hidden_in_a_subgraph_is_found(tmp_path: Path) -> None:
    path = external_onnx(tmp_path, "../weights.bin")
    inner = onnx.load_model(path, load_external_data=False).graph
    hidden = inner.initializer.pop()
    constant = helper.make_node("Constant", [], ["w"], value=hidden)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("w", 1, [4, 3])])
    nodes = [helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch), *inner.node]
    yes = helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "outer", list(inner.input), list(inner.output), [yes])
    path.write_bytes(onnx_model(graph).SerializeToString())
    with pytest.raises(UnsafeFileError, match="outside the model's folder"):
        open_classifier(path)


def test_missing_or_short_external_data_is_refused(tmp_path: Path) -> None:
    path = external_onnx(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"123")
    with pytest.raises(ModelError, match=r"tensor 'w' is damaged|ONNX Runtime refuses it"):
        open_classifier(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="which isn't there"):
        open_classifier(path)


def test_exporting_what_cannot_be_exported_writes_nothing(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 2:4]

    with pytest.raises(ModelError, match="can't be exported to ONNX") as caught:
        export_onnx(Branches(), tmp_path / "x.onnx", input_shape=SHAPE)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"written as \.onnx"):
        export_onnx(lenet(), tmp_path / "x.pb", input_shape=SHAPE)
    assert os.listdir(tmp_path) == []


def test_an_onnx_copy_leaves_the_side_car_of_its_weights(tmp_path: Path) -> None:
    architecture = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=2)
    module, weights = architecture.build().eval(), tmp_path / "model.safetensors"
    save_classifier(module, weights, Sidecar(architecture=architecture, task="bands"))
    export_onnx(module, tmp_path / "model.onnx", input_shape=(1, 12, 12))
    images = noise(3, (1, 12, 12))
    copies = [open_classifier(tmp_path / f"model.{ending}") for ending in ("safetensors", "onnx")]
    torch.testing.assert_close(copies[0].scores(images), copies[1].scores(images), atol=1e-4, rtol=1e-4)
    assert [copy.task for copy in copies] == ["bands", "bands"]
    other = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=4, width=2).build()
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.intaglio\.json: belongs to another model"):
        export_onnx(other, tmp_path / "model.onnx", input_shape=(1, 12, 12))
    assert not (tmp_path / "model.onnx").exists()
