"""The registry: who owns which mark on which model, which evidence is spent, and what was tried on whom.

One SQLite file, or a PostgreSQL database by URL. Nothing in it is secret: the keys stay in their own files.
"""

from intaglio.evidence.registry.location import default_registry
from intaglio.evidence.registry.records import (
    CommitmentRecord,
    HistoryEntry,
    ModelRecord,
    OwnerRecord,
    RegistrySummary,
    SealCheckRecord,
    SpentBatch,
    VerdictRecord,
    VerificationRecord,
)
from intaglio.evidence.registry.registry import Registry

__all__ = [
    "CommitmentRecord",
    "HistoryEntry",
    "ModelRecord",
    "OwnerRecord",
    "Registry",
    "RegistrySummary",
    "SealCheckRecord",
    "SpentBatch",
    "VerdictRecord",
    "VerificationRecord",
    "default_registry",
]
