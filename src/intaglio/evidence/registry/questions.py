"""What a registry can be asked; `registry.py` adds what can be written into it."""

from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute

from intaglio.errors import EvidenceError
from intaglio.evidence.registry import schema
from intaglio.evidence.registry.database import Database
from intaglio.evidence.registry.entries import read
from intaglio.evidence.registry.history import read_history
from intaglio.evidence.registry.models import (
    Base,
    CommitmentRow,
    ModelRow,
    OwnerRow,
    SealCheckRow,
    SpentRow,
    VerdictRow,
    VerificationRow,
)
from intaglio.evidence.registry.records import (
    CommitmentRecord,
    HistoryEntry,
    ModelRecord,
    OwnerRecord,
    Recorded,
    RegistrySummary,
    SealCheckRecord,
    SpentBatch,
    VerdictRecord,
    VerificationRecord,
)

_Record = TypeVar("_Record", bound=Recorded)

#: What a verification's suspect is known by; claims have always told the digest, so registries of any age have it.
_known_by = func.coalesce(VerificationRow.result["suspect_sha256"].as_string(), VerificationRow.suspect)


class Questions:
    """The reading half of `Registry`: each answer is one transaction, and never an object of the database's own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Ends all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Where it is, without a password."""
        return self._database.name

    def next_batch(self, mark_id: str, batches: int) -> int:
        """The first of `batches` that is not spent. It is not reserved: `spend_batch` decides.

        Raises:
            EvidenceError: all are spent.
        """
        spent = {entry.batch for entry in self.spent_batches(mark_id)}
        for index in range(batches):
            if index not in spent:
                return index
        raise EvidenceError(f"all {batches} batches of mark {mark_id} are spent; mark again with a new commitment")

    def suspects_tried(self, mark_id: str, *, including: str | None = None) -> int:
        """How many suspects this mark was looked for in: the Bonferroni factor. `including` counts in any case.

        A suspect is known by its file's SHA-256 or, where there is none, by its source (a URL): a path may be written
        in two ways, and hold another model tomorrow.
        """
        return self._distinct(_known_by, VerificationRow.mark_id == mark_id, including)

    def keys_tried(self, suspect: str, *, including: str | None = None) -> int:
        """How many marks were looked for in this suspect, known as above: the Bonferroni factor.

        `including` counts in any case.
        """
        return self._distinct(VerificationRow.mark_id, _known_by == suspect, including)

    def owners(self) -> tuple[OwnerRecord, ...]:
        """All owners."""
        return self._list(OwnerRow, OwnerRecord)

    def models(self) -> tuple[ModelRecord, ...]:
        """All models."""
        return self._list(ModelRow, ModelRecord)

    def commitments(self, *, mark_id: str | None = None, owner: str | None = None) -> tuple[CommitmentRecord, ...]:
        """Commitments, of one mark or one owner (public key in hex) or all."""
        return self._list(CommitmentRow, CommitmentRecord, mark_id=mark_id, owner=owner)

    def spent_batches(self, mark_id: str | None = None) -> tuple[SpentBatch, ...]:
        """Spent batches, of one mark or all."""
        return self._list(SpentRow, SpentBatch, mark_id=mark_id)

    def verifications(
        self, *, mark_id: str | None = None, suspect: str | None = None, limit: int | None = None
    ) -> tuple[VerificationRecord, ...]:
        """Verifications, of a mark, of a suspect or all; the newest `limit`, oldest first."""
        return self._list(VerificationRow, VerificationRecord, limit, mark_id=mark_id, suspect=suspect)

    def verdicts(self, *, model_sha256: str | None = None, limit: int | None = None) -> tuple[VerdictRecord, ...]:
        """Verdicts, of one model or all; the newest `limit`, oldest first."""
        return self._list(VerdictRow, VerdictRecord, limit, model_sha256=model_sha256)

    def seal_checks(
        self, *, seal_id: str | None = None, suspect: str | None = None, limit: int | None = None
    ) -> tuple[SealCheckRecord, ...]:
        """Checks of a seal, of a suspect or all; the newest `limit`, oldest first."""
        return self._list(SealCheckRow, SealCheckRecord, limit, seal_id=seal_id, suspect=suspect)

    def history(self, identity: str | None = None, *, limit: int | None = None) -> tuple[HistoryEntry, ...]:
        """What was recorded of a mark, seal, model digest, owner's key or suspect, or all; oldest first."""
        with self._database.reading() as session:
            return read_history(session, identity, limit)

    def summary(self) -> RegistrySummary:
        """Place, version and number of entries."""
        with self._database.reading() as session:
            version = schema.version_of(session.connection(), self.name) or ""
            counts = {
                name: session.scalar(select(func.count()).select_from(table)) or 0
                for name, table in Base.metadata.tables.items()
            }
        return RegistrySummary(location=self.name, version=version, counts=counts)

    def _list(
        self, table: type[Base], record: type[_Record], limit: int | None = None, **equal: str | None
    ) -> tuple[_Record, ...]:
        given = {column: value for column, value in equal.items() if value is not None}
        with self._database.reading() as session:
            newest_first = select(table).filter_by(**given).order_by(table.id.desc()).limit(limit)
            return tuple(read(record, row) for row in reversed(session.scalars(newest_first).all()))

    def _distinct(
        self, column: ColumnElement[str] | InstrumentedAttribute[str], where: ColumnElement[bool], including: str | None
    ) -> int:
        with self._database.reading() as session:
            found = set(session.scalars(select(column).where(where).distinct()))
        return len(found if including is None else found | {including})
