"""`verify_bundle`: a claim of ownership derived again from public material, by someone who trusts neither side."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from intaglio.classifiers import Classifier
from intaglio.errors import EvidenceError
from intaglio.evidence.binomial import chance_p_value, check_threshold, needed_hits, shared_threshold
from intaglio.evidence.bundle import CheckedBundle, read_bundle
from intaglio.evidence.canonical import Hex16, Hex32
from intaglio.evidence.commitment import THRESHOLD, SignedCommitment
from intaglio.evidence.reading import most_hits, read_suspect
from intaglio.evidence.suspect import Suspect, require_comparable
from intaglio.results import Result

#: Why answers differ where the claim was read from scores, or was not.
_READ_OTHERWISE = {
    True: " (from centred scores, but the claim counts classes)",
    False: " (by classes, but the claim was read from scores)",
}


class AskedAgain(Result):
    """What a model answered to the verifier: the suspect, or the one that was committed to."""

    source: str
    sha256: Hex32 | None
    hits: int
    p_value: float
    by_scores: bool  #: read from centred scores, not from classes
    differing: int  #: answers that differ from those the claimant reported
    queries: int


class Proof(Result):
    """What verifying a claim gave. `checked` was derived from public material; `unverified` is taken on trust."""

    verified: bool
    statement: str
    hits: int
    trials: int
    num_classes: int
    p_value: float  #: corrected for the suspects and keys that the claimant says were tried
    threshold: float  #: what decided: the verifier's or the claimant's own, the smaller, shared among the readings
    needed_hits: int | None  #: for the threshold, corrected; None where no number of hits is enough
    suspects: int
    keys: int
    owner_public_key: Hex32
    mark_id: Hex16
    scheme: str
    mode: str
    model_sha256: Hex32
    suspect_source: str
    suspect_sha256: Hex32 | None
    created: str  #: the commitment's date by its owner's clock
    stamped: str | None  #: its date by a trusted time-stamp authority, where one was verified
    asked_again: AskedAgain | None
    committed_model: AskedAgain | None = None  #: the same of the model that was committed to, where it was given
    checked: tuple[str, ...]
    unverified: tuple[str, ...]


class _Case(NamedTuple):
    """What is known when it is decided."""

    material: CheckedBundle
    asked: AskedAgain | None
    committed: AskedAgain | None
    threshold: float  #: before it is shared among the readings
    stamped: datetime | None

    @property
    def decides(self) -> float:
        """The threshold of each reading."""
        return shared_threshold(self.threshold, self.material.commitment.rule.readings)


def verify_bundle(
    path: Path | str,
    *,
    suspect: Classifier | None = None,
    model: Classifier | None = None,
    threshold: float = THRESHOLD,
    roots: bytes | None = None,
    before: datetime | None = None,
) -> Proof:
    """Derives a claim again: signatures, Merkle proof, triggers from their seed, hits, exact p-value, decision.

    Args:
        suspect: the model in question, to be asked again (one query a trigger). Without it the answers are the
            claimant's word, and so is all that follows from them.
        model: the model that was committed to, to be asked as well: a commitment can be made to a digest of nothing,
            and stamped, long before a model bears its mark.
        threshold: the p-value that convinces the verifier. The rule that the claimant committed to may be stricter,
            and then decides; a laxer one does not count, or trying a few keys would convict anybody.
        roots: PEM certificates of time-stamp authorities that the verifier trusts.
        before: when the dispute began, or the suspect appeared: a commitment not stamped before that proves nothing.

    Raises:
        EvidenceError: the file is missing, damaged or changed, a part of it is not what was committed to, the stamp
            is not good, or `suspect` or `model` is another than that of the claim.
        ClassifierError: the suspect or the model can't answer.
        DataError: a threshold outside (0, 1).
    """
    check_threshold(threshold)
    checked = read_bundle(path)
    try:
        stamped = checked.bundle.commitment.verify(roots)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    described = checked.bundle.suspect.sha256
    if suspect is not None and described is not None and suspect.sha256 is not None:
        _require_same(suspect, described, "the claim is about a model")
    if model is not None:
        _require_same(model, checked.commitment.model_sha256, "the commitment is to a model")
    case = _Case(
        checked,
        asked=None if suspect is None else _ask(suspect, checked),
        committed=None if model is None else _ask(model, checked),
        threshold=min(threshold, checked.commitment.rule.threshold),
        stamped=stamped,
    )
    return _proof(case, before)


def _require_same(classifier: Classifier, described: str, what: str) -> None:
    if classifier.sha256 != described:
        has = "has none" if classifier.sha256 is None else f"has {classifier.sha256[:16]}..."
        raise EvidenceError(f"{what} with SHA-256 {described[:16]}..., but {classifier.source} {has}")


def _ask(suspect: Classifier, checked: CheckedBundle) -> AskedAgain:
    bundle, commitment, batch = checked
    require_comparable(suspect, commitment)
    asked = suspect.queries
    readings = read_suspect(suspect, batch.images, commitment.rule.statistic, commitment.num_classes)
    answers, log_probs = most_hits(readings, batch.labels)
    hits = int((answers == batch.labels).sum())
    return AskedAgain(
        source=suspect.source,
        sha256=suspect.sha256,
        hits=hits,
        p_value=_p_value(checked, hits),
        by_scores=log_probs is not None,
        differing=sum(new != old for new, old in zip(answers.tolist(), bundle.answers, strict=True)),
        queries=suspect.queries - asked,
    )


def _proof(case: _Case, before: datetime | None) -> Proof:
    bundle, commitment, _ = case.material
    claim, stamped, decides = bundle.claim, case.stamped, case.decides
    p_value = _p_value(case.material, claim.hits)
    too_late = before is not None and (stamped is None or stamped >= _utc(before))
    found = [p_value, *(answers.p_value for answers in (case.asked, case.committed) if answers is not None)]
    verified = max(found) <= decides and not too_late
    each = shared_threshold(decides, claim.suspects * claim.keys)
    return Proof(
        verified=verified,
        statement=_statement(case, verified, before if too_late else None),
        hits=claim.hits,
        trials=claim.trials,
        num_classes=commitment.num_classes,
        p_value=p_value,
        threshold=decides,
        needed_hits=needed_hits(claim.trials, commitment.num_classes, each),
        suspects=claim.suspects,
        keys=claim.keys,
        owner_public_key=commitment.owner_public_key,
        mark_id=commitment.mark_id,
        scheme=commitment.scheme,
        mode=commitment.mode,
        model_sha256=commitment.model_sha256,
        suspect_source=bundle.suspect.source,
        suspect_sha256=bundle.suspect.sha256,
        created=commitment.created,
        stamped=None if stamped is None else stamped.isoformat(timespec="seconds"),
        asked_again=case.asked,
        committed_model=case.committed,
        checked=_checked(case),
        unverified=_unverified(case),
    )


def _p_value(checked: CheckedBundle, hits: int) -> float:
    claim = checked.bundle.claim
    return chance_p_value(hits, claim.trials, checked.commitment.num_classes, suspects=claim.suspects, keys=claim.keys)


def _statement(case: _Case, verified: bool, before: datetime | None) -> str:
    checked, asked, committed, threshold = case.material, case.asked, case.committed, case.decides
    claim = checked.bundle.claim
    hits = asked.hits if asked else claim.hits
    p_value = _p_value(checked, hits)
    shown = f"p = {p_value:.2g}" if p_value > 1e-300 else "p < 1e-300"
    counted = (
        f"{hits} of {claim.trials} triggers answered as committed; by chance {shown} "
        f"(threshold {threshold:.2g}, {claim.tried} tried)"
    )
    if verified and asked is None:
        return f"The suspect was not asked; on the claimant's word for its answers, verified: {counted}."
    if verified:
        return f"Verified: {counted}."
    if before is not None:
        return f"Not verified: no trusted stamp shows that the commitment was made before {before.isoformat()}."
    if committed is not None and committed.p_value > threshold:
        return f"Not verified: {committed.source}, which was committed to, bears no such mark: {committed.hits} hits."
    if asked is not None and asked.p_value <= threshold:
        return f"Not verified: the reported answers hold only {claim.hits} of {claim.trials} hits."
    return f"Not verified: {counted}. That does not show that the suspect is no copy."


def _checked(case: _Case) -> tuple[str, ...]:
    checked, asked, committed, threshold, stamped = case
    index, batches = checked.bundle.disclosure.index, checked.commitment.batches
    suspect, owner = checked.bundle.suspect, bytes.fromhex(checked.commitment.owner_public_key)
    lines = [
        "commitment and claim are signed by the same owner, and unchanged",
        f"the disclosed batch is number {index} of the {batches} committed to (Merkle proof)",
        "its images and labels are those that the disclosed seed gives for this owner; none is the claimant's own",
        "hits and p-value were counted again",
    ]
    if (claimants := checked.commitment.rule.threshold) > threshold:
        lines.append(f"decided at p <= {threshold:.2g}: the claimant's own threshold, {claimants:.2g}, is laxer")
    if checked.bundle.log_probs is not None:
        lines.append("the answers are what the claimed scores are read as, by the rule that was committed to")
    if suspect.transcript_lines is not None and suspect.signed_by(owner):
        lines.append("the answers are those in the transcript that the claimant signed")
    if stamped is not None:
        lines.append(f"the commitment existed at {stamped.isoformat(timespec='seconds')} (time stamp)")
    if asked is not None:
        read = "" if asked.by_scores == (checked.bundle.log_probs is not None) else _READ_OTHERWISE[asked.by_scores]
        lines.append(f"{asked.source} was asked again: {asked.hits} hits, {asked.differing} answers differ{read}")
    if committed is not None:
        lines.append(f"{committed.source} is the model committed to; it was asked: {committed.hits} hits")
    return tuple(lines)


def _unverified(case: _Case) -> tuple[str, ...]:
    (bundle, commitment, _), asked, committed, threshold, stamped = case
    lines = unverified_time(bundle.commitment, stamped)
    if asked is None:
        lines.append("the answers are as the claimant reports them: the suspect was not asked again (--suspect)")
    elif bundle.suspect.sha256 is None or asked.sha256 is None:
        lines.append(f"that {asked.source} is the suspect of the claim, {bundle.suspect.source}: no file digests")
    lines.append(f"that only {bundle.claim.tried} were tried")
    lines.append(f"that batch {bundle.disclosure.index} was new to all: whoever has seen it can train it into a model")
    if committed is None:
        lines.append(
            f"that the model committed to, with SHA-256 {commitment.model_sha256[:16]}..., exists and bears this mark "
            "(--model)"
        )
    if commitment.batches > 1:
        at_worst = min(1.0, commitment.batches * bundle.claim.p_value)
        lines.append(
            f"that batch {bundle.disclosure.index} of {commitment.batches} was not picked for its luck; if it was the "
            f"best of all, p = {at_worst:.2g}"
        )
    lines += _transcript(bundle.suspect, commitment.owner_public_key)
    if threshold > THRESHOLD:
        lines.append(
            f"you and the claimant chose a weak threshold, {threshold:.2g}: trying about {1 / threshold:.2g} keys in "
            "secret reaches it by chance"
        )
    return tuple(lines)


def unverified_time(signed: SignedCommitment, stamped: datetime | None) -> list[str]:
    """What is taken on trust about when a commitment was made."""
    if signed.time_stamp is None:
        return [f"the commitment has no time stamp: {signed.commitment.created} is by its owner's clock"]
    if stamped is None:
        return ["the time stamp was not verified: that needs the certificates of authorities you trust (--roots)"]
    return []


def _transcript(suspect: Suspect, owner: str) -> list[str]:
    if suspect.transcript is None:
        return []
    if not suspect.signed_by(bytes.fromhex(owner)):
        return ["the transcript of the questions is signed by another key, which is not known here"]
    kept_back = "" if suspect.transcript_lines is not None else "; its lines were not given, and not compared"
    return [f"the transcript of the questions is signed by the claimant, not by the suspect{kept_back}"]


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
