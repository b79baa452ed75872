"""The suspect of a claim: what was asked, and the signed record of asking it."""

from typing import Self

from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.errors import EvidenceError
from intaglio.evidence.canonical import Hex32, Source
from intaglio.evidence.envelope import Envelope, fingerprint
from intaglio.evidence.reading import DECIMALS, Reading, Statistic, read_scores
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


def check_transcript(suspect: Suspect, owner: bytes, images: Tensor, reading: Reading, statistic: Statistic) -> None:
    """Does nothing if the transcript, as far as it is given and the owner's, is genuine and holds just these answers.

    Scores are read again: their labels must be those of the reading, and their log-probabilities too. A claimant can't
    choose to count classes where the rule wants scores, and scores were given.

    Raises:
        EvidenceError: it does not, or its signature does not fit.
    """
    if suspect.transcript is None and suspect.transcript_lines is not None:
        raise EvidenceError("the transcript of the questions is not signed")
    if suspect.transcript is None or not suspect.signed_by(owner):
        return
    if suspect.transcript_lines is None:
        suspect.transcript.verify(owner)
        return
    exchanges = SignedTranscript(suspect.transcript_lines.encode(), suspect.transcript).verify(owner)
    if reading.log_probs is None:
        if statistic != "binomial" and any(exchange.scores for exchange in exchanges):
            raise EvidenceError("the suspect gave scores, which the rule wants read, but the claim counts classes")
        same = reading.labels == recorded_labels(exchanges, images)
    else:
        recorded = read_scores(recorded_scores(exchanges, images))
        if recorded.log_probs is None or recorded.log_probs.shape != reading.log_probs.shape:
            raise EvidenceError("the scores are not those in the transcript: it has another number of classes")
        close = (recorded.log_probs - reading.log_probs).abs().amax(dim=1) <= _ROUNDED
        same = close & (recorded.labels == reading.labels)
    differing = len(same) - int(same.sum())
    if differing:
        raise EvidenceError(f"{differing} of {len(images)} answers are not those in the transcript")
