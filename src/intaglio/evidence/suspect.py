"""The suspect of a claim: what was asked, and the signed record of asking it."""

from collections.abc import Iterable
from typing import Self
from urllib.parse import urlsplit

from torch import Tensor

from intaglio.classifiers import Classifier, Exchange
from intaglio.errors import EvidenceError
from intaglio.evidence.batches import TriggerPlan
from intaglio.evidence.canonical import Hex32, Source
from intaglio.evidence.commitment import Commitment
from intaglio.evidence.envelope import Envelope, fingerprint
from intaglio.evidence.reading import DECIMALS, Reading, known_classes, read_scores
from intaglio.evidence.transcript import SignedTranscript, recorded_labels, recorded_scores
from intaglio.results import Result

#: Another machine's logarithm may be rounded the other way.
_ROUNDED = 1.5 * 10**-DECIMALS


class Suspect(Result):
    """What was asked."""

    source: Source  #: path or URL
    sha256: Hex32 | None = None  #: of the file, where there is one
    transcript: Envelope | None = None  #: signed record of the questions and answers, where one was kept
    transcript_lines: str | None = None  #: that record itself; may be kept back, and then only its digest is known

    @classmethod
    def of(cls, classifier: Classifier, transcript: SignedTranscript | None = None) -> Self:
        """A classifier as the suspect of a claim, with the transcript of asking it."""
        return cls(
            source=classifier.source,
            sha256=classifier.sha256,
            transcript=None if transcript is None else transcript.envelope,
            transcript_lines=None if transcript is None else transcript.lines.decode(),
        )

    def signed_by(self, public_key: bytes) -> bool:
        """Whether the transcript says to be signed by this key."""
        signatures = () if self.transcript is None else self.transcript.signatures
        return {signature.keyid for signature in signatures} == {fingerprint(public_key)}


def require_comparable(suspect: Classifier, plan: TriggerPlan) -> None:
    """Does nothing if the suspect takes what the mark's triggers are, and knows all of its classes, or more.

    Raises:
        EvidenceError: it does not.
    """
    if suspect.input_shape != plan.input_shape or suspect.num_classes < plan.num_classes:
        raise EvidenceError(
            f"{suspect.source}: takes {list(suspect.input_shape)} and knows {suspect.num_classes} classes, but the "
            f"mark is for {list(plan.input_shape)} and {plan.num_classes}"
        )


def check_transcript(suspect: Suspect, commitment: Commitment, images: Tensor, reading: Reading) -> None:
    """Does nothing if the transcript, as far as it is given and the owner's, is genuine and holds just these answers.

    Scores are read again: their labels must be those of the reading, and their log-probabilities too. A claimant can't
    choose to count classes where the rule wants scores read alone, and scores were given.

    Raises:
        EvidenceError: it does not, its signature does not fit, or it is of another server.
    """
    owner = bytes.fromhex(commitment.owner_public_key)
    if suspect.transcript is None and suspect.transcript_lines is not None:
        raise EvidenceError("the transcript of the questions is not signed")
    if suspect.transcript is None or not suspect.signed_by(owner):
        return
    if suspect.transcript_lines is None:
        suspect.transcript.verify(owner)
        return
    exchanges = SignedTranscript(suspect.transcript_lines.encode(), suspect.transcript).verify(owner)
    _require_asked(suspect.source, exchanges)
    if reading.log_probs is None:
        if commitment.rule.statistic == "centred-binomial" and any(exchange.scores for exchange in exchanges):
            raise EvidenceError("the suspect gave scores, which the rule wants read, but the claim counts classes")
        same = reading.labels == known_classes(recorded_labels(exchanges, images), commitment.num_classes)
    else:
        scores = recorded_scores(exchanges, images)
        if scores.shape[1] < commitment.num_classes:
            raise EvidenceError("the scores are not those in the transcript: it has another number of classes")
        recorded = read_scores(scores, commitment.num_classes)
        assert recorded.log_probs is not None
        close = (recorded.log_probs - reading.log_probs).abs().amax(dim=1) <= _ROUNDED
        same = close & (recorded.labels == reading.labels)
    differing = len(same) - int(same.sum())
    if differing:
        raise EvidenceError(f"{differing} of {len(images)} answers are not those in the transcript")


def _require_asked(source: str, exchanges: Iterable[Exchange]) -> None:
    """Refuses a transcript in which another server than the suspect's answered."""
    for exchange in exchanges:
        if exchange.images and _server(exchange.url) != _server(source):
            raise EvidenceError(f"the transcript is of {exchange.url}, but the claim about {source}")


def _server(address: str) -> tuple[str, ...]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc
