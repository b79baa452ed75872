"""The registry's tables. Who changes one adds a revision in `migrations/versions`; a test compares the two.

Spent batches, verifications, verdicts and seal checks name marks, seals and suspects without a foreign key: whoever
verifies another's evidence holds no commitment of that mark.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, Dialect, Float, ForeignKey, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A moment, in UTC in every database; SQLite keeps no zone, so it is added on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; without its zone for SQLite."""
        moment = value and value.astimezone(UTC)
        return moment.replace(tzinfo=None) if moment and dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """An aware moment in UTC."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


class Base(DeclarativeBase):
    """What every table has: a number that grows with each entry, and the moment the entry was made."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime(),
        str: Text(),
        float: Float(53),
        dict[str, Any]: JSON(),
        list[int]: JSON(),
    }

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    recorded: Mapped[datetime]


class OwnerRow(Base):
    """An owner, by the public key in hex."""

    __tablename__ = "owners"

    public_key: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]


class ModelRow(Base):
    """A model file, by its digest."""

    __tablename__ = "models"

    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]
    input_shape: Mapped[list[int]]
    classes: Mapped[int] = mapped_column(Integer)
    notes: Mapped[str]


class CommitmentRow(Base):
    """A signed commitment, byte for byte as it was signed, and its time stamp in base64."""

    __tablename__ = "commitments"

    mark_id: Mapped[str] = mapped_column(String(200), unique=True)
    owner: Mapped[str] = mapped_column(String(64), ForeignKey("owners.public_key"), index=True)
    model_sha256: Mapped[str] = mapped_column(String(64), ForeignKey("models.sha256"), index=True)
    envelope: Mapped[str]
    stamp: Mapped[str | None]


class SpentRow(Base):
    """A batch of a mark's triggers that was disclosed; it proves nothing a second time."""

    __tablename__ = "spent_batches"
    __table_args__ = (UniqueConstraint("mark_id", "batch"),)

    mark_id: Mapped[str] = mapped_column(String(200))
    batch: Mapped[int] = mapped_column(Integer)
    suspect: Mapped[str]


class VerificationRow(Base):
    """One attempt to find a mark in a suspect, successful or not: corrections count them all."""

    __tablename__ = "verifications"

    mark_id: Mapped[str] = mapped_column(String(200), index=True)
    suspect: Mapped[str]
    hits: Mapped[int] = mapped_column(Integer)
    trials: Mapped[int] = mapped_column(Integer)
    p_value: Mapped[float]
    verified: Mapped[bool]
    result: Mapped[dict[str, Any]]


class VerdictRow(Base):
    """What a scan said of a model."""

    __tablename__ = "verdicts"

    model_sha256: Mapped[str] = mapped_column(String(64), index=True)
    flagged: Mapped[bool]
    p_value: Mapped[float]
    result: Mapped[dict[str, Any]]


class SealCheckRow(Base):
    """Whether a seal was found intact on a suspect."""

    __tablename__ = "seal_checks"

    seal_id: Mapped[str] = mapped_column(String(200), index=True)
    suspect: Mapped[str]
    intact: Mapped[bool]
    result: Mapped[dict[str, Any]]
