"""Signed statements: read by two independent libraries, and broken by any change."""

import base64
import json
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as DsseEnvelope
from securesystemslib.exceptions import VerificationError

from intaglio.errors import EvidenceError
from intaglio.evidence.envelope import Envelope, Statement, fingerprint, read_envelope, sign_statement
from intaglio.evidence.key import Key

KEY = Key(bytes(range(32)))
OTHER = Key(bytes(32))
SHA = "ab" * 32
TYPE = "https://intaglio.dev/test/v1"
PREDICATE = {"text": "Grüße", "number": 5.5, "none": None, "list": [1, 2], "deep": {"b": 1, "a": True}}
ENVELOPE = sign_statement(KEY, {"model": SHA, "suspect": "cd" * 32}, TYPE, PREDICATE)
SIGNED = ENVELOPE.to_dict()["signatures"][0]


def test_what_was_signed_is_read_back() -> None:
    statement = ENVELOPE.verify(KEY.public_key)
    assert statement == Statement({"model": SHA, "suspect": "cd" * 32}, TYPE, PREDICATE)
    assert ENVELOPE.unverified() == statement
    assert read_envelope(ENVELOPE.to_bytes()) == ENVELOPE == Envelope.from_json(ENVELOPE.to_json())


def test_the_form_is_that_of_the_specifications() -> None:
    fields = json.loads(ENVELOPE.to_bytes())
    assert fields.keys() == {"payload", "payloadType", "signatures"}
    assert fields["payloadType"] == "application/vnd.in-toto+json"
    assert [signature["keyid"] for signature in fields["signatures"]] == [KEY.fingerprint]
    statement = json.loads(base64.b64decode(fields["payload"]))
    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": SHA}}, {"name": "suspect", "digest": {"sha256": "cd" * 32}}],
        "predicateType": TYPE,
        "predicate": PREDICATE,
    }


