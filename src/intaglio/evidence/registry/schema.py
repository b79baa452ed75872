"""The version of a registry's tables: read, compared with what this intaglio knows, and brought up to date."""

import functools
import threading

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from intaglio.errors import EvidenceError
from intaglio.evidence.registry.models import Base

#: Not alembic's usual name: another application in the same PostgreSQL database may use that one.
VERSION_TABLE = "intaglio_registry_version"
#: PostgreSQL advisory lock under which tables are made: any number that others are unlikely to use.
_LOCK = 0x1A7A6710
#: alembic keeps the migration in progress in module globals.
_one_at_a_time = threading.Lock()


def newest_version() -> str:
    """The version of the tables in `models.py`."""
    return _versions()[0]


def version_of(connection: Connection, name: str) -> str | None:
    """The version of a database's tables; None where it holds no registry.

    Raises:
        EvidenceError: the tables are from a newer intaglio, or their version is damaged.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    heads = context.get_current_heads()
    if not heads:
        return None
    if unknown := set(heads) - set(_versions()):
        raise EvidenceError(
            f"{name}: written by a newer intaglio (tables of version {min(unknown)!r}, this one knows up to "
            f"{newest_version()!r}); upgrade intaglio"
        )
    if len(heads) > 1:
        raise EvidenceError(f"{name}: damaged, it has tables of {len(heads)} versions; restore it from a copy")
    return heads[0]


def upgrade(connection: Connection, name: str) -> None:
    """Makes the tables, or brings them up to date, within the connection's transaction.

    Raises:
        EvidenceError: the database is newer, damaged, or belongs to another application.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    if version_of(connection, name) is None:
        tables = set(inspect(connection).get_table_names()) - {VERSION_TABLE}
        # A SQLite file belongs to one application; a PostgreSQL database may be shared.
        foreign = tables if connection.dialect.name == "sqlite" else tables & Base.metadata.tables.keys()
        if foreign:
            raise EvidenceError(
                f"{name}: not a registry, it holds another application's table '{min(foreign)}'; choose another place"
            )
    with _one_at_a_time:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@functools.cache
def _versions() -> tuple[str, ...]:
    """All known versions, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", f"{__package__}:migrations")
    return config
