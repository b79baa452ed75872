"""What goes into the registry and comes out of it: frozen records, checked on both ways."""

import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from intaglio.results import Result


def _printable(text: str) -> str:
    # A name ends up on terminals, where control characters are commands; PostgreSQL takes no NUL either.
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("holds a control character, such as a line break")
    return text


Line = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_printable)]
Suspect = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_printable)]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Recorded(Result):
    """`recorded`: when the entry was made, UTC, by the clock of whoever made it (a time stamp proves more)."""

    recorded: AwareDatetime


class OwnerRecord(Recorded):
    """An owner: the Ed25519 public key in hex, and the name it goes by."""

    public_key: Digest
    name: Line


class ModelRecord(Recorded):
    """A model: digest of its file, name, input shape without the batch, number of classes."""

    sha256: Digest
    name: Line
    input_shape: tuple[Count, ...]
    classes: Count
    notes: Line


class CommitmentRecord(Recorded):
    """A commitment: `envelope` is the signed JSON, unaltered; `stamp` its RFC 3161 token in base64, if it has one."""

    mark_id: Identity
    owner: Digest
    model_sha256: Digest
    envelope: str = Field(repr=False)
    stamp: str | None = Field(default=None, repr=False)


class SpentBatch(Recorded):
    """A disclosure batch that was used up, and on which suspect."""

    mark_id: Identity
    batch: Count
    suspect: Suspect


class VerificationRecord(Recorded):
    """One attempt to find a mark in a suspect; `result` is the whole claim."""

    mark_id: Identity
    suspect: Suspect
    hits: Count
    trials: Count
    p_value: Probability
    verified: bool
    result: dict[str, Any] = Field(repr=False)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.hits > self.trials:
            raise ValueError(f"{self.hits} hits in {self.trials} trials")
        return self


class VerdictRecord(Recorded):
    """What a scan said of a model; `result` is the whole verdict."""

    model_sha256: Digest
    flagged: bool
    p_value: Probability
    result: dict[str, Any] = Field(repr=False)


class SealCheckRecord(Recorded):
    """Whether a seal was intact on a suspect; `result` is the whole check."""

    seal_id: Identity
    suspect: Suspect
    intact: bool
    result: dict[str, Any] = Field(repr=False)


class HistoryEntry(Result):
    """One line of the history: what happened, to which mark, seal, model or owner, and with which suspect."""

    recorded: AwareDatetime
    event: Literal["owner", "model", "commitment", "spent", "verification", "verdict", "seal check"]
    identity: str
    suspect: str | None
    statement: str


class RegistrySummary(Result):
    """Where the registry is (never with a password), the version of its tables, and how many entries each has."""

    location: str
    version: str
    counts: dict[str, int]
