"""The Open Inference Protocol: with a real server (MLServer), and what metadata may say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from http_servers import CLASSES, SHAPE, Asked, inferred, metadata, pictures, serving, toy_scores
from intaglio.classifiers import Access, HttpClassifier, Preprocessing, open_classifier
from intaglio.classifiers.http_open_inference import model_address
from intaglio.data import open_data
from intaglio.errors import ClassifierError, ModelError, RemoteError
from open_inference_server.serving import INSTALLED, WHY_SKIPPED, Served, open_inference_server

CLEAN = Path(__file__).parents[1] / "examples" / "models" / "clean.onnx"
INPUT = (1, 28, 28)


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not INSTALLED:
        pytest.skip(WHY_SKIPPED)
    models = {
        "clean": Served(CLEAN, INPUT, 10),
        "labels": Served(CLEAN, INPUT, 10, ("labels",), "3"),
        "both": Served(CLEAN, INPUT, 10, ("labels", "scores")),
    }
    with open_inference_server(models, tmp_path_factory.mktemp("mlserver")) as address:
        yield address


def test_scores_over_http_equal_local_ones(server: str) -> None:
    images = open_data("fashion-mnist", "test").images[:150]
    local = open_classifier(CLEAN)
    distant = open_classifier(f"{server}/v2/models/clean")
    assert (distant.input_shape, distant.num_classes, distant.format) == (INPUT, 10, "open-inference")
    torch.testing.assert_close(distant.scores(images), local.scores(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(distant.log_probs(images), local.log_probs(images), atol=1e-5, rtol=0)
    assert distant.outputs == local.outputs


def test_label_only_models_answer_labels(server: str) -> None:
    images = open_data("fashion-mnist", "test").images[:100]
    distant = HttpClassifier(f"{server}/v2/models/labels/versions/3", num_classes=10)
    assert distant.access is Access.LABELS
    assert distant.predict(images).tolist() == open_classifier(CLEAN).predict(images).tolist()
    assert (distant.queries, len(distant.transcript)) == (100, 3)
    with pytest.raises(ClassifierError, match="needs SCORES access"):
        distant.scores(images)


def test_of_several_outputs_scores_come_first_or_the_one_named(server: str) -> None:
    images = open_data("fashion-mnist", "test").images[:20]
    both = HttpClassifier(f"{server}/v2/models/both")
    labels = HttpClassifier(f"{server}/v2/models/both", num_classes=10, output="labels")
    assert (both.access, labels.access) == (Access.SCORES, Access.LABELS)
    assert labels.predict(images).tolist() == both.predict(images).tolist()
    with pytest.raises(RemoteError, match="expected an output 'scoers' with scores or labels, got labels INT64"):
        HttpClassifier(f"{server}/v2/models/both", output="scoers")


def test_a_real_servers_refusals_are_one_line(server: str) -> None:
    with pytest.raises(RemoteError, match=r"/v2/models/absent: answers with HTTP 404 \(.*absent.*\)$"):
        open_classifier(f"{server}/v2/models/absent")
    with pytest.raises(RemoteError, match="answers with 10 classes, but 7 were expected"):
        open_classifier(f"{server}/v2/models/clean", num_classes=7)
    with pytest.raises(RemoteError, match=r"takes inputs \[-1, 1, 28, 28\], but the given shape"):
        open_classifier(f"{server}/v2/models/clean", input_shape=(3, 32, 32))
    with pytest.raises(ModelError, match="doesn't say its class count"):
        open_classifier(f"{server}/v2/models/labels/versions/3")


# --- what metadata may say -------------------------------------------------------------------------------------------


def remote(described: Any, **arguments: Any) -> HttpClassifier:
    """A classifier of a server that describes itself so, already closed."""
    with serving(lambda _: described) as server:
        return HttpClassifier(f"{server.url}/v2/models/m", **arguments)


def inputs(shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return metadata(inputs=[{"name": "x", "datatype": datatype, "shape": shape}])


@pytest.mark.parametrize(
    ("described", "arguments", "shape"),
    [
        (inputs([-1, 3, 32, 40]), {}, (3, 32, 40)),
        (inputs([-1, 8, 3, 32, 40]), {}, (8, 3, 32, 40)),
        (inputs([-1, 32, 40, 3]), {"preprocessing": Preprocessing(layout="NHWC")}, (3, 32, 40)),
        (inputs([-1, -1, -1, -1], "FP64"), {"input_shape": (3, 9, 9)}, (3, 9, 9)),
        (inputs([-1, 3, 8, 8]), {"input_shape": (3, 9, 9), "preprocessing": Preprocessing(resize=(8, 8))}, (3, 9, 9)),
        (inputs([-1, 243]), {"input_shape": (3, 9, 9)}, (3, 9, 9)),
    ],
)
def test_input_shapes(described: Any, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert remote(described, **arguments).input_shape == shape


@pytest.mark.parametrize(
    ("described", "arguments", "error", "message"),
    [
        (b"hello", {}, RemoteError, "not an Open Inference Protocol server: the answer is not JSON: hello"),
        ([1], {}, RemoteError, "not an Open Inference Protocol server: its top"),
        (metadata(inputs=3), {}, RemoteError, "not an Open Inference Protocol server: inputs"),
        (metadata(inputs=None), {}, RemoteError, "expected one input, of FP32 or FP64, got none"),
        (metadata(inputs=metadata()["inputs"] * 2), {}, RemoteError, "expected one input, .*, got x FP32 .*, x FP32"),
        (inputs([-1, 1, 4, 4], "UINT8"), {}, RemoteError, "expected one input, of FP32 or FP64, got x UINT8"),
        (metadata(outputs=None), {}, RemoteError, "expected one output with scores or labels, got none"),
        (metadata(("s", "BOOL", [-1, 3])), {}, RemoteError, "expected one output with scores or labels, got s BOOL"),
        (metadata(outputs=metadata()["outputs"] * 2), {}, RemoteError, "name the right one as output"),
        (metadata(("s", "FP32", [-1, -1])), {}, ModelError, "doesn't say its class count: give num_classes"),
        (metadata(("s", "FP32", [-1, 1])), {}, ClassifierError, "single output has no classes"),
        (metadata(("s", "FP32", [-1, 4])), {"num_classes": 3}, RemoteError, "answers with 4 classes, but 3"),
        (metadata(("s", "FP32", [-1, 4])), {"classes": ("a", "b")}, RemoteError, "answers with 4 classes, but 2"),
        (metadata(("s", "BYTES", [-1])), {"num_classes": 3}, RemoteError, "answers with names of classes"),
        (inputs([]), {}, ModelError, "doesn't state the size of its images"),
        (inputs([-1, 784]), {}, ModelError, r"doesn't state the size of its images \(\[-1, 784\]\)"),
        (inputs([-1, 3, -1, -1]), {}, ModelError, "give input_shape"),
        (inputs([-1, 32, 40, 3]), {}, ModelError, "look like channels last"),
        (inputs([-1, 3, 8, 8]), {"input_shape": (3, 9, 9)}, RemoteError, r"takes inputs .* make \(3, 9, 9\)"),
        (inputs([1 << 40, 1, 4, 4]), {}, RemoteError, "over 8388608 values a request"),
        (inputs([-1, 3, 1 << 14, 1 << 14]), {}, RemoteError, "over 8388608 values a request"),
        (inputs([1] * 9), {}, RemoteError, "inputs.0.shape"),
    ],
)
def test_metadata_that_cannot_be_used(
    described: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        remote(described, **arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_fixed_batches_are_filled_up_and_cut() -> None:
    def answer(asked: Asked) -> Any:
        return inputs([4, *SHAPE]) if asked.method == "GET" else inferred(asked.json)

    images = pictures(6)
    with serving(answer) as server:
        classifier = HttpClassifier(f"{server.url}/v2/models/m")
        torch.testing.assert_close(classifier.scores(images), toy_scores(images), atol=1e-6, rtol=0)
        assert [asked.json["inputs"][0]["shape"] for asked in server.asked[1:]] == [[4, *SHAPE]] * 2
    assert [len(exchange.labels) for exchange in classifier.transcript.exchanges] == [0, 4, 2]
    assert classifier.images_sent == 6


def test_flat_inputs_and_double_precision_are_sent_as_asked() -> None:
    def answer(asked: Asked) -> Any:
        return inputs([-1, 16], "FP64") if asked.method == "GET" else inferred(asked.json)

    with serving(answer) as server:
        classifier = HttpClassifier(f"{server.url}/v2/models/m", input_shape=SHAPE)
        torch.testing.assert_close(classifier.scores(pictures(2)), toy_scores(pictures(2)), atol=1e-6, rtol=0)
        (tensor,) = server.asked[-1].json["inputs"]
    assert (tensor["shape"], tensor["datatype"], tensor["name"]) == ([2, 16], "FP64", "x")
    assert torch.equal(torch.tensor(tensor["data"]), pictures(2).flatten())


@pytest.mark.parametrize(
    ("datatype", "answered", "labels"),
    [
        ("INT64", {"shape": [3], "data": [2, 0, 1]}, [2, 0, 1]),
        ("INT32", {"shape": [3, 1], "data": [[2], [0], [1]]}, [2, 0, 1]),
        ("UINT8", {"shape": [3, 1], "data": [2, 0, 1]}, [2, 0, 1]),
        ("BYTES", {"shape": [3], "data": ["c", "a", "b"]}, [2, 0, 1]),
        ("INT64", {"shape": [3, 2], "data": [0] * 6}, r"expected labels \[3\], got \[3, 2\]"),
        ("INT64", {"shape": [3], "data": [0, 1]}, "expected 3 labels, got 2"),
        ("INT64", {"shape": [3], "data": [0, 1, 3]}, "answers with class 3, but there are 3"),
        ("INT64", {"shape": [3], "data": [0, 1, None]}, "expected the number of a class"),
        ("BYTES", {"shape": [3], "data": ["c", "a", "d"]}, "the label 'd'"),
        ("INT64", {"shape": [3], "data": [0, 1, 2], "datatype": "FP32"}, "answers with FP32, but stated INT64"),
    ],
)
def test_label_outputs(datatype: str, answered: dict[str, Any], labels: list[int] | str) -> None:
    described = metadata(("y", datatype, [-1]))

    def answer(asked: Asked) -> Any:
        output = {"name": "y", "datatype": datatype} | answered
        return described if asked.method == "GET" else {"outputs": [output]}

    with serving(answer) as server:
        classifier = HttpClassifier(f"{server.url}/v2/models/m", classes=("a", "b", "c"))
        assert (classifier.access, classifier.num_classes) == (Access.LABELS, CLASSES)
        if isinstance(labels, list):
            assert classifier.predict(pictures(3)).tolist() == labels
        else:
            with pytest.raises(RemoteError, match=labels):
                classifier.predict(pictures(3))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1/v2/models/m", "http://h:1/v2/models/m"),
        ("http://h:1/v2/models/m/", "http://h:1/v2/models/m"),
        ("https://h/a/b/v2/models/m/versions/12", "https://h/a/b/v2/models/m/versions/12"),
        ("http://h/v2/models/m/versions/1/infer", "http://h/v2/models/m/versions/1"),
        ("http://h/v2/models/m/infer", "http://h/v2/models/m"),
        ("http://h/v2/models/", None),
        ("http://h/v2/models/m/ready", None),
        ("http://h/v2/models/m?key=1", None),
        ("http://h/v1/models/m:predict", None),
        ("http://h/", None),
    ],
)
def test_address_forms(url: str, address: str | None) -> None:
    if address is None:
        with pytest.raises(ModelError, match="for any other API give a mapping"):
            model_address(url)
    else:
        assert model_address(url) == address
