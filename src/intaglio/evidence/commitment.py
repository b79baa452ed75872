"""Commitments: an owner's signed and time-stamped word, before any dispute, on how a mark is going to be proved.

The file is JSON: `envelope` (DSSE around an in-toto statement whose subject is the marked model) and, if there is one,
`time_stamp` (base64 of an RFC 3161 answer over the envelope's canonical JSON). It gives no trigger away.
"""

from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from intaglio.errors import EvidenceError
from intaglio.evidence.batches import TriggerPlan, draw_batch
from intaglio.evidence.canonical import (
    Hex32,
    Instant,
    Name,
    decode_base64,
    encode_base64,
    now,
    parse_json,
    read_limited,
    validated,
)
from intaglio.evidence.envelope import Envelope, Statement, sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.merkle import merkle_root
from intaglio.evidence.reading import READINGS, Statistic
from intaglio.evidence.timestamp import request_time_stamp, require_stamp_of, verify_time_stamp
from intaglio.files import write_bytes, write_json
from intaglio.results import Result

#: No search among keys comes that far; who verifies decides by it too, whatever an owner committed to.
THRESHOLD = 2.0**-64
COMMITMENT_TYPE = "https://intaglio.dev/commitment/v1"
_SIZE_LIMIT = 1 << 20
_SUBJECT = "model"
#: What `SignedCommitment.extract` writes.
EXTRACTED = ("envelope.json", "stamp.tsr")


class DecisionRule(Result):
    """When a suspect is claimed: its corrected p-value, of what `statistic` counts as hits, is `threshold` or less.

    Where the statistic counts the better of two readings, each has half of the threshold.
    """

    statistic: Statistic = "either-binomial"
    threshold: float = Field(default=THRESHOLD, gt=0, lt=1)

    @property
    def readings(self) -> int:
        """How many readings of the same answers share the threshold."""
        return READINGS[self.statistic]


class Commitment(TriggerPlan):
    """What an owner commits to: the plan of the triggers, the marked model, the batches' Merkle root and the rule."""

    format: Literal["intaglio-commitment/1"] = "intaglio-commitment/1"
    scheme: Name  #: e.g. "deep-fidelity"
    mode: Name  #: e.g. "fixll-pfl"
    model_sha256: Hex32  #: of the marked weights file
    merkle_root: Hex32  #: over the batches' leaves
    rule: DecisionRule = DecisionRule()
    created: Instant  #: by the owner's clock, ISO 8601 UTC; the time stamp is what proves it


class SignedCommitment(Result):
    """A commitment as it is handed out: signed, and perhaps time-stamped."""

    envelope: Envelope
    time_stamp: str | None = None  #: base64

    @cached_property
    def commitment(self) -> Commitment:
        """What is committed to, as it stands; `verify` says whether it is genuine.

        Raises:
            EvidenceError: not a commitment.
        """
        return _commitment(self.envelope.unverified())

    @property
    def stamp(self) -> bytes | None:
        """The time stamp's own bytes, if there is one.

        Raises:
            EvidenceError: damaged.
        """
        return None if self.time_stamp is None else decode_base64(self.time_stamp, "time stamp")

    def verify(self, roots: bytes | None = None) -> datetime | None:
        """When it was time-stamped (UTC); None without a stamp, or without `roots` to verify one with.

        Args:
            roots: PEM certificates of trusted time-stamp authorities.

        Raises:
            EvidenceError: the signature is not the owner's, the stamp is not this commitment's, or something was
                changed.
        """
        statement = self.envelope.verify(bytes.fromhex(self.commitment.owner_public_key))
        if dict(statement.subjects) != {_SUBJECT: self.commitment.model_sha256}:
            raise EvidenceError("the commitment's statement is about another model than the commitment itself")
        if (stamp := self.stamp) is None:
            return None
        require_stamp_of(stamp, self.envelope.to_bytes())
        return None if roots is None else verify_time_stamp(stamp, self.envelope.to_bytes(), roots)

    def stamped(self, url: str, *, timeout: float = 10) -> Self:
        """The same with a time stamp from the authority at `url`.

        Raises:
            RemoteError, EvidenceError: see `request_time_stamp`.
        """
        answer = request_time_stamp(self.envelope.to_bytes(), url, timeout=timeout)
        return self.model_copy(update={"time_stamp": encode_base64(answer)})

    def write(self, path: Path | str) -> None:
        """Writes the commitment's file, atomically."""
        write_json(path, self.to_dict())

    def extract(self, folder: Path | str) -> None:
        """Writes `envelope.json` and `stamp.tsr` for other tools.

        `openssl ts -verify -data envelope.json -in stamp.tsr -CAfile roots.pem` then accepts the stamp.

        Raises:
            StorageError: they can't be written.
        """
        for name, content in zip(EXTRACTED, (self.envelope.to_bytes(), self.stamp), strict=True):
            if content is not None:
                write_bytes(Path(folder) / name, content)


def commit(
    key: Key,
    plan: TriggerPlan,
    *,
    scheme: str,
    mode: str,
    model_sha256: str,
    public: Tensor | None = None,
    rule: DecisionRule | None = None,
) -> Commitment:
    """Commits to every batch of `plan` and to the model that was marked with them.

    Raises:
        EvidenceError: another key's plan, or other public images than the plan's.
    """
    root = merkle_root([draw_batch(key, plan, index, public).leaf() for index in range(plan.batches)])
    fields = plan.to_dict() | {
        "scheme": scheme,
        "mode": mode,
        "model_sha256": model_sha256,
        "merkle_root": root.hex(),
        "rule": rule or DecisionRule(),
        "created": now(),
    }
    return validated(Commitment, fields, "commitment")


def sign_commitment(key: Key, commitment: Commitment) -> SignedCommitment:
    """Signs it; `.stamped(url)` then adds a time stamp.

    Raises:
        EvidenceError: another key's commitment.
    """
    if key.public_key.hex() != commitment.owner_public_key:
        raise EvidenceError(f"the commitment belongs to key {commitment.owner_public_key[:16]}: only that can sign it")
    subjects = {_SUBJECT: commitment.model_sha256}
    return SignedCommitment(envelope=sign_statement(key, subjects, COMMITMENT_TYPE, commitment.to_dict()))


def read_commitment(path: Path | str) -> SignedCommitment:
    """Reads a commitment's file; `.verify()` then says whether it is genuine.

    Raises:
        EvidenceError: missing, damaged, too large, or not a commitment.
    """
    fields = parse_json(read_limited(path, _SIZE_LIMIT), str(path))
    signed = validated(SignedCommitment, fields, f"{path}: not a commitment")
    try:
        _ = signed.commitment
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    return signed


def _commitment(statement: Statement) -> Commitment:
    if statement.predicate_type != COMMITMENT_TYPE:
        raise EvidenceError(f"a statement of type '{statement.predicate_type[:80]}', not {COMMITMENT_TYPE}")
    return validated(Commitment, statement.predicate, "commitment")
