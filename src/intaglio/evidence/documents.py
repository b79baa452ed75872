"""Commitments and claims as files of unknown kind: what is in them, and whether they hold."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from intaglio.classifiers import Classifier
from intaglio.errors import EvidenceError
from intaglio.evidence.bundle import SIZE_LIMIT, Bundle, Claim, signed_bundle
from intaglio.evidence.canonical import parse_json, read_limited, validated
from intaglio.evidence.commitment import THRESHOLD, Commitment, SignedCommitment, read_commitment
from intaglio.evidence.envelope import Envelope, fingerprint
from intaglio.evidence.proof import Proof, unverified_time, verify_bundle
from intaglio.results import Result


class Evidence(Result):
    """What a file states, less triggers and pictures. Its signatures fit; nothing else was verified."""

    kind: Literal["commitment", "claim"]
    owner: str  #: fingerprint of the key that signed
    statement: Commitment
    time_stamp: bool  #: whether the commitment carries one
    claim: Claim | None = None
    suspect: str | None = None
    suspect_sha256: str | None = None
    disclosed_batch: int | None = None

    def lines(self) -> list[str]:
        """The same for a person."""
        told = self.statement
        shape = "x".join(str(side) for side in told.input_shape)
        lines = [
            f"{self.kind}, signed by key {self.owner}",
            f"model      SHA-256 {told.model_sha256}, {shape}, {told.num_classes} classes",
            f"mark       {told.mark_id}: {told.scheme}, {told.mode}; {told.trigger} triggers, "
            f"{told.batches} batches of {told.batch_size}",
            f"rule       {told.rule.statistic}, p <= {told.rule.threshold:.2g}",
            f"made       {told.created} by its owner's clock; {'with' if self.time_stamp else 'without'} a time stamp",
        ]
        if self.claim is not None:
            lines += [
                f"suspect    {self.suspect}" + (f", SHA-256 {self.suspect_sha256}" if self.suspect_sha256 else ""),
                f"claimed    {self.claim.hits} of {self.claim.trials} triggers of batch {self.disclosed_batch}, "
                f"p = {self.claim.p_value:.2g} ({self.claim.tried} tried)",
            ]
        return lines


class CommitmentCheck(Result):
    """What verifying a commitment alone gave: that it is genuine, not that any suspect is a copy."""

    verified: Literal[True] = True
    statement: str
    commitment: Commitment
    stamped: str | None
    checked: tuple[str, ...]
    unverified: tuple[str, ...]


def read_evidence(path: Path | str) -> tuple[Evidence, SignedCommitment]:
    """What a commitment or a claim states, and the signed commitment in it, after its signatures were checked.

    Raises:
        EvidenceError: missing, damaged, changed, or neither.
    """
    fields = _read(path)
    try:
        if _is_commitment(fields):
            signed, facts = validated(SignedCommitment, fields, "not a commitment"), {}
            signed.verify()
        else:
            bundle = signed_bundle(validated(Envelope, fields, "neither a commitment nor a claim"))
            signed, facts = bundle.commitment, _claim_facts(bundle)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    commitment = signed.commitment
    owner = fingerprint(bytes.fromhex(commitment.owner_public_key))
    common = {"kind": "claim" if facts else "commitment", "owner": owner, "statement": commitment}
    return validated(Evidence, common | {"time_stamp": signed.time_stamp is not None} | facts, str(path)), signed


def verify_evidence(
    path: Path | str,
    *,
    suspect: Classifier | None = None,
    model: Classifier | None = None,
    threshold: float | None = None,
    roots: bytes | None = None,
    before: datetime | None = None,
) -> Proof | CommitmentCheck:
    """Verifies a claim (`verify_bundle`), or a commitment alone (signature, and its time stamp against `roots`).

    Args:
        threshold: by default that of `verify_bundle`.

    Raises:
        EvidenceError: see `verify_bundle`; or a suspect, a model, a threshold or a date is given for a commitment,
            which claims nothing.
        ClassifierError: the suspect or the model can't answer.
        DataError: a threshold outside (0, 1).
    """
    if not _is_commitment(_read(path)):
        decided = THRESHOLD if threshold is None else threshold
        return verify_bundle(path, suspect=suspect, model=model, threshold=decided, roots=roots, before=before)
    if suspect is not None or model is not None or threshold is not None or before is not None:
        raise EvidenceError(
            f"{path}: a commitment, which claims nothing about a suspect; verify the claim made from it"
        )
    signed = read_commitment(path)
    try:
        stamped = signed.verify(roots)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    checked = ["the commitment is signed by its owner, and unchanged"]
    if stamped is not None:
        checked.append(f"it existed at {stamped.isoformat(timespec='seconds')} (time stamp)")
    return CommitmentCheck(
        statement="Verified: a genuine commitment. It claims nothing about any suspect.",
        commitment=signed.commitment,
        stamped=None if stamped is None else stamped.isoformat(timespec="seconds"),
        checked=tuple(checked),
        unverified=tuple(unverified_time(signed, stamped)),
    )


def _read(path: Path | str) -> Any:
    return parse_json(read_limited(path, SIZE_LIMIT), str(path))


def _is_commitment(fields: Any) -> bool:
    return isinstance(fields, dict) and "envelope" in fields


def _claim_facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "claim": bundle.claim,
        "suspect": bundle.suspect.source,
        "suspect_sha256": bundle.suspect.sha256,
        "disclosed_batch": bundle.disclosure.index,
    }
