"""Signed statements in the forms that other tools read: an in-toto Statement v1 in a DSSE envelope, Ed25519.

    signature = Ed25519("DSSEv1" SP len(type) SP type SP len(payload) SP payload)

Sources: the DSSE protocol 1.0.2 and the in-toto Attestation Framework, Statement v1 (as OpenSSF model signing uses).
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from intaglio.errors import EvidenceError
from intaglio.evidence.canonical import Hex32, canonical_json, decode_base64, encode_base64, parse_json, validated
from intaglio.evidence.key import Key
from intaglio.results import Result

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class Statement(NamedTuple):
    """What is said (`predicate`, in the form that `predicate_type` names) of what (name to hex SHA-256)."""

    subjects: Mapping[str, str]
    predicate_type: str
    predicate: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The statement as canonical JSON."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in self.subjects.items()],
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )


class _Digest(Result):
    sha256: Hex32


class _Subject(Result):
    name: str
    digest: _Digest


class _StatementForm(Result):
    """The JSON form of a statement."""

    statement_type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(min_length=1)
    predicate_type: str = Field(alias="predicateType")
    predicate: dict[str, Any]


class Signature(Result):
    """One signature; `keyid` is the hex SHA-256 of the raw public key, `sig` base64."""

    keyid: Hex32
    sig: str


class Envelope(Result):
    """A DSSE envelope with one signature; its JSON form is that of the DSSE specification."""

    payload: str
    payloadType: str  # noqa: N815  (the specification's name)
    signatures: tuple[Signature, ...]

    def verify(self, public_key: bytes) -> Statement:
        """The statement, after its signature was found to be of `public_key` (32 raw bytes).

        Raises:
            EvidenceError: another signer, a changed payload or signature, or not an in-toto statement.
        """
        if len(self.signatures) != 1:
            raise EvidenceError(f"expected an envelope with one signature, got {len(self.signatures)}")
        signature = self.signatures[0]
        if signature.keyid != fingerprint(public_key):
            raise EvidenceError(f"signed by key {signature.keyid[:16]}, not by {fingerprint(public_key)[:16]}")
        message = pre_authentication(self.payloadType, decode_base64(self.payload, "payload"))
        try:
            _public(public_key).verify(decode_base64(signature.sig, "signature"), message)
        except InvalidSignature as error:
            raise EvidenceError("the signature does not fit: the statement or its signature was changed") from error
        return self.unverified()

    def unverified(self) -> Statement:
        """The statement as it stands: to learn who says to have signed it, and then `verify`.

        Raises:
            EvidenceError: not an in-toto statement.
        """
        if self.payloadType != PAYLOAD_TYPE:
            raise EvidenceError(f"the payload is of type '{self.payloadType[:80]}', not {PAYLOAD_TYPE}")
        fields = parse_json(decode_base64(self.payload, "payload"), "statement")
        form = validated(_StatementForm, fields, "not an in-toto statement about SHA-256 digests")
        subjects = {subject.name: subject.digest.sha256 for subject in form.subject}
        if len(subjects) < len(form.subject):  # readers would differ in which digest a name has
            raise EvidenceError("not an in-toto statement that names each of its subjects once")
        return Statement(subjects, form.predicate_type, form.predicate)

    def to_bytes(self) -> bytes:
        """The envelope as canonical JSON: the bytes that a time stamp is made over."""
        return canonical_json(self.to_dict())


def sign_statement(key: Key, subjects: Mapping[str, str], predicate_type: str, predicate: dict[str, Any]) -> Envelope:
    """Says `predicate` about `subjects` (name to hex SHA-256), signed.

    Raises:
        EvidenceError: no subject, or a predicate that is not JSON.
    """
    if not subjects:
        raise EvidenceError("a statement needs at least one subject")
    payload = Statement(subjects, predicate_type, predicate).to_bytes()
    signature = Signature(keyid=key.fingerprint, sig=encode_base64(key.sign(pre_authentication(PAYLOAD_TYPE, payload))))
    return Envelope(payload=encode_base64(payload), payloadType=PAYLOAD_TYPE, signatures=(signature,))


def read_envelope(content: bytes) -> Envelope:
    """An envelope from its JSON; nothing is verified yet.

    Raises:
        EvidenceError: not a DSSE envelope.
    """
    return validated(Envelope, parse_json(content, "envelope"), "not a DSSE envelope")


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed (DSSE's PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def fingerprint(public_key: bytes) -> str:
    """Hex SHA-256 of a raw public key, as `Key.fingerprint`."""
    return hashlib.sha256(public_key).hexdigest()


def _public(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise EvidenceError(f"an Ed25519 public key has 32 bytes, got {len(raw)}") from error
