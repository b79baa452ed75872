"""The suspect of a claim: what was asked, and the signed record of asking it."""

from typing import Self

from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.classifiers.outputs import SCALES, to_log_probs
from intaglio.errors import EvidenceError
from intaglio.evidence.canonical import Hex32, Source
from intaglio.evidence.envelope import Envelope, fingerprint
from intaglio.evidence.reading import Reading
from intaglio.evidence.transcript import SignedTranscript, recorded_labels, recorded_scores
from intaglio.results import Result

#: Log-probabilities in a claim are rounded to 4 decimals, and computed from the recorded scores in single precision.
_ROUNDED = 1e-3


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


def check_transcript(suspect: Suspect, owner: bytes, images: Tensor, reading: Reading) -> None:
    """Does nothing if the transcript, as far as it is given and the owner's, is genuine and holds just these answers.

    Scores may be of any kind there; they must come to the log-probabilities of the reading.

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
        differing = int((reading.labels != recorded_labels(exchanges, images)).sum())
    else:
        recorded = recorded_scores(exchanges, images)
        if recorded.shape != reading.log_probs.shape:
            raise EvidenceError("the scores are not those in the transcript: it has another number of classes")
        kinds = [to_log_probs(recorded, kind).double() - reading.log_probs for kind in SCALES]
        differing = min(int((gap.abs().amax(dim=1) > _ROUNDED).sum()) for gap in kinds)
    if differing:
        raise EvidenceError(f"{differing} of {len(images)} answers are not those in the transcript")
