"""ONNX models: shapes, types and batch sizes are read from the graph, or refused in one line."""

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from classifier_models import noise, onnx_linear, onnx_model
from intaglio.classifiers import (
    OnnxClassifier,
    Preprocessing,
)
from intaglio.errors import ClassifierError, ModelError

torch.set_num_threads(1)

SQUARE = (1, 2, 2)
EXPECTED = noise(5, SQUARE).flatten(1) @ (torch.arange(12.0).reshape(4, 3) / 12)


@pytest.mark.parametrize(
    ("shape", "element", "tolerance"),
    [
        (("n", 1, 2, 2), TensorProto.FLOAT, 1e-6),
        ((1, 1, 2, 2), TensorProto.FLOAT, 1e-6),
        ((3, 1, 2, 2), TensorProto.FLOAT, 1e-6),
        (("n", 1, 2, 2), TensorProto.DOUBLE, 1e-6),
        (("n", 1, 2, 2), TensorProto.FLOAT16, 2e-3),
    ],
)
def test_onnx_batch_sizes_and_types(shape: tuple[int | str | None, ...], element: int, tolerance: float) -> None:
    classifier = OnnxClassifier(onnx_linear(shape, element=element).SerializeToString())
    assert (classifier.input_shape, classifier.num_classes, classifier.queries) == (SQUARE, 3, 0)
    torch.testing.assert_close(classifier.scores(noise(5, SQUARE)), EXPECTED, atol=tolerance, rtol=0)
    assert classifier.queries == 5
    assert classifier.sha256 is not None
    assert len(classifier.sha256) == 64


@pytest.mark.parametrize("batch", [2_000_000_000, (1 << 26) + 1])
def test_onnx_with_a_batch_that_fits_no_memory_is_refused(batch: int) -> None:
    content = onnx_linear((batch, 1, 2, 2)).SerializeToString()
    with pytest.raises(ClassifierError, match=f"takes batches of {batch} images only, {4 * batch} values") as caught:
        OnnxClassifier(content)
    assert "\n" not in str(caught.value)


def test_onnx_whose_answers_are_text_is_refused() -> None:
    graph = onnx_linear().graph
    graph.node[1].output[0] = "numbers"
    graph.node.append(helper.make_node("Cast", ["numbers"], ["scores"], to=TensorProto.STRING))
    graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ClassifierError, match="expected a tensor of scores, but its answers are no numbers"):
        OnnxClassifier(onnx_model(graph).SerializeToString())


@pytest.mark.parametrize("name", [b"\x01x", b"\x06scores", b"\x01n"])
def test_onnx_with_names_that_are_no_text_is_refused_in_one_line(name: bytes) -> None:
    content = onnx_linear().SerializeToString()
    with pytest.raises((ModelError, ClassifierError), match=r"not text|utf-8") as caught:
        OnnxClassifier(content.replace(name, name[:-1] + b"\xcb"))
    assert "\n" not in str(caught.value)


def test_onnx_that_only_claims_any_batch_size_is_asked_one_by_one() -> None:
    graph = onnx_linear().graph
    graph.node[0].CopyFrom(helper.make_node("Reshape", ["x", "one"], ["flat"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 4]), "one"))
    classifier = OnnxClassifier(onnx_model(graph).SerializeToString())
    torch.testing.assert_close(classifier.scores(noise(5, SQUARE)), EXPECTED)
    assert classifier.queries == 5


def test_onnx_shapes_may_be_given() -> None:
    content = onnx_linear(("n", "c", "h", "w"), "k").SerializeToString()
    classifier = OnnxClassifier(content, input_shape=SQUARE, num_classes=3)
    torch.testing.assert_close(classifier.scores(noise(5, SQUARE)), EXPECTED)


def test_onnx_with_channels_last() -> None:
    content = onnx_linear(("n", 2, 2, 1)).SerializeToString()
    classifier = OnnxClassifier(content, preprocessing=Preprocessing(layout="NHWC"))
    assert classifier.input_shape == SQUARE
    torch.testing.assert_close(classifier.scores(noise(5, SQUARE)), EXPECTED)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (onnx_linear(("n", "c", "h", "w")), {}, "doesn't state its input size .*: give input_shape"),
        (onnx_linear(("n", 4)), {}, "input of rank 2"),
        (onnx_linear(("n", 32, 32, 3), weight=torch.zeros(3072, 3)), {}, "look like channels last"),
        (onnx_linear(), {"input_shape": (3, 2, 2)}, "the given shape and preprocessing make"),
        (onnx_linear(), {"num_classes": 4}, "answers with 3 classes, but 4 were given"),
        (onnx_linear(element=TensorProto.INT32), {}, "expected a tensor of floats"),
        (onnx_linear(weight=torch.full((4, 3), math.nan)), {}, "12 of 12 values of tensor 'w' are NaN"),
    ],
)
def test_onnx_that_cannot_be_a_classifier_is_refused(
    model: onnx.ModelProto, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        OnnxClassifier(model.SerializeToString(), **options)


def test_onnx_must_say_how_many_classes_it_has() -> None:
    graph = onnx_linear(("n", "c", "h", "w")).graph
    del graph.node[1:], graph.initializer[:]
    graph.node[0].output[0] = "scores"
    graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "k"]))
    content = onnx_model(graph).SerializeToString()
    with pytest.raises(ModelError, match="doesn't state how many classes it has"):
        OnnxClassifier(content, input_shape=SQUARE)
    images = noise(3, SQUARE)
    assert torch.equal(OnnxClassifier(content, input_shape=SQUARE, num_classes=4).scores(images), images.flatten(1))


def test_onnx_with_several_inputs_or_unknown_operators_is_refused() -> None:
    several = onnx_linear().graph
    several.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=r"expected one of its inputs, got 2 \(x, y\)"):
        OnnxClassifier(onnx_model(several).SerializeToString())
    custom = onnx_linear().graph
    custom.node[0].domain = "evil.example"
    with pytest.raises(ModelError, match=r"ONNX Runtime refuses it: .*evil\.example"):
        OnnxClassifier(onnx_model(custom, "evil.example").SerializeToString())


def test_onnx_runtime_failures_become_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    graph = onnx_linear().graph
    graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((5, 3), np.float32), "w"))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "c", "h", "w"]))
    with pytest.raises(ClassifierError, match=r"can't answer inputs \[1, 1, 2, 2\]") as caught:
        OnnxClassifier(onnx_model(graph).SerializeToString(), input_shape=SQUARE, num_classes=3)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
