"""The remote classifier: budget, records, and one clear line for each way in which a server can go wrong."""

import hashlib
import json
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from http_servers import (
    CLASSES,
    SHAPE,
    Asked,
    FakeTime,
    Given,
    honest,
    inferred,
    metadata,
    pictures,
    raw_serving,
    serving,
    toy_scores,
)
from intaglio.classifiers import (
    Access,
    Classifier,
    Conduct,
    Exchange,
    HttpClassifier,
    HttpMapping,
    Transcript,
    image_digest,
    open_classifier,
)
from intaglio.errors import ClassifierError, DataError, ModelError, RemoteError

MODEL = "/v2/models/m"


def remote(url: str, time: FakeTime | None = None, **conduct: Any) -> HttpClassifier:
    return HttpClassifier(url + MODEL, conduct=Conduct(**conduct), clock=(time or FakeTime()).clock)


def bad(infer: Callable[[Asked], Any]) -> Callable[[Asked], Any]:
    """Honest metadata, and other answers."""
    return lambda asked: metadata() if asked.method == "GET" else infer(asked)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_shapes_come_from_the_server_and_scores_are_what_it_computes() -> None:
    images = pictures(70)
    with serving(honest) as server:
        classifier = open_classifier(server.url + MODEL)
        assert isinstance(classifier, HttpClassifier)
        assert (classifier.input_shape, classifier.num_classes, classifier.access) == (SHAPE, CLASSES, Access.SCORES)
        assert [asked.method for asked in server.asked] == ["GET"]  # no image is sent before the first question
        torch.testing.assert_close(classifier.scores(images), toy_scores(images), atol=1e-6, rtol=0)
        assert classifier.predict(images).tolist() == toy_scores(images).argmax(dim=1).tolist()
        torch.testing.assert_close(classifier.log_probs(images), toy_scores(images).log_softmax(1), atol=1e-5, rtol=0)
    assert classifier.queries == classifier.images_sent == 70 * 3 + 4
    assert [len(asked.json["inputs"][0]["data"]) // 16 for asked in server.asked[1:3]] == [64, 6]
    assert classifier.source == server.url + MODEL
    assert server.url in repr(classifier)


def test_smaller_batches_are_the_callers_choice() -> None:
    with serving(honest) as server:
        assert open_classifier(server.url + MODEL, batch_size=5).batch_size == 5
        assert open_classifier(server.url + MODEL, batch_size=500).batch_size == 64


def test_wrong_images_are_refused_before_anything_is_sent() -> None:
    with serving(honest) as server:
        classifier = remote(server.url)
        for images in (pictures(1) + 1, torch.rand(1, 1, 5, 5), "images"):
            with pytest.raises(DataError):
                classifier.predict(images)  # type: ignore[arg-type]
        assert len(server.asked) == 1


def test_only_http_addresses_are_asked() -> None:
    with pytest.raises(ModelError, match="only http:// and https://"):
        open_classifier("s3://bucket/model.onnx")
    with pytest.raises(ModelError, match="not the address of an Open Inference Protocol model"):
        open_classifier("https://example.org/model.onnx")


# --- the budget ------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_beyond_the_budget() -> None:
    with serving(honest) as server:
        classifier = remote(server.url, max_queries=100)
        classifier.predict(pictures(90))
        sent = len(server.asked)
        with pytest.raises(ClassifierError, match="11 more images would exceed the budget: 90 of max_queries=100"):
            classifier.predict(pictures(11))
        classifier.reset_queries()
        with pytest.raises(ClassifierError, match="exceed the budget"):
            classifier.predict(pictures(11))
        assert len(server.asked) == sent  # not even the first part
        classifier.predict(pictures(10))
        with pytest.raises(ClassifierError, match="1 more images would exceed"):
            classifier.predict(pictures(1))
        assert sum(len(asked.json["inputs"][0]["data"]) for asked in server.asked[1:]) == 100 * 16


def test_repeated_images_count_too() -> None:
    with serving(bad(lambda _: Given(status=500))) as server:
        classifier = remote(server.url, max_queries=25, retries=10)
        with pytest.raises(ClassifierError, match="20 of max_queries=25"):
            classifier.predict(pictures(10))
        assert len(server.asked) == 3
    assert classifier.images_sent == 20


def test_images_that_a_redirect_repeats_count_too() -> None:
    def redirect(asked: Asked) -> Any:
        if asked.path.endswith("/infer"):
            return Given(b"", 307, {"Location": "/elsewhere"})
        return inferred(asked.json)

    with serving(bad(redirect)) as server:
        classifier = remote(server.url, max_queries=6)
        classifier.scores(pictures(2))
        assert classifier.images_sent == 4
        first, second = classifier.transcript.exchanges[1:]
        assert (first.status, first.labels, first.problem) == (307, (), f"redirects to {server.url}/elsewhere")
        assert (second.images, second.url) == (first.images, f"{server.url}/elsewhere")
        with pytest.raises(ClassifierError, match="2 more images would exceed the budget: 6 of max_queries=6"):
            classifier.scores(pictures(2))
        assert [asked.path for asked in server.asked[1:]] == [f"{MODEL}/infer", "/elsewhere", f"{MODEL}/infer"]


TOKEN = "sk-live-" + "0123456789abcdef" * 5


@pytest.mark.parametrize(
    "body",
    [f"Bearer {TOKEN}", json.dumps([f"Bearer {TOKEN}"]), json.dumps({f"echo {TOKEN}": 1}), f"x{' ' * 1000}{TOKEN}"],
)
def test_tokens_that_a_server_echoes_are_neither_shown_nor_recorded(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUSPECT_TOKEN", TOKEN)
    mapping = HttpMapping(
        request={"x": "{images}"},
        encoding="floats",
        gives="scores",
        headers={"Authorization": "Bearer ${SUSPECT_TOKEN}"},
    )
    with serving(lambda _: Given(body.encode())) as server:
        classifier = HttpClassifier(server.url, mapping=mapping, input_shape=SHAPE, num_classes=CLASSES)
        with pytest.raises(RemoteError) as caught:
            classifier.scores(pictures(1))
    (exchange,) = classifier.transcript.exchanges
    assert TOKEN[:4] not in f"{caught.value} {exchange.problem}"


def test_misspelt_limits_are_not_passed_over() -> None:
    with pytest.raises(ClassifierError, match="unknown option 'max_queries': limits go into conduct=Conduct"):
        HttpClassifier("http://127.0.0.1:1/v2/models/m", max_queries=3)  # type: ignore[call-arg]


# --- servers that go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda _: b"<html>welcome</html>", "the answer is not JSON: <html>welcome</html>"),
        (lambda _: b"", "the answer is not JSON"),
        (lambda _: [], "not an Open Inference Protocol answer: its top"),
        (lambda _: {"error": "boom"}, "not an Open Inference Protocol answer: outputs: Field required"),
        (lambda _: {"outputs": []}, "expected one output 'scores', got 0 among 0"),
        (lambda a: inferred(a.json, shape=[2, 7], data=[0.0] * 14), "answers with 7 classes, but 3 were expected"),
        (lambda a: inferred(a.json, shape=[1, 3], data=[0.0] * 3), r"expected scores \[2, 3\], got \[1, 3\]"),
        (lambda a: inferred(a.json, shape=[6]), r"expected scores \[2, 3\], got \[6\]"),
        (lambda a: inferred(a.json, shape=[]), r"expected scores \[2, 3\], got \[\]"),
        (lambda a: inferred(a.json, shape=[1] * 9), "outputs.0.shape: Tuple should have at most 8"),
        (lambda a: inferred(a.json, data=[0.0] * 5), "expected 6 scores in all, got 5"),
        (lambda a: inferred(a.json, data=[[0.0] * 3, [0.0] * 2]), "expected 6 scores in all, got 5"),
        (lambda a: inferred(a.json, data=[[0.0] * 3, 0.0]), "expected lists of one depth"),
        (lambda a: inferred(a.json, data=[[[0.0] * 3], [[0.0] * 3]]), "expected 6 scores in all, got 2"),
        (lambda a: inferred(a.json, data=["a"] * 6), "expected a number for a score, got a"),
        (lambda a: inferred(a.json, data=[math.nan] * 6), "scores of 2 of 2 images are not finite"),
        (lambda a: inferred(a.json, data=[None, 1, 1, 1, 1, math.inf]), "scores of 2 of 2 images are not finite"),
        (lambda a: inferred(a.json, datatype="INT64"), "answers with INT64, but stated FP32"),
        (lambda _: Given({"error": "out of memory"}, 500), r"HTTP 500 \(out of memory\) \(5 attempts\)"),
        (lambda _: Given(b"", 307, {"Location": "http://example.org/"}), "redirects to another host"),
        (lambda _: Given(b"x" * 4000), "answers with more than 3000 bytes"),
    ],
)
def test_bad_answers_are_one_line_and_recorded(infer: Callable[[Asked], Any], message: str) -> None:
    with serving(bad(infer)) as server:
        classifier = remote(server.url, max_answer_bytes=3000)
        with pytest.raises(RemoteError, match=message) as caught:
            classifier.predict(pictures(2))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(server.url + MODEL)
    last = classifier.transcript.exchanges[-1]
    assert last.problem
    assert last.problem in str(caught.value)
    assert (len(last.images), last.labels, last.scores) == (2, (), ())


