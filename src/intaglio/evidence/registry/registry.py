"""`Registry`: owners, models, commitments, spent batches, and everything that was verified, scanned and checked."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import func, select, update

from intaglio.errors import EvidenceError
from intaglio.evidence.registry.database import Database
from intaglio.evidence.registry.entries import (
    checked,
    chosen,
    commitment_of,
    insert,
    public_hex,
    read,
    require_object,
    set_stamp,
)
from intaglio.evidence.registry.location import default_registry, locate
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
from intaglio.evidence.registry.questions import Questions
from intaglio.evidence.registry.records import (
    CommitmentRecord,
    ModelRecord,
    OwnerRecord,
    Recorded,
    SealCheckRecord,
    SpentBatch,
    VerdictRecord,
    VerificationRecord,
)
from intaglio.results import Result

_Record = TypeVar("_Record", bound=Recorded)


class Registry(Questions):
    """A registry that is open; a context manager. `Registry.open` makes one.

    Every method is one transaction: done or not done, also with other programs at work. Any of them raises
    EvidenceError for a value that makes no sense, and for a database that is locked or gone.
    """

    @classmethod
    def open(cls, place: str | Path | None = None, *, create: bool = True, timeout: float = 10.0) -> Self:
        """Opens a registry, and brings its tables up to date.

        Args:
            place: a file, or a URL (postgresql+psycopg://user@host/database); by default `default_registry()`.
            create: whether to make a registry where there is none.
            timeout: seconds to wait for a lock or for the server.

        Raises:
            EvidenceError: missing, unreadable, not a registry, from a newer intaglio, or locked.
            StorageError: it can't be written.
        """
        return cls(Database(locate(place or default_registry()), timeout=timeout, create=create))

    def add_owner(self, public_key: bytes | str, name: str = "") -> OwnerRecord:
        """Adds an owner by Ed25519 public key (32 bytes, or hex). One known already keeps the name it has."""
        record = checked(OwnerRecord, public_key=public_hex(public_key), name=name)
        with self._database.writing() as session:
            if not insert(session, OwnerRow, record):
                known = OwnerRow.public_key == record.public_key
                if name:
                    session.execute(update(OwnerRow).where(known, OwnerRow.name == "").values(name=name))
                record = read(OwnerRecord, session.scalars(select(OwnerRow).where(known)).one())
        return record

    def add_model(
        self, sha256: str, *, name: str = "", input_shape: tuple[int, ...], classes: int, notes: str = ""
    ) -> ModelRecord:
        """Adds a model by its file's digest. One known already keeps its name and notes.

        Raises:
            EvidenceError: it is known with another input shape or class count.
        """
        record = checked(ModelRecord, sha256=sha256, name=name, input_shape=input_shape, classes=classes, notes=notes)
        with self._database.writing() as session:
            if not insert(session, ModelRow, record):
                known = read(ModelRecord, session.scalars(select(ModelRow).where(ModelRow.sha256 == sha256)).one())
                if (known.input_shape, known.classes) != (record.input_shape, record.classes):
                    raise EvidenceError(
                        f"model {sha256[:12]} is registered with input {known.input_shape} and {known.classes} "
                        f"classes, not {record.input_shape} and {record.classes}"
                    )
                record = known
        return record

    def add_commitment(
        self,
        signed_commitment_json: str,
        mark_id: str,
        owner_public_key: bytes | str,
        model_sha256: str,
        *,
        stamp: bytes | None = None,
    ) -> CommitmentRecord:
        """Adds a commitment of an owner and a model that are registered; the same one again changes nothing.

        Args:
            stamp: the RFC 3161 time-stamp token, DER.

        Raises:
            EvidenceError: owner or model unknown, not JSON, or the mark is committed to something else.
        """
        require_object(signed_commitment_json)
        record = checked(
            CommitmentRecord,
            mark_id=mark_id,
            owner=public_hex(owner_public_key),
            model_sha256=model_sha256,
            envelope=signed_commitment_json,
            stamp=None if stamp is None else base64.b64encode(stamp).decode(),
        )
        with self._database.writing() as session:
            for known, what, call in (
                (OwnerRow.public_key == record.owner, f"owner {record.owner[:12]}", "add_owner"),
                (ModelRow.sha256 == model_sha256, f"model {model_sha256[:12]}", "add_model"),
            ):
                if not session.scalar(select(func.count()).where(known)):
                    raise EvidenceError(f"{what} is not in the registry; add it first ({call})")
            if not insert(session, CommitmentRow, record):
                known_one = commitment_of(session, mark_id)
                if known_one.model_copy(update={"recorded": record.recorded, "stamp": record.stamp}) != record:
                    raise EvidenceError(f"mark {mark_id} has another commitment already; a mark is committed to once")
                if record.stamp is not None:
                    set_stamp(session, mark_id, record.stamp)
                record = commitment_of(session, mark_id)
        return record

    def add_stamp(self, mark_id: str, stamp: bytes) -> CommitmentRecord:
        """Adds the time stamp of a commitment that has none.

        Raises:
            EvidenceError: no such commitment, or it has another stamp.
        """
        with self._database.writing() as session:
            set_stamp(session, mark_id, base64.b64encode(stamp).decode())
            return commitment_of(session, mark_id)

    def spend_batch(self, mark_id: str, index: int, suspect: str) -> SpentBatch:
        """Uses up a disclosure batch: of all who try at once, one succeeds.

        Raises:
            EvidenceError: it is spent already; says when and on whom.
        """
        record = checked(SpentBatch, mark_id=mark_id, batch=index, suspect=suspect)
        with self._database.writing() as session:
            if not insert(session, SpentRow, record):
                first = session.scalars(select(SpentRow).filter_by(mark_id=mark_id, batch=index)).one()
                raise EvidenceError(
                    f"batch {index} of mark {mark_id} is spent: it was disclosed for {first.suspect} on "
                    f"{first.recorded:%Y-%m-%d %H:%M} UTC; use another batch"
                )
        return record

    def record_verification(self, mark_id: str, suspect: str, claim: Result | Mapping[str, Any]) -> VerificationRecord:
        """Records an attempt to find a mark, also one that failed; `claim` has hits, trials, p_value, verified."""
        fields = chosen(claim, "hits", "trials", "p_value", "verified")
        return self._record(VerificationRow, VerificationRecord, mark_id=mark_id, suspect=suspect, **fields)

    def record_verdict(self, model_sha256: str, verdict: Result | Mapping[str, Any]) -> VerdictRecord:
        """Records a scan's verdict on a model; `verdict` has flagged and p_value."""
        return self._record(
            VerdictRow, VerdictRecord, model_sha256=model_sha256, **chosen(verdict, "flagged", "p_value")
        )

    def record_seal_check(self, seal_id: str, suspect: str, check: Result | Mapping[str, Any]) -> SealCheckRecord:
        """Records a check of a seal; `check` has intact."""
        return self._record(SealCheckRow, SealCheckRecord, seal_id=seal_id, suspect=suspect, **chosen(check, "intact"))

    def _record(self, table: type[Base], kind: type[_Record], **fields: Any) -> _Record:
        record = checked(kind, **fields)
        with self._database.writing() as session:
            insert(session, table, record)
        return record
