"""Locks: a model that gives right answers to authorised users only."""

from intaglio.lock.checking import LeakTable, check_lock
from intaglio.lock.container import read_container, write_container
from intaglio.lock.key_export import ExportedKey, export_key
from intaglio.lock.lock import Lock
from intaglio.lock.locking import train_lock
from intaglio.lock.mending import refine_lock
from intaglio.lock.picture import lock_picture
from intaglio.lock.settings import LockSettings
from intaglio.lock.tracing import Match, Trace

__all__ = [
    "ExportedKey",
    "LeakTable",
    "Lock",
    "LockSettings",
    "Match",
    "Trace",
    "check_lock",
    "export_key",
    "lock_picture",
    "read_container",
    "refine_lock",
    "train_lock",
    "write_container",
]