def test_plain_ed25519_over_the_specified_encoding_accepts_it() -> None:
    fields = ENVELOPE.to_dict()
    payload = base64.b64decode(fields["payload"])
    kind = "application/vnd.in-toto+json"
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = base64.b64decode(fields["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(KEY.public_key).verify(signature, message)


def test_securesystemslib_and_in_toto_accept_it() -> None:
    signer, json_format = (import_module(name) for name in ("securesystemslib.signer", "google.protobuf.json_format"))
    statements, messages = (import_module(f"in_toto_attestation.v1.{name}") for name in ("statement", "statement_pb2"))

    def public(key: Key) -> Any:
        return signer.SSlibKey(KEY.fingerprint, "ed25519", "ed25519", {"public": key.public_key.hex()})

    envelope = DsseEnvelope.from_dict(json.loads(ENVELOPE.to_bytes()))
    assert envelope.verify([public(KEY)], threshold=1).keys() == {KEY.fingerprint}
    with pytest.raises(VerificationError):
        envelope.verify([public(OTHER)], threshold=1)
    statement = statements.Statement.copy_from_pb(json_format.Parse(envelope.payload, messages.Statement()))
    statement.validate()
    assert statement.pb.predicate_type == TYPE
    assert statement.pb.subject[0].digest["sha256"] == SHA
    assert statement.pb.predicate["text"] == "Grüße"


@given(st.data())
def test_any_flipped_byte_fails(data: st.DataObject) -> None:
    content = bytearray(ENVELOPE.to_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(EvidenceError):
        read_envelope(bytes(content)).verify(KEY.public_key)


def test_any_flipped_bit_of_payload_and_signature_fails() -> None:
    """All of them, decoded: no bit is outside what is signed."""
    parts: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
        (SIGNED["sig"], lambda text: {"signatures": [SIGNED | {"sig": text}]}),
        (ENVELOPE.payload, lambda text: {"payload": text}),
    ]
    for text, write in parts:
        raw = base64.b64decode(text)
        for bit in range(8 * len(raw)):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            envelope = Envelope.model_validate(ENVELOPE.to_dict() | write(base64.b64encode(changed).decode()))
            with pytest.raises(EvidenceError, match="the signature does not fit"):
                envelope.verify(KEY.public_key)


def resigned(**changes: Any) -> bytes:
    """An envelope whose payload was changed and signed again by its owner."""
    from intaglio.evidence.canonical import encode_base64
    from intaglio.evidence.envelope import PAYLOAD_TYPE, pre_authentication

    payload = json.loads(base64.b64decode(ENVELOPE.payload)) | changes
    content = json.dumps({name: value for name, value in payload.items() if value is not None}).encode()
    signature = {"keyid": KEY.fingerprint, "sig": encode_base64(KEY.sign(pre_authentication(PAYLOAD_TYPE, content)))}
    return json.dumps(
        {"payload": encode_base64(content), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    ).encode()


def edited(**changes: Any) -> bytes:
    return json.dumps(ENVELOPE.to_dict() | changes).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "envelope: damaged, or not JSON"),
        (b"\xff", "envelope: damaged, or not JSON"),
        (b"[" * 200000, "envelope: damaged, or not JSON"),
        (b'{"payload": NaN}', "NaN is not a JSON number"),
        (b'{"payload": "", "payload": ""}', "a name is repeated"),
        (b"[]", "not a DSSE envelope: Input should be"),
        (b"{}", "not a DSSE envelope: payload: Field required"),
        (edited(comment=""), "comment: Extra inputs are not permitted"),
        (edited(signatures=[]), "expected an envelope with one signature, got 0"),
        (edited(signatures=[SIGNED, SIGNED]), "expected an envelope with one signature, got 2"),
        (edited(signatures=[SIGNED | {"keyid": "x"}]), "signatures.0.keyid: String should match pattern"),
        (edited(signatures=[SIGNED | {"sig": "AA=="}]), "the signature does not fit"),
        (edited(signatures=[SIGNED | {"sig": SIGNED["sig"][:-3] + "B=="}]), "signature: damaged base64"),
        (edited(payload=ENVELOPE.payload + "\n"), "payload: damaged base64"),
        (edited(payload="é"), "payload: damaged base64"),
        (edited(payloadType="text/plain"), "the signature does not fit"),
        (edited(payloadType="\ud800"), "surrogates not allowed"),
        (
            resigned(_type="https://in-toto.io/Statement/v0.1"),
            "_type: Input should be 'https://in-toto.io/Statement/v1'",
        ),
        (resigned(subject=[]), "subject: Tuple should have at least 1 item"),
        (
            resigned(subject=[{"name": "m", "digest": {"sha256": sha}} for sha in (SHA, "cd" * 32)]),
            "names each of its subjects once",
        ),
        (resigned(subject=[{"name": "m", "digest": {"md5": "0"}}]), "subject.0.digest.sha256: Field required"),
        (resigned(predicate=[1]), "predicate: Input should be a valid dictionary"),
        (resigned(predicate=None), "predicate: Field required"),
        (resigned(predicateType=5), "predicateType: Input should be a valid string"),
    ],
)
def test_what_is_no_signed_statement_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(message)) as caught:
        read_envelope(content).verify(KEY.public_key)
    assert "\n" not in str(caught.value)


def test_a_payload_of_another_type_is_no_statement() -> None:
    envelope = read_envelope(edited(payloadType="text/plain"))
    with pytest.raises(EvidenceError, match="the payload is of type 'text/plain'"):
        envelope.unverified()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ENVELOPE.verify(OTHER.public_key), f"signed by key {KEY.fingerprint[:16]}, not by"),
        (lambda: sign_statement(KEY, {}, TYPE, PREDICATE), "a statement needs at least one subject"),
        (lambda: sign_statement(KEY, {"m": SHA}, TYPE, {"p": float("nan")}), "it is not JSON: Out of range float"),
        (lambda: sign_statement(KEY, {"m": SHA}, TYPE, {"p": b"raw"}), "it is not JSON"),
    ],
)
def test_foreign_signers_and_unsignable_statements(call: Callable[[], object], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()


def test_a_public_key_of_another_length() -> None:
    envelope = read_envelope(edited(signatures=[SIGNED | {"keyid": fingerprint(b"short")}]))
    with pytest.raises(EvidenceError, match="an Ed25519 public key has 32 bytes, got 5"):
        envelope.verify(b"short")
