"""The public bundle: one file with everything a stranger needs to verify a claim of ownership, and no secret.

It is a DSSE envelope, signed by the owner, around an in-toto statement about the marked model and the suspect.
`verify_bundle` (in `proof`) derives the claim again from it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from intaglio.errors import EvidenceError
from intaglio.evidence.batches import Batch
from intaglio.evidence.binomial import MOST_TRIED, chance_p_value
from intaglio.evidence.canonical import Instant, canonical_json, now, read_limited, validated
from intaglio.evidence.commitment import Commitment, SignedCommitment
from intaglio.evidence.disclosure import Disclosure, check_disclosure, decode_pictures, encode_pictures
from intaglio.evidence.envelope import Envelope, read_envelope, sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.reading import LOWEST, Reading, centred_labels
from intaglio.evidence.suspect import Suspect, check_transcript
from intaglio.files import atomic_path
from intaglio.results import Result

BUNDLE_TYPE = "https://intaglio.dev/ownership-claim/v1"
#: 100 images of 3 x 224 x 224 as PNG are 15 MB at most; public images come on top.
SIZE_LIMIT = 1 << 27

Count = Annotated[int, Field(ge=1, le=MOST_TRIED)]


class Claim(Result):
    """What the claimant says to have found. `suspects` and `keys` are all that were tried, for the correction."""

    hits: int = Field(ge=0)
    trials: int = Field(ge=1)
    p_value: float = Field(ge=0, le=1)
    suspects: Count = 1
    keys: Count = 1

    @property
    def tried(self) -> str:
        """The correction in words."""
        suspects = "1 suspect" if self.suspects == 1 else f"{self.suspects} suspects"
        return f"{suspects} and {self.keys} key{'' if self.keys == 1 else 's'}"


class Bundle(Result):
    """The content of the file."""

    format: Literal["intaglio-ownership-claim/1"] = "intaglio-ownership-claim/1"
    commitment: SignedCommitment
    disclosure: Disclosure
    public_images: tuple[str, ...] | None = Field(default=None, min_length=1)  #: PNG, base64
    suspect: Suspect
    answers: tuple[int, ...]  #: what the suspect's answer to each disclosed trigger is read as
    log_probs: tuple[tuple[float, ...], ...] | None = None  #: its scores, where those are what was read
    claim: Claim
    created: Instant


class CheckedBundle(NamedTuple):
    """A bundle whose signatures, Merkle proof, triggers and recount were all found right."""

    bundle: Bundle
    commitment: Commitment
    batch: Batch  #: redrawn from the disclosed seed


def write_bundle(
    path: Path | str,
    key: Key,
    *,
    commitment: SignedCommitment,
    disclosure: Disclosure,
    suspect: Suspect,
    answers: Sequence[int],
    log_probs: Sequence[Sequence[float]] | None = None,
    suspects: int = 1,
    keys: int = 1,
    public: Tensor | None = None,
    spend: Callable[[], object] | None = None,
) -> Bundle:
    """Makes the claim's file, atomically, after checking it as a stranger would.

    Args:
        answers: what the suspect's answers to the disclosed triggers are read as, in their order.
        log_probs: its scores, where those are what was read.
        suspects, keys: how many were tried before this claim; the p-value is multiplied by both.
        public: the committed public images, where the triggers are made of some.
        spend: called when everything is checked, before anything is laid open: to use the batch up.

    Raises:
        EvidenceError: another key's commitment, parts that don't belong together, or more than fits into such a file.
        StorageError: it can't be written.
    """
    plan = commitment.commitment
    labels = [int(answer) for answer in answers]
    hits, trials = _hits(labels, disclosure), len(labels)
    claim = Claim(
        hits=hits,
        trials=trials,
        p_value=chance_p_value(hits, trials, plan.num_classes, suspects=suspects, keys=keys),
        suspects=suspects,
        keys=keys,
    )
    bundle = Bundle(
        commitment=commitment,
        disclosure=disclosure,
        public_images=None if public is None else encode_pictures(public),
        suspect=suspect,
        answers=tuple(labels),
        log_probs=None if log_probs is None else tuple(tuple(map(float, row)) for row in log_probs),
        claim=claim,
        created=now(),
    )
    envelope = sign_statement(key, _subjects(bundle, plan), BUNDLE_TYPE, bundle.to_dict())
    check_bundle(envelope)
    content = canonical_json(envelope.to_dict()) + b"\n"
    if len(content) > SIZE_LIMIT:  # it could be written, but nobody could read it
        raise EvidenceError(f"the claim would have {len(content)} bytes, and more than {SIZE_LIMIT} are not read")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        if spend is not None:  # a disk that is full has said so by now: no batch is spent on a file that isn't there
            spend()
    return bundle


def read_bundle(path: Path | str) -> CheckedBundle:
    """Reads a claim's file and checks all that is no matter of judgement.

    Raises:
        EvidenceError: missing, damaged, changed, signed by another than the owner, or not what was committed to.
    """
    content = read_limited(path, SIZE_LIMIT)
    try:
        return check_bundle(read_envelope(content))
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error


def check_bundle(envelope: Envelope) -> CheckedBundle:
    """The bundle inside an envelope: signatures, Merkle proof, redrawn triggers, recounted hits and p-value.

    Raises:
        EvidenceError: something does not fit, with the reason.
    """
    bundle = signed_bundle(envelope)
    commitment = bundle.commitment.commitment
    public = None
    if bundle.public_images is not None:
        public = decode_pictures(bundle.public_images, commitment.input_shape).float() / 255
    batch = check_disclosure(commitment, bundle.disclosure, public)
    _check_claim(bundle, commitment)
    asked = decode_pictures(bundle.disclosure.images, commitment.input_shape).float() / 255
    reading = Reading(torch.tensor(bundle.answers), _scores(bundle, commitment))
    check_transcript(bundle.suspect, commitment, asked, reading)
    return CheckedBundle(bundle, commitment, batch)


def signed_bundle(envelope: Envelope) -> Bundle:
    """The bundle inside an envelope, after nothing but its signatures and its commitment's were checked.

    Raises:
        EvidenceError: not a claim, or not signed by the owner.
    """
    statement = envelope.unverified()
    if statement.predicate_type != BUNDLE_TYPE:
        raise EvidenceError(f"a statement of type '{statement.predicate_type[:80]}', not {BUNDLE_TYPE}")
    bundle = validated(Bundle, statement.predicate, "claim")
    commitment = bundle.commitment.commitment
    envelope.verify(bytes.fromhex(commitment.owner_public_key))
    bundle.commitment.verify()
    if dict(statement.subjects) != _subjects(bundle, commitment):
        raise EvidenceError("the statement is about other models than the claim inside it")
    return bundle


def _check_claim(bundle: Bundle, commitment: Commitment) -> None:
    claim, answers = bundle.claim, bundle.answers
    if len(answers) != commitment.batch_size or claim.trials != commitment.batch_size:
        raise EvidenceError(
            f"{len(answers)} answers and {claim.trials} trials are claimed for {commitment.batch_size} triggers"
        )
    if min(answers) < 0 or max(answers) >= commitment.num_classes:
        raise EvidenceError(f"an answer is not one of the {commitment.num_classes} classes")
    hits = _hits(answers, bundle.disclosure)
    if claim.hits != hits:
        raise EvidenceError(f"{claim.hits} hits are claimed, but the answers hold {hits}")
    p_value = chance_p_value(hits, claim.trials, commitment.num_classes, suspects=claim.suspects, keys=claim.keys)
    if abs(claim.p_value - p_value) > 1e-9 * p_value:
        raise EvidenceError(f"p = {claim.p_value:.3g} is claimed, but {hits} hits give {p_value:.3g}")


def _scores(bundle: Bundle, commitment: Commitment) -> Tensor | None:
    """The claimed log-probabilities, if any, after the answers were found to be what they are read as."""
    if bundle.log_probs is None:
        return None
    if commitment.rule.statistic == "binomial":
        raise EvidenceError("the claim is one of scores, but the rule that was committed to counts classes")
    rows, classes = len(bundle.answers), commitment.num_classes
    if len(bundle.log_probs) != rows or {len(row) for row in bundle.log_probs} != {classes}:
        raise EvidenceError(f"the scores are not {rows} rows of {classes} classes")
    log_probs = torch.tensor(bundle.log_probs, dtype=torch.float64)
    if float(log_probs.min()) < LOWEST or float(log_probs.max()) > 0:
        raise EvidenceError(f"the scores are not log-probabilities from {LOWEST:g} to 0")
    differing = int((centred_labels(log_probs) != torch.tensor(bundle.answers)).sum())
    if differing:
        raise EvidenceError(f"{differing} of {len(bundle.answers)} answers are not what the scores are read as")
    return log_probs


def _hits(answers: Sequence[int], disclosure: Disclosure) -> int:
    if len(answers) != len(disclosure.labels):
        raise EvidenceError(f"there are {len(answers)} answers to {len(disclosure.labels)} triggers")
    return sum(answer == label for answer, label in zip(answers, disclosure.labels, strict=True))


def _subjects(bundle: Bundle, commitment: Commitment) -> dict[str, str]:
    suspect = {} if bundle.suspect.sha256 is None else {"suspect": bundle.suspect.sha256}
    return {"model": commitment.model_sha256} | suspect
