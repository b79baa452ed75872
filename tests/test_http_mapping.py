"""Mappings, the JSON APIs that they describe, and reading what servers answer."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from http_servers import CLASSES, SHAPE, Asked, FakeTime, pictures, serving, toy_scores
from intaglio.classifiers import Access, HttpClassifier, HttpMapping, Preprocessing, open_classifier, read_mapping
from intaglio.classifiers.http_answers import follow, parse_answer, shown, steps, to_labels, to_scores
from intaglio.classifiers.http_conduct import Conduct
from intaglio.classifiers.http_mapping import filled_headers
from intaglio.data.picture import read_picture
from intaglio.errors import ClassifierError, ModelError, RemoteError

NAMES = ["cat", "dog", "other"]


def remote(url: str, mapping: dict[str, Any], **arguments: Any) -> HttpClassifier:
    shapes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES}
    return HttpClassifier(url, mapping=HttpMapping(**mapping), clock=FakeTime().clock, **shapes | arguments)


def unpng(text: str) -> torch.Tensor:
    return read_picture(base64.b64decode(text)).float() / 255


# --- what is asked, and what is answered -----------------------------------------------------------------------------


def test_one_picture_a_request_answered_with_a_name() -> None:
    def api(asked: Asked) -> Any:
        head, _, picture = asked.json["picture"].partition(",")
        assert (head, asked.json["model"], asked.json["top"]) == ("data:image/png;base64", "cats-v2", 1)
        label = int(toy_scores(unpng(picture)[None]).argmax())
        return {"result": [{"label": NAMES[label], "score": 0.9}]}

    mapping = {
        "request": {"model": "cats-v2", "top": 1, "picture": "data:image/png;base64,{image}"},
        "answer": "result.0.label",
        "gives": "labels",
        "labels": NAMES,
    }
    images = (pictures(5) * 255).round() / 255
    with serving(api) as server:
        classifier = remote(server.url + "/classify", mapping, num_classes=None)
        assert (classifier.access, classifier.num_classes, classifier.classes) == (Access.LABELS, 3, tuple(NAMES))
        assert classifier.predict(images).tolist() == toy_scores(images).argmax(dim=1).tolist()
        assert [asked.path for asked in server.asked] == ["/classify"] * 5
    with pytest.raises(ClassifierError, match="needs SCORES access"):
        classifier.scores(images)


@pytest.mark.parametrize("answer", ["predictions", "predictions.*", "/predictions/*", "predictions.*.out.scores"])
def test_several_images_a_request_answered_with_scores(answer: str) -> None:
    nested = answer.endswith("scores")

    def api(asked: Asked) -> Any:
        images = torch.tensor([instance["x"] for instance in asked.json["instances"]])
        rows = toy_scores(images).tolist()
        return {"predictions": [{"out": {"scores": row}} for row in rows] if nested else rows}

    mapping = {
        "request": {"instances": "{images}", "signature": "serving"},
        "each": {"x": "{image}"},
        "batch": 4,
        "encoding": "floats",
        "answer": answer,
        "gives": "scores",
    }
    images = pictures(10)
    with serving(api) as server:
        classifier = remote(server.url, mapping)
        torch.testing.assert_close(classifier.scores(images), toy_scores(images), atol=1e-6, rtol=0)
        assert [len(asked.json["instances"]) for asked in server.asked] == [4, 4, 2]
    assert classifier.format == "json-api"


def test_the_whole_answer_and_scores_by_name_and_preprocessing() -> None:
    def api(asked: Asked) -> Any:
        scores = toy_scores(torch.tensor(asked.json).permute(2, 0, 1)[None] / 2)[0]
        return dict(reversed(list(zip(NAMES, scores.tolist(), strict=True))))

    mapping = {
        "request": "{image}",
        "encoding": "floats",
        "gives": "scores",
        "labels": {"dog": 1, "other": 2, "cat": 0},
    }
    with serving(api) as server:
        classifier = remote(server.url, mapping, preprocessing=Preprocessing(scale=2.0, layout="NHWC"))
        torch.testing.assert_close(classifier.scores(pictures(3)), toy_scores(pictures(3)), atol=1e-6, rtol=0)
        assert classifier.classes == tuple(NAMES)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_holds_the_pixels_to_the_nearest_of_256(channels: int) -> None:
    images = torch.rand(1, channels, 5, 7, generator=torch.Generator().manual_seed(0))

    def api(asked: Asked) -> Any:
        seen.append(unpng(asked.json))
        return 0

    seen: list[torch.Tensor] = []
    with serving(api) as server:
        remote(server.url, {"request": "{image}", "gives": "labels"}, input_shape=(channels, 5, 7)).predict(images)
    colours = min(channels, 3)  # Pillow's RGB drops alpha on reading
    assert float((seen[0] - images[0, :colours]).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "the answer is not JSON: <html>"),
        (b"", "the answer is not JSON"),
        (b"[" * 100_000, "the answer is not JSON"),
        ({"outcome": 1}, r"no 'result\.0\.label': at its top there is names outcome"),
        ({"result": 4}, r"at result there is 4"),
        ({"result": []}, r"at result there is a list of 0"),
        (
            {"result": [{"label": "bird\n" + "x" * 99}]},
            r"the label 'bird x{55}\.\.\.', which the mapping does not know",
        ),
        ({"result": [{"label": None}]}, "the label 'None', which"),
        ({"result": [{"label": ["cat"]}]}, "the label 'a list of 1', which"),
    ],
)
def test_garbage_instead_of_labels(answer: Any, message: str) -> None:
    mapping = {"request": "{image}", "answer": "result.0.label", "gives": "labels", "labels": NAMES}
    with serving(lambda _: answer) as server, pytest.raises(RemoteError, match=message) as caught:
        remote(server.url, mapping).predict(pictures(1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1, 2, 3]], "expected 2 answers, got 1"),
        ({"a": 1}, "expected a list of 2 answers, got a JSON object of 1"),
        ([[1, 2, 3], [1, 2]], "answers with 2 classes, but 3 were expected"),
        ([[1, 2, 3], [1, 2, 3, 4]], "answers with 4 classes, but 3 were expected"),
        ([[1, 2, 3], 7], "expected the scores of one image, got 7"),
        ([[1, 2, 3], [1, 2, "3"]], "expected a number for a score, got 3"),
        ([[1, 2, 3], [1, 2, True]], "expected a number for a score, got True"),
        ([[1, 2, 3], [1, 2, None]], "scores of 1 of 2 images are not finite"),
        (b"[[1, 2, NaN], [1, 2, 1e999]]", "scores of 2 of 2 images are not finite"),
        ([[1, 2, 10**400], [1, 2, 1e39]], "scores of 2 of 2 images are not finite"),
        ([{"a": 1}, {"a": 2}], "answers with scores by name: give the labels"),
    ],
)
def test_garbage_instead_of_scores(answer: Any, message: str) -> None:
    mapping = {"request": ["{images}"], "gives": "scores"}
    with serving(lambda _: answer) as server, pytest.raises(RemoteError, match=message):
        remote(server.url, mapping).scores(pictures(2))


@pytest.mark.parametrize(
    ("values", "names", "outcome"),
    [
        ([2, 0, 1.0], None, [2, 0, 1]),
        (["b", "a"], {"a": 0, "b": 1}, [1, 0]),
        ([7, "7"], {"7": 2}, [2, 2]),
        ([3], None, "answers with class 3, but there are 3"),
        ([-1], None, "answers with class -1"),
        ([10**30], None, "answers with class 1000"),
        ([True], None, "expected the number of a class, got True"),
        ([1.5], None, "expected the number of a class, got 1.5"),
        (["1"], None, "expected the number of a class, got 1"),
        ([None], None, "expected the number of a class, got None"),
    ],
)
def test_labels(values: list[Any], names: dict[str, int] | None, outcome: list[int] | str) -> None:
    if isinstance(outcome, list):
        assert to_labels(values, 3, names).tolist() == outcome
    else:
        with pytest.raises(RemoteError, match=outcome):
            to_labels(values, 3, names)


def test_scores_by_name_need_each_class_once() -> None:
    names = {"a": 0, "b": 1, "bee": 1}
    assert to_scores([{"b": 2, "a": 1}], 2, names).tolist() == [[1, 2]]
    with pytest.raises(RemoteError, match="two scores for class 1"):
        to_scores([{"b": 2, "bee": 1}], 2, names)
    with pytest.raises(RemoteError, match="answers with 1 classes, but 2"):
        to_scores([{"b": 2}], 2, names)
    with pytest.raises(RemoteError, match="the label 'c'"):
        to_scores([{"b": 2, "c": 1}], 2, names)


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused_in_one_line(body: bytes) -> None:
    try:
        value = json.loads(body)
    except ValueError:
        with pytest.raises(RemoteError, match=r"the answer is not JSON: .*\Z"):
            parse_answer(body)
    else:
        assert json.dumps(parse_answer(body)) == json.dumps(value)


@given(st.lists(st.text(min_size=1).filter(lambda step: step != "*"), min_size=1, max_size=4))
def test_json_pointers_reach_every_name(path: list[str]) -> None:
    value: Any = "found"
    for step in reversed(path):
        value = {step: value}
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)
    assert steps(pointer) == tuple(path)
    assert follow(value, steps(pointer)) == "found"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_whatever_is_shown_is_short_and_on_one_line(value: Any) -> None:
    text = shown(value)
    assert len(text) <= 63
    assert text.isprintable()


# --- the file --------------------------------------------------------------------------------------------------------

SINGLE = """
request: {model: cats-v2, picture: "data:image/png;base64,{image}"}
encoding: png
answer: result.0.label
gives: labels
labels: [cat, dog, other]
headers: {Authorization: "Bearer ${SUSPECT_TOKEN}"}
conduct: {requests_per_second: 2, max_queries: 100}
"""
SEVERAL = """
request: {instances: "{images}"}
each: {b64: "{image}"}
batch: 16
answer: predictions.*.scores
gives: scores
"""


def test_the_documented_mappings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "api.yaml"
    path.write_text(SINGLE)
    single = read_mapping(path)
    path.write_text(SEVERAL)
    several = read_mapping(str(path))
    assert (single.single, single.names) == (True, {"cat": 0, "dog": 1, "other": 2})
    assert (single.conduct.requests_per_second, single.conduct.max_queries, single.conduct.retries) == (2, 100, 4)
    assert (several.single, several.batch, several.encoding, several.names) == (False, 16, "png", {})
    for mapping in (single, several):
        assert HttpMapping.model_validate(mapping.model_dump()) == mapping
    page = (Path(__file__).parents[1] / "docs" / "servers.md").read_text()
    assert SINGLE in page
    assert SEVERAL in page
    for entry in HttpMapping.model_fields:
        assert f"| `{entry}` |" in page
    for limit in Conduct.model_fields:
        assert f"`{limit}`" in page
    for line in (SINGLE + SEVERAL).split("\n"):
        assert line in str(HttpMapping.__doc__)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "valid dictionary"),
        ("a: [", r"not YAML \("),
        ("\xff\xfe\x00".encode("latin-1"), r"not YAML \("),
        ("request: '{image}'\nwhen: 2026-13-45", r"not YAML \("),
        ("[" * 60000, "nested more than 32 deep"),
        ("x: " + "y" * 70000, "over 65536 bytes"),
        ("request: !!python/object/apply:os.system ['true']", r"not YAML \("),
        ("a: &x [1]\nrequest: [*x, '{image}']", "aliases"),
        ("request: '{image}'\ngives: labels\nanswers: x", "answers: Extra inputs"),
        ("answer: x", "'answer' needs a 'request'"),
        ("request: {a: 1}\ngives: labels", "once, it holds them 0 times"),
        ("request: ['{image}', '{images}']\ngives: labels", "once, it holds them 2 times"),
        ("request: '{image}'\nbatch: 3\ngives: labels", "'each' and 'batch' are for"),
        ("request: 'x{images}'\ngives: labels", "must stand alone, and 'each'"),
        ("request: '{images}'\neach: {a: 1}\ngives: labels", "'each' must hold {image} once"),
        ("request: 'a{image}'\nencoding: floats\ngives: scores", "with encoding floats {image} must stand alone"),
        ("request: '{image}'\nanswer: a.*.b\ngives: labels", r"one \*, and only with"),
        ("request: '{images}'\nanswer: '*.*'\ngives: labels", r"one \*, and only with"),
        ("request: '{image}'", "'gives' must be labels or scores"),
        ("request: '{image}'\ngives: labels\nlabels: {a: -1}", "numbers from 0 on"),
        ("request: '{image}'\ngives: labels\nlabels: [a, a]", "a name twice"),
        ("request: '{image}'\ngives: labels\nlabels: [yes, no]", "labels"),
        ("request: '{image}'\ngives: labels\nconduct: {retries: -1}", "conduct.retries: Input should be greater"),
        ("request: {2026-01-01: '{image}'}\ngives: labels", "request"),
    ],
)
def test_mappings_that_make_no_sense(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "api.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=message) as caught:
        read_mapping(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_mappings_and_mappings_of_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read: No such file"):
        open_classifier("http://host/api", mapping=tmp_path / "absent.yaml")
    with pytest.raises(ModelError, match="a mapping describes a remote model"):
        open_classifier("model.onnx", mapping=tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("mapping", "arguments", "message"),
    [
        ({}, {"input_shape": None}, "doesn't say its input_shape"),
        ({}, {"num_classes": None}, "give num_classes, or the labels"),
        ({"labels": {"a": 3}}, {}, "label 'a' is beyond the 3 classes"),
        ({}, {"input_shape": (2, 4, 4)}, "1, 3 or 4 channels"),
        ({}, {"input_shape": (5, 3, 4, 4)}, "1, 3 or 4 channels"),
        ({}, {"preprocessing": Preprocessing(mean=(0.5,))}, "PNG holds pixels"),
        ({}, {"preprocessing": Preprocessing(layout="NHWC")}, "PNG holds pixels"),
    ],
)
def test_what_a_mapping_cannot_say_must_be_given(
    mapping: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        remote("http://127.0.0.1:1/api", {"request": "{image}", "gives": "labels"} | mapping, **arguments)


# --- headers ---------------------------------------------------------------------------------------------------------


def test_tokens_come_from_the_environment_and_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cret-token"
    monkeypatch.setenv("SUSPECT_TOKEN", secret)
    mapping = {"request": "{image}", "gives": "labels", "headers": {"Authorization": "Bearer ${SUSPECT_TOKEN}"}}
    with serving(lambda asked: asked.headers["Authorization"]) as server:
        classifier = remote(server.url, mapping | {"labels": NAMES})
        with pytest.raises(RemoteError, match=r"the label 'Bearer \*\*\*'") as caught:
            classifier.predict(pictures(1))
        assert server.asked[0].headers["Authorization"] == f"Bearer {secret}"
    exchanges = "".join(exchange.to_json() for exchange in classifier.transcript.exchanges)
    for text in (str(caught.value), repr(classifier), exchanges, repr(HttpMapping(**mapping))):
        assert secret not in text


@pytest.mark.parametrize(
    ("headers", "environ", "message"),
    [
        ({"X-Key": "${NOT_SET}"}, {}, "header X-Key needs the environment variable NOT_SET, which is not set"),
        ({"X-Key": "${EMPTY}"}, {"EMPTY": ""}, "environment variable EMPTY"),
        ({"X-Key": "${KEY}"}, {"KEY": "hidden\r\nX-Other: 1"}, "characters that no header may carry"),
        ({"X-Key": "${KEY}"}, {"KEY": "hiddené"}, "characters that no header may carry"),
        ({"X Key": "1"}, {}, "'X Key' is not a header that can be set"),
        ({"Host": "other"}, {}, "'Host' is not a header that can be set"),
        ({"content-length": "1"}, {}, "'content-length' is not"),
    ],
)
def test_headers_that_cannot_be_sent(headers: dict[str, str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        filled_headers(headers, environ)
    assert "hidden" not in str(caught.value)


def test_headers_are_filled_in() -> None:
    headers = {"A": "${X}-${LONGER}", "B": "plain $X {X}"}
    filled, secrets = filled_headers(headers, {"X": "1", "LONGER": "value"})
    assert filled == {"A": "1-value", "B": "plain $X {X}"}
    assert secrets == ("value",)