def test_nested_data_is_as_good_as_flat() -> None:
    def nested(asked: Asked) -> Any:
        answer = inferred(asked.json)
        (output,) = answer["outputs"]
        rows = torch.tensor(output["data"]).reshape(output["shape"]).tolist()
        return {"outputs": [output | {"data": rows, "name": "other"}]}  # nor does the only output's name matter

    with serving(bad(nested)) as server:
        torch.testing.assert_close(remote(server.url).scores(pictures(3)), toy_scores(pictures(3)), atol=1e-6, rtol=0)


def test_a_server_that_hangs_is_given_up() -> None:
    time = FakeTime()
    with raw_serving(None) as url, pytest.raises(RemoteError, match=r"hangs: no answer within 0\.02 s \(3 attempts\)"):
        remote(url, time, read_timeout=0.02, retries=2)
    assert time.slept == [0.25, 0.5]


def test_a_server_that_stops_answering_midway() -> None:
    def half(connection: socket.socket) -> None:
        if connection.recv(10_000).startswith(b"GET"):
            body = json.dumps(metadata()).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        while connection.recv(10_000):  # until the client gives up
            pass

    with raw_serving(half) as url:
        classifier = remote(url, read_timeout=0.05, retries=3)
        with pytest.raises(RemoteError, match="hangs: no answer"):
            classifier.predict(pictures(1))
    *_, described = (exchange for exchange in classifier.transcript.exchanges if exchange.method == "GET")
    asked = [exchange for exchange in classifier.transcript.exchanges if exchange.method == "POST"]
    assert described.status == 200
    assert [(exchange.status, exchange.answer_sha256) for exchange in asked] == [(None, None)] * 4


