"""Signed transcripts: what was asked of a remote model and what it answered, in lines that can't be changed later.

    line_i = canonical JSON of {number: i, previous: h_(i-1), exchange: what was asked and answered}
    h_i    = SHA-256(line_i),   h_(-1) = 64 zeros

The signed statement names the SHA-256 of all lines and the last h. It proves who says so, and that nothing was changed,
taken out or put in since. That the server did answer so is its signer's word: HTTP answers bear no signature. Let a
notary ask, or ask again before witnesses, where that word is doubted.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from intaglio.classifiers import Exchange, image_digest
from intaglio.errors import EvidenceError
from intaglio.evidence.canonical import Hex32, canonical_json, parse_json, read_limited, validated
from intaglio.evidence.envelope import Envelope, read_envelope, sign_statement
from intaglio.evidence.key import Key
from intaglio.files import write_bytes
from intaglio.results import Result

_Answer = TypeVar("_Answer")

TRANSCRIPT_TYPE = "https://intaglio.dev/transcript/v1"
_SUBJECT = "transcript.jsonl"
_START = "0" * 64
_LARGEST_TRANSCRIPT = 1 << 28
_LARGEST_ENVELOPE = 1 << 20


class _Line(Result):
    number: int
    previous: Hex32
    exchange: Exchange


class _Predicate(Result):
    """What the statement says of the lines."""

    requests: int = Field(ge=1)
    images: int  #: asked about, repeated ones included
    urls: tuple[str, ...]
    first: str  #: when the first request was sent
    last: str
    chain: Hex32  #: the last line's SHA-256


class SignedTranscript(NamedTuple):
    """The lines, and the envelope that says who signed them."""

    lines: bytes
    envelope: Envelope

    def verify(self, public_key: bytes) -> tuple[Exchange, ...]:
        """The exchanges, once the signature was found to be of `public_key` (32 raw bytes) and over just these lines.

        Raises:
            EvidenceError: another signer, or anything changed since; names the first line that doesn't fit.
        """
        statement = self.envelope.verify(public_key)
        if statement.predicate_type != TRANSCRIPT_TYPE:
            raise EvidenceError(f"a statement of type '{statement.predicate_type[:80]}', not {TRANSCRIPT_TYPE}")
        signed = validated(_Predicate, statement.predicate, "transcript's statement")
        exchanges, last = _read_lines(self.lines)
        if last != signed.chain or statement.subjects != {_SUBJECT: hashlib.sha256(self.lines).hexdigest()}:
            raise EvidenceError(
                f"transcript: its {len(exchanges)} lines are not the {signed.requests} that were signed: lines were "
                "taken from its end or added, or its last one was changed"
            )
        if _summary(exchanges, last) != signed:
            raise EvidenceError("transcript: the statement says other counts, addresses or times than its lines")
        return exchanges

    def save(self, path: Path | str) -> None:
        """Writes the lines to `path`, and the envelope beside it, as `path` with `.dsse.json` behind it.

        Raises:
            StorageError: they can't be written.
        """
        path = Path(path)
        write_bytes(_envelope_path(path), self.envelope.to_bytes())
        write_bytes(path, self.lines)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` wrote; nothing is verified yet.

        Raises:
            EvidenceError: one of the files is missing, too large, or the envelope is damaged.
        """
        lines = read_limited(path, _LARGEST_TRANSCRIPT)
        return cls(lines, read_envelope(read_limited(_envelope_path(Path(path)), _LARGEST_ENVELOPE)))


def sign_transcript(exchanges: Sequence[Exchange], key: Key) -> SignedTranscript:
    """Chains and signs what a remote classifier recorded: `sign_transcript(classifier.transcript.exchanges, key)`.

    Raises:
        EvidenceError: nothing was asked.
    """
    if not exchanges:
        raise EvidenceError("there is nothing to sign: no request was recorded")
    lines, last = _write_lines(exchanges)
    subjects = {_SUBJECT: hashlib.sha256(lines).hexdigest()}
    return SignedTranscript(lines, sign_statement(key, subjects, TRANSCRIPT_TYPE, _summary(exchanges, last).to_dict()))


def recorded_labels(exchanges: Iterable[Exchange], images: Tensor) -> Tensor:
    """The labels int64 `[N]` that a transcript holds for raw images float32 `[N, C, H, W]`.

    Of an image that was asked about more than once, the first answer counts: who could choose among several would
    choose the one that suits.

    Raises:
        EvidenceError: an image that has no answer.
    """
    found = _first(images, (pair for asked in exchanges for pair in zip(asked.images, asked.labels, strict=False)))
    return torch.tensor(found, dtype=torch.int64)


def recorded_scores(exchanges: Iterable[Exchange], images: Tensor) -> Tensor:
    """The scores float64 `[N, K]`, of whatever kind, that a transcript holds for raw images; the first ones of each.

    Raises:
        EvidenceError: an image that has none, or scores of different numbers of classes.
    """
    found = _first(images, (pair for asked in exchanges for pair in zip(asked.images, asked.scores, strict=False)))
    if len({len(row) for row in found}) != 1:
        raise EvidenceError("the transcript's scores are of different numbers of classes")
    return torch.tensor(found, dtype=torch.float64)


def _first(images: Tensor, answered: Iterable[tuple[str, _Answer]]) -> list[_Answer]:
    """Each image's first answer; exchanges that failed have none."""
    answers: dict[str, _Answer] = {}
    for digest, answer in answered:
        answers.setdefault(digest, answer)
    digests = [image_digest(image) for image in images]
    missing = sum(digest not in answers for digest in digests)
    if missing:
        raise EvidenceError(f"the transcript holds no answer for {missing} of {len(digests)} images")
    return [answers[digest] for digest in digests]


def _write_lines(exchanges: Sequence[Exchange]) -> tuple[bytes, str]:
    """All lines, each with its line break, and the last one's hash."""
    lines, previous = [], _START
    for number, exchange in enumerate(exchanges):
        line = canonical_json(_Line(number=number, previous=previous, exchange=exchange).to_dict())
        previous = hashlib.sha256(line).hexdigest()
        lines.append(line + b"\n")
    return b"".join(lines), previous


def _read_lines(content: bytes) -> tuple[tuple[Exchange, ...], str]:
    """The inverse, which accepts nothing that `_write_lines` wouldn't write."""
    exchanges, previous = [], _START
    if not content.endswith(b"\n"):
        raise EvidenceError("transcript: truncated, for its last line does not end")
    for number, text in enumerate(content[:-1].split(b"\n")):
        what = f"transcript, line {number + 1}"
        line = validated(_Line, parse_json(text, what), what)
        if (line.number, line.previous) != (number, previous):
            raise EvidenceError(f"{what}: does not follow the line before it: one was changed, moved or removed")
        if canonical_json(line.to_dict()) != text:
            raise EvidenceError(f"{what}: not in the form that intaglio writes")
        previous = hashlib.sha256(text).hexdigest()
        exchanges.append(line.exchange)
    return tuple(exchanges), previous


def _summary(exchanges: Sequence[Exchange], chain: str) -> _Predicate:
    return _Predicate(
        requests=len(exchanges),
        images=sum(len(exchange.images) for exchange in exchanges),
        urls=tuple(sorted({exchange.url for exchange in exchanges})),
        first=exchanges[0].asked_at,
        last=exchanges[-1].asked_at,
        chain=chain,
    )


def _envelope_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.dsse.json")
