"""Signed transcripts: any change is found, and the answers in them can be looked up again."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from http_servers import FakeTime, Given, honest, pictures, serving, toy_scores
from intaglio.classifiers import Exchange, HttpClassifier, image_digest
from intaglio.errors import EvidenceError, StorageError
from intaglio.evidence.envelope import Envelope, sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.transcript import TRANSCRIPT_TYPE, SignedTranscript, recorded_labels, sign_transcript

KEY = Key(bytes(range(32)))
OTHER = Key(bytes(32))


def exchange(number: int, **changes: object) -> Exchange:
    fields: dict[str, object] = {
        "asked_at": f"2026-03-01T12:00:0{number}.000000Z",
        "method": "POST",
        "url": "http://suspect/v2/models/m/infer",
        "images": (f"{number:064x}",),
        "labels": (number,),
        "scores": ((0.1, number + 1e-17),),
        "status": 200,
        "request_sha256": "a" * 64,
        "answer_sha256": "b" * 64,
    }
    return Exchange.model_validate(fields | changes)


EXCHANGES = tuple(exchange(number) for number in range(4))
SIGNED = sign_transcript(EXCHANGES, KEY)


def test_a_classifiers_own_record_is_signed_saved_and_verified(tmp_path: Path) -> None:
    images = pictures(70)
    answers = [Given(status=503)]
    with serving(lambda asked: answers.pop() if answers and asked.method == "POST" else honest(asked)) as server:
        classifier = HttpClassifier(f"{server.url}/v2/models/m", clock=FakeTime().clock)
        labels = classifier.predict(images)
    path = tmp_path / "evidence" / "transcript.jsonl"
    sign_transcript(classifier.transcript.exchanges, KEY).save(path)
    loaded = SignedTranscript.load(path)
    exchanges = loaded.verify(KEY.public_key)
    assert exchanges == classifier.transcript.exchanges
    assert [len(asked.images) for asked in exchanges] == [0, 64, 64, 6]
    assert torch.equal(recorded_labels(exchanges, images), labels)
    assert labels.tolist() == toy_scores(images).argmax(dim=1).tolist()
    predicate = loaded.envelope.verify(KEY.public_key).predicate
    assert (predicate["requests"], predicate["images"]) == (4, 134)
    assert predicate["urls"] == [f"{server.url}/v2/models/m", f"{server.url}/v2/models/m/infer"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["transcript.jsonl", "transcript.jsonl.dsse.json"]


def test_lines_are_json_and_chained() -> None:
    lines = SIGNED.lines.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2, 3]
    assert json.loads(lines[0])["previous"] == "0" * 64
    assert [Exchange.model_validate(json.loads(line)["exchange"]) for line in lines] == list(EXCHANGES)
    assert sign_transcript(EXCHANGES, KEY) == SIGNED


def test_only_the_signers_key_verifies() -> None:
    assert SIGNED.verify(KEY.public_key) == EXCHANGES
    with pytest.raises(EvidenceError, match="signed by key"):
        SIGNED.verify(OTHER.public_key)


@given(st.integers(0, len(SIGNED.lines) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_found(position: int, flip: int) -> None:
    changed = bytearray(SIGNED.lines)
    changed[position] ^= flip
    with pytest.raises(EvidenceError):
        SignedTranscript(bytes(changed), SIGNED.envelope).verify(KEY.public_key)


def lines(*numbers: int) -> bytes:
    return b"".join(SIGNED.lines.splitlines(keepends=True)[number] for number in numbers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(0, 1, 3), "line 3: does not follow the line before it"),
        (lines(1, 2, 3), "line 1: does not follow"),
        (lines(0, 2, 1, 3), "line 2: does not follow"),
        (lines(0, 1, 1, 2, 3), "line 3: does not follow"),
        (lines(0, 1, 2), "its 3 lines are not the 4 that were signed"),
        (lines(0, 1, 2, 3)[:-1], "truncated"),
        (b"", "truncated"),
        (b"\n", "line 1: damaged, or not JSON"),
        (lines(0, 1, 2, 3) + b"\n", "line 5: damaged, or not JSON"),
        (SIGNED.lines.replace(b'"labels":[1]', b'"labels":[2]'), "line 3: does not follow"),
        (SIGNED.lines.replace(b'"labels":[3]', b'"labels":[2]'), "its last one was changed"),
        (SIGNED.lines.replace(b'"labels":[3]', b'"labels": [3]'), "line 4: not in the form"),
        (SIGNED.lines.replace(b'"labels":[3]', b'"labels":[3,3]'), "line 4: exchange: Value error, 2 labels"),
        (SIGNED.lines.replace(b'"labels":[3]', b'"labels":[3],"labels":[3]'), "a name is repeated"),
        (SIGNED.lines.replace(b"[[0.1,", b"[[NaN,"), "NaN is not a JSON number"),
        (SIGNED.lines.replace(b"[[0.1,", b"[[1e999,"), "line 1: exchange.scores.0.0: Input should be a finite"),
        (sign_transcript(EXCHANGES[:2], KEY).lines, "its 2 lines are not the 4"),
    ],
)
def test_changed_lines_are_named(content: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message) as caught:
        SignedTranscript(content, SIGNED.envelope).verify(KEY.public_key)
    assert "\n" not in str(caught.value)


def resigned(change: Callable[[dict[str, object]], object], kind: str = TRANSCRIPT_TYPE) -> Envelope:
    """The same statement with another predicate, signed by the rightful key."""
    statement = SIGNED.envelope.verify(KEY.public_key)
    change(statement.predicate)
    return sign_statement(KEY, statement.subjects, kind, statement.predicate)


@pytest.mark.parametrize(
    ("envelope", "message"),
    [
        (resigned(lambda said: said.update(images=5)), "says other counts, addresses or times"),
        (resigned(lambda said: said.update(urls=["http://elsewhere"])), "says other counts, addresses or times"),
        (resigned(lambda said: said.update(chain="0" * 64)), "are not the 4 that were signed"),
        (resigned(lambda said: said.pop("chain")), "transcript's statement: chain: Field required"),
        (resigned(lambda said: None, "https://example.org/other"), "a statement of type 'https://example.org/other'"),
        (SIGNED.envelope.model_copy(update={"payload": base64.b64encode(b"{}").decode()}), "signature does not fit"),
    ],
)
def test_statements_that_say_otherwise(envelope: Envelope, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        SignedTranscript(SIGNED.lines, envelope).verify(KEY.public_key)


def test_an_empty_record_is_not_signed() -> None:
    with pytest.raises(EvidenceError, match="no request was recorded"):
        sign_transcript((), KEY)


def test_files_that_are_missing_or_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(EvidenceError, match="can't be read: No such file"):
        SignedTranscript.load(path)
    SIGNED.save(path)
    (tmp_path / "t.jsonl.dsse.json").write_text("{}")
    with pytest.raises(EvidenceError, match="not a DSSE envelope"):
        SignedTranscript.load(path)
    with pytest.raises(StorageError, match="it is a folder"):
        SIGNED.save(tmp_path)


def test_answers_are_looked_up_by_image_and_the_first_counts() -> None:
    images = pictures(3)
    one, two, three = (image_digest(image) for image in images)
    exchanges = (
        exchange(0, images=(one, two), labels=(), scores=(), problem="hangs", status=None, answer_sha256=None),
        exchange(1, images=(one, two), labels=(2, 1), scores=()),
        exchange(2, images=(one, three), labels=(0, 0), scores=()),
    )
    assert recorded_labels(exchanges, images).tolist() == [2, 1, 0]
    assert recorded_labels(exchanges, images[[2, 0, 0]]).tolist() == [0, 2, 2]
    with pytest.raises(EvidenceError, match="no answer for 1 of 3 images"):
        recorded_labels(exchanges[:2], images)
    with pytest.raises(EvidenceError, match="no answer for 3 of 3 images"):
        recorded_labels(exchanges[:1], images)
