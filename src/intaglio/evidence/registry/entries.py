"""Records into rows and rows into records; what a session is asked more than once."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from sqlalchemy import CursorResult, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from intaglio.errors import EvidenceError
from intaglio.evidence.registry.models import Base, CommitmentRow
from intaglio.evidence.registry.records import CommitmentRecord, Recorded
from intaglio.results import Result

_Record = TypeVar("_Record", bound=Recorded)


def checked(kind: type[_Record], **fields: Any) -> _Record:
    """A record of this moment.

    Raises:
        EvidenceError: a field makes no sense; it is named.
    """
    try:
        return kind(recorded=datetime.now(UTC), **fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise EvidenceError(f"can't be recorded: {where + ': ' if where else ''}{problem}") from error


def chosen(result: Result | Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The named fields of a result, and all of it as plain JSON under "result".

    Raises:
        EvidenceError: a field is missing, or it holds what JSON can't, such as NaN.
    """
    fields = result.to_dict() if isinstance(result, Result) else dict(result)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(fields, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise EvidenceError(f"a result that is not JSON can't be recorded: {error}") from error
    if missing := [name for name in names if name not in plain]:
        raise EvidenceError(f"a result without '{missing[0]}' can't be recorded")
    return {name: plain[name] for name in names} | {"result": plain}


def require_object(text: str) -> None:
    """Refuses what is not a JSON object.

    Raises:
        EvidenceError: it isn't one.
    """
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise EvidenceError(f"a commitment is a JSON object; this is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise EvidenceError("a commitment is a JSON object; this is another kind of JSON")


def public_hex(public_key: bytes | str) -> str:
    """A public key as the registry holds it: lower-case hex."""
    return public_key.hex() if isinstance(public_key, bytes) else public_key.lower()


def read(kind: type[_Record], row: Base) -> _Record:
    """The record of a row.

    Raises:
        EvidenceError: the database was edited and holds what can't be.
    """
    try:
        return kind.model_validate({field: getattr(row, field) for field in kind.model_fields})
    except ValidationError as error:
        raise EvidenceError(
            f"entry {row.id} of the registry's table {row.__tablename__} is damaged: {error.errors()[0]['msg']}"
        ) from error


def insert(session: Session, table: type[Base], record: Result) -> bool:
    """Adds a row; False, and nothing done, where a unique column has the value already."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(record.model_dump()).on_conflict_do_nothing()
    # Of an insert SQLAlchemy counts the rows on request only; PostgreSQL's driver would answer -1.
    result = session.execute(statement.execution_options(preserve_rowcount=True))
    return cast("CursorResult[Any]", result).rowcount == 1


def commitment_of(session: Session, mark_id: str) -> CommitmentRecord:
    """The commitment of a mark that has one."""
    return read(CommitmentRecord, session.scalars(select(CommitmentRow).filter_by(mark_id=mark_id)).one())


def set_stamp(session: Session, mark_id: str, stamp: str) -> None:
    """Stamps a commitment that has no stamp yet.

    Raises:
        EvidenceError: no such commitment, or it has another stamp.
    """
    row = session.scalars(select(CommitmentRow).filter_by(mark_id=mark_id).with_for_update()).one_or_none()
    if row is None:
        raise EvidenceError(f"mark {mark_id} has no commitment in the registry")
    if row.stamp not in (None, stamp):
        raise EvidenceError(f"the commitment of mark {mark_id} has another time stamp already; the first one counts")
    row.stamp = stamp