# --- records ---------------------------------------------------------------------------------------------------------


def test_every_request_is_recorded() -> None:
    answers = [Given(status=503)]
    with serving(bad(lambda asked: answers.pop() if answers else inferred(asked.json))) as server:
        transcript = Transcript()
        classifier = HttpClassifier(server.url + MODEL, clock=FakeTime().clock, transcript=transcript)
        images = pictures(3)
        scores = classifier.scores(images)
    asked, failed, done = transcript.exchanges
    assert len(transcript) == 3
    assert classifier.transcript is transcript
    assert (asked.method, asked.url, asked.images, asked.status) == ("GET", server.url + MODEL, (), 200)
    digests = tuple(image_digest(image) for image in images)
    assert (failed.status, failed.problem, failed.images) == (503, "answers with HTTP 503", digests)
    assert (failed.labels, failed.scores) == ((), ())
    assert (done.method, done.url, done.images) == ("POST", server.url + MODEL + "/infer", digests)
    assert done.labels == tuple(scores.argmax(dim=1).tolist())
    assert torch.equal(torch.tensor(done.scores), scores)
    assert done.request_sha256 == hashlib.sha256(server.asked[-1].body).hexdigest()
    assert (failed.asked_at, done.asked_at) == ("2026-03-01T12:00:00.000000Z", "2026-03-01T12:00:00.250000Z")
    for exchange in transcript.exchanges:
        assert Exchange.from_json(exchange.to_json()) == exchange


def test_label_only_answers_record_labels() -> None:
    mapping = HttpMapping(request="{images}", encoding="floats", gives="labels")
    with serving(lambda asked: [2] * len(asked.json)) as server:
        classifier = HttpClassifier(server.url, mapping=mapping, input_shape=SHAPE, num_classes=CLASSES)
        assert classifier.predict(pictures(2)).tolist() == [2, 2]
    (exchange,) = classifier.transcript.exchanges
    assert (exchange.labels, exchange.scores) == ((2, 2), ())


def test_records_hold_as_many_labels_as_images() -> None:
    fields: dict[str, Any] = {"asked_at": "", "method": "POST", "url": "", "request_sha256": "0" * 64}
    with pytest.raises(ValueError, match="1 labels and 0 scores of 2 images"):
        Exchange(**fields, images=("1" * 64, "2" * 64), labels=(1,))


def test_image_digests_are_of_shape_and_values() -> None:
    image = torch.tensor([[[0.0, 0.5], [0.25, 1.0]]])
    values = b"\0\0\0\0" + b"\0\0\0\x3f" + b"\0\0\x80\x3e" + b"\0\0\x80\x3f"
    assert image_digest(image) == hashlib.sha256(b"intaglio-image/1 float32 1x2x2\n" + values).hexdigest()
    assert image_digest(image.permute(0, 2, 1)) != image_digest(image)
    assert image_digest(image.permute(0, 2, 1)) == image_digest(image.permute(0, 2, 1).contiguous())
    assert image_digest(image.view(1, 1, 4)) != image_digest(image)


def test_headers_and_conduct_for_open_inference_servers_come_from_a_mapping_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUSPECT_TOKEN", "abcdef")
    path = tmp_path / "access.yaml"
    path.write_text("headers: {X-Api-Key: '${SUSPECT_TOKEN}'}\nconduct: {max_queries: 1}\n")
    with serving(honest) as server:
        classifier: Classifier = open_classifier(server.url + MODEL, mapping=path)
        classifier.predict(pictures(1))
        with pytest.raises(ClassifierError, match="max_queries=1"):
            classifier.predict(pictures(1))
        assert {asked.headers["X-Api-Key"] for asked in server.asked} == {"abcdef"}
