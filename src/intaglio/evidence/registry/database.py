"""A connection to SQLite or PostgreSQL: transactions that never wait for ever, and errors that fit on one line.

SQLite: write-ahead log, so that readers and a writer don't wait for each other; each writing transaction takes the
write lock at its start (BEGIN IMMEDIATE), because one that starts as a reader can be refused when it turns to writing.
"""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from intaglio.errors import EvidenceError, IntaglioError, StorageError
from intaglio.evidence.registry import schema
from intaglio.evidence.registry.location import Location

_POSTGRES_LOCKED = {"55P03", "57014", "40P01"}  # lock not available, cancelled by a time-out, deadlock
_POSTGRES_FULL = {"53100", "25006"}  # disk full, read-only


class Database:
    """An open registry database with tables of the newest version.

    Args:
        timeout: seconds to wait for a lock or for the server.
        create: whether to make the file or the tables if there are none.

    Raises:
        EvidenceError: missing, unreadable, not a registry, from a newer version, or locked.
        StorageError: it can't be written.
    """

    def __init__(self, location: Location, *, timeout: float, create: bool) -> None:
        self.location = location
        self.name = location.name
        self._timeout = timeout
        self._closed = False
        _check_file(location, create)
        try:
            self._engine = self._connect()
            self._writer = self._engine.execution_options(writing=True)
        except ImportError as error:
            raise EvidenceError(
                f"{self.name}: PostgreSQL needs psycopg: pip install 'intaglio[postgres]' ({error})"
            ) from error
        try:
            self._prepare(create)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all connections; the database can't be used again."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One transaction that reads."""
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction that writes: all of it is kept on leaving, or nothing on an error."""
        with self._explained(), Session(self._writer) as session, session.begin():
            yield session

    def _connect(self) -> Engine:
        if self.location.path is not None:
            engine = create_engine(
                self.location.url, connect_args={"timeout": self._timeout}, pool_timeout=self._timeout
            )
            event.listen(engine, "connect", _own_transactions)
            event.listen(engine, "begin", _begin)
            return engine
        engine = create_engine(
            self.location.url,
            connect_args={"connect_timeout": max(2, math.ceil(self._timeout))},  # libpq waits for 2 s at the least
            pool_timeout=self._timeout,
            pool_pre_ping=True,
        )
        milliseconds = max(1, round(self._timeout * 1000))

        def limit_waiting(connection: Connection) -> None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")

        event.listen(engine, "begin", limit_waiting)
        return engine

    def _prepare(self, create: bool) -> None:
        with self.reading() as session:
            version = schema.version_of(session.connection(), self.name)
        if version is None and not create:
            raise EvidenceError(f"{self.name}: holds no registry yet; `intaglio registry upgrade` makes one")
        if version != schema.newest_version():
            with self.writing() as session:
                schema.upgrade(session.connection(), self.name)
        if self.location.path is not None:
            # Comfort, not safety: where it can't be had (a read-only or a network disk), readers wait for writers.
            with self._explained(), closing(self._engine.raw_connection()) as connection, suppress(sqlite3.Error):
                connection.cursor().execute("PRAGMA journal_mode=WAL")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        if self._closed:
            raise EvidenceError(f"{self.name}: this registry was closed; open it again")
        try:
            yield
        except (SQLAlchemyError, ValueError) as error:  # ValueError: a cell that holds neither a date nor JSON
            leaks = any(secret in str(error) for secret in self.location.secrets)
            raise self._explain(error) from (None if leaks else error)

    def _explain(self, error: Exception) -> IntaglioError:
        cause = getattr(error, "orig", None) or error
        reason = self.location.scrub(str(cause))
        code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""
        locked = code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or code in _POSTGRES_LOCKED
        if locked or isinstance(error, PoolTimeout):
            return EvidenceError(
                f"{self.name}: locked by another program for more than {self._timeout:g} s; try again when it has ended"
            )
        if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return EvidenceError(f"{self.name}: not a registry, or damaged ({reason})")
        if code.startswith(("SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR")) or code in _POSTGRES_FULL:
            return StorageError(f"can't write the registry {self.name}: {reason}")
        return EvidenceError(f"{self.name}: the registry can't be used: {reason}")


def _check_file(location: Location, create: bool) -> None:
    path = location.path
    if path is None:
        return
    try:
        if path.is_dir():
            raise EvidenceError(f"{location.name}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise EvidenceError(f"{location.name}: not a regular file")
        if not path.exists() and not create:
            raise EvidenceError(f"{location.name}: there is no registry yet; `intaglio registry upgrade` makes one")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't open the registry {location.name}: {error.strerror or error}") from error


def _own_transactions(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # Python's sqlite3 would begin transactions when it sees fit
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
