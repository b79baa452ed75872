"""Everything that happened to a mark, a seal, a model, an owner or a suspect, in the order it was recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

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
from intaglio.evidence.registry.records import HistoryEntry


@dataclass(frozen=True)
class _Kind:
    """How one table's rows read in the history. An entry is found by its identity, its suspect or `others`."""

    table: type[Base]
    event: Literal["owner", "model", "commitment", "spent", "verification", "verdict", "seal check"]
    identity: str
    statement: Callable[[Any], str]
    others: tuple[str, ...] = ()

    def entry(self, row: Base) -> HistoryEntry:
        return HistoryEntry(
            recorded=row.recorded,
            event=self.event,
            identity=getattr(row, self.identity),
            suspect=getattr(row, "suspect", None),
            statement=self.statement(row),
        )


def _attempt(row: VerificationRow) -> str:
    word = "verified" if row.verified else "not verified"
    return f"{word}: {row.hits} of {row.trials} triggers, p = {row.p_value:.3g}"


def _verdict(row: VerdictRow) -> str:
    return f"{'flagged' if row.flagged else 'not flagged'}, p = {row.p_value:.3g}"


_KINDS = (
    _Kind(OwnerRow, "owner", "public_key", lambda row: row.name or "without a name"),
    _Kind(ModelRow, "model", "sha256", lambda row: row.name or "without a name"),
    _Kind(
        CommitmentRow,
        "commitment",
        "mark_id",
        lambda row: f"on model {row.model_sha256[:12]} by owner {row.owner[:12]}",
        ("owner", "model_sha256"),
    ),
    _Kind(SpentRow, "spent", "mark_id", lambda row: f"batch {row.batch}", ("suspect",)),
    _Kind(VerificationRow, "verification", "mark_id", _attempt, ("suspect",)),
    _Kind(VerdictRow, "verdict", "model_sha256", _verdict),
    _Kind(SealCheckRow, "seal check", "seal_id", lambda row: "intact" if row.intact else "tampered", ("suspect",)),
)
#: Events recorded within the same microsecond keep the order of `_KINDS`.
_ORDER = {kind.event: place for place, kind in enumerate(_KINDS)}


def read_history(session: Session, identity: str | None, limit: int | None) -> tuple[HistoryEntry, ...]:
    """The newest `limit` entries, oldest first; only those that concern `identity`, where it is given."""
    entries: list[HistoryEntry] = []
    for kind in _KINDS:
        chosen = select(kind.table).order_by(kind.table.id.desc()).limit(limit)
        if identity is not None:
            columns = (kind.identity, *kind.others)
            chosen = chosen.where(or_(*(getattr(kind.table, column) == identity for column in columns)))
        entries += [kind.entry(row) for row in reversed(session.scalars(chosen).all())]
    entries.sort(key=lambda entry: (entry.recorded, _ORDER[entry.event]))
    return tuple(entries[max(0, len(entries) - limit) :] if limit is not None else entries)
