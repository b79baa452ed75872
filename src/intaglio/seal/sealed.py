"""`Seal`: the file that says how exactly one model answers, signed by its owner; a secret from whoever serves it."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from intaglio.errors import EvidenceError
from intaglio.evidence.canonical import Hex16, Hex32, Instant, Name, parse_json, read_limited, validated
from intaglio.evidence.envelope import Envelope, Statement, fingerprint, sign_statement
from intaglio.evidence.key import Key
from intaglio.files import write_private
from intaglio.results import Result
from intaglio.seal.noise import NoiseFloor
from intaglio.seal.pixels import decode_png

SEAL_TYPE = "https://intaglio.dev/seal/v1"
_SUBJECT = "model"
_SIZE_LIMIT = 1 << 28
_Side = Annotated[int, Field(ge=1, le=1 << 14)]


class SealRecord(Result):
    """What is sealed.

    `triggers`: PNGs in base64, in a keyed order (twins are as like as few grey levels make them: who has the file sees
    which they are). `commitments`: for each, the HMAC of the sealed answer. `digest`: SHA-256 of the weights (of the
    file, where weights are out of reach).
    """

    format: Literal["intaglio-seal/1"] = "intaglio-seal/1"
    seal_id: Hex16
    owner_public_key: Hex32
    method: dict[str, Any]
    digest: Hex32
    model_sha256: Hex32 | None  #: of the file it was sealed from
    input_shape: tuple[_Side, _Side, _Side] | tuple[_Side, _Side, _Side, _Side]
    num_classes: int = Field(ge=2)
    classes: tuple[str, ...] = ()  #: their names, if the sealed model had any
    task: Name | None
    triggers: tuple[str, ...] = Field(min_length=2, repr=False)
    commitments: tuple[Hex32, ...] = Field(repr=False)
    noise: NoiseFloor
    allowed: tuple[Name, ...]
    created: Instant  #: by the owner's clock
    seconds: float
    seed: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.triggers) % 2 or len(self.commitments) != len(self.triggers):
            raise ValueError(f"{len(self.triggers)} triggers with {len(self.commitments)} commitments")
        if len(self.classes) not in (0, self.num_classes):
            raise ValueError(f"{len(self.classes)} names for {self.num_classes} classes")
        return self

    @property
    def pairs(self) -> int:
        """Half as many as triggers."""
        return len(self.triggers) // 2

    def images(self, places: list[int]) -> Tensor:
        """The triggers at these places, float32 `[n, *input_shape]` in [0, 1].

        Raises:
            EvidenceError: a damaged trigger.
        """
        return torch.stack([decode_png(self.triggers[place], self.input_shape) for place in places]) / 255


class Seal(Result):
    """A seal as it is kept: a DSSE envelope around an in-toto statement about the sealed model.

    It tells no answer in clear, but which images will be asked: whoever has it and the sealed model, or a faintly
    tampered copy, has the answers.
    """

    envelope: Envelope

    @classmethod
    def sign(cls, key: Key, record: SealRecord) -> Self:
        """The record, signed by its owner."""
        return cls(envelope=sign_statement(key, {_SUBJECT: record.digest}, SEAL_TYPE, record.to_dict()))

    @cached_property
    def record(self) -> SealRecord:
        """What is sealed, as it stands; `verify` says whether it is genuine.

        Raises:
            EvidenceError: not a seal.
        """
        return _record(self.envelope.unverified())

    def verify(self, public_key: bytes) -> SealRecord:
        """The record, after its signature was found to be of `public_key`.

        Raises:
            EvidenceError: another signer, or an edited seal.
        """
        if (signer := self.record.owner_public_key) != public_key.hex():
            raise EvidenceError(
                f"the seal is of key {fingerprint(bytes.fromhex(signer))[:16]}, and this is key "
                f"{fingerprint(public_key)[:16]}: a seal is checked with the key that made it"
            )
        statement = self.envelope.verify(public_key)
        if dict(statement.subjects) != {_SUBJECT: self.record.digest}:
            raise EvidenceError("the seal's statement is about another model than the seal itself")
        return self.record

    def write(self, path: Path | str) -> None:
        """Writes the seal's file, atomically; none but its owner may read it.

        Raises:
            StorageError: it can't be written.
        """
        write_private(path, self.envelope.to_bytes())

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Reads what `write` wrote; nothing is verified yet.

        Raises:
            EvidenceError: missing, damaged, or not a seal.
        """
        fields = parse_json(read_limited(path, _SIZE_LIMIT), str(path))
        seal = cls(envelope=validated(Envelope, fields, f"{path}: not a seal"))
        try:
            _ = seal.record
        except EvidenceError as error:
            raise EvidenceError(f"{path}: {error}") from error
        return seal


def _record(statement: Statement) -> SealRecord:
    if statement.predicate_type != SEAL_TYPE:
        raise EvidenceError(f"not a seal, but a statement of type '{statement.predicate_type[:80]}'")
    return validated(SealRecord, statement.predicate, "not a seal")
