"""Places where no registry can be: one clear error each, and never a password."""

import os
import platform
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.errors import EvidenceError, IntaglioError, StorageError
from intaglio.evidence.registry import Registry, default_registry
from intaglio.evidence.registry.location import locate

# --- where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("Linux", {}, "HOME/.local/share/intaglio/registry.sqlite"),
        ("Linux", {"XDG_DATA_HOME": "/data"}, "/data/intaglio/registry.sqlite"),
        ("Linux", {"XDG_DATA_HOME": "relative"}, "HOME/.local/share/intaglio/registry.sqlite"),
        ("Linux", {"XDG_DATA_HOME": "/data", "INTAGLIO_REGISTRY": "sqlite:////a"}, "sqlite:////a"),
        ("Darwin", {}, "HOME/Library/Application Support/intaglio/registry.sqlite"),
        ("Windows", {}, "HOME/AppData/Local/intaglio/registry.sqlite"),
        ("Windows", {"LOCALAPPDATA": "/local"}, "/local/intaglio/registry.sqlite"),
    ],
)
def test_the_default_place(
    system: str, variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_DATA_HOME", "INTAGLIO_REGISTRY", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: system)
    assert default_registry() == expected.replace("HOME", str(tmp_path))


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    for name in ("XDG_DATA_HOME", "INTAGLIO_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EvidenceError, match="no home folder for the registry; set INTAGLIO_REGISTRY"):
        default_registry()


def test_open_makes_the_default_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTAGLIO_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(EvidenceError, match="there is no registry yet; `intaglio registry upgrade` makes one"):
        Registry.open(create=False)
    assert not (tmp_path / "data").exists()
    with Registry.open() as registry:
        assert registry.name == str(tmp_path / "data/intaglio/registry.sqlite")
    assert [path.name for path in (tmp_path / "data/intaglio").iterdir()] == ["registry.sqlite"]
    assert (tmp_path / "data/intaglio").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["plain.sqlite", "with space?.db", "café%20#@.db", "file:x?mode=memory"])
def test_a_path_and_its_url_are_one_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Registry.open(name) as registry:
        registry.spend_batch("mark", 0, "a")
    url = f"sqlite:///{quote(str(tmp_path / name))}"
    for place in (tmp_path / name, str(tmp_path / name), url):
        with Registry.open(place, create=False) as registry:
            assert registry.next_batch("mark", 2) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- where it can't be -----------------------------------------------------------------------------------------------


def not_a_database(folder: Path) -> str:
    (folder / "r").write_text("This is not a database, but a letter. " * 50)
    return str(folder / "r")


def damaged(folder: Path) -> str:
    Registry.open(folder / "r").close()
    content = bytearray((folder / "r").read_bytes())
    content[100:] = bytes(len(content) - 100)
    (folder / "r").write_bytes(content)
    return str(folder / "r")


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "r")
    return str(folder / "r")


def below_a_file(folder: Path) -> str:
    (folder / "r").touch()
    return str(folder / "r" / "below")


def two_versions(folder: Path) -> str:
    Registry.open(folder / "r").close()
    with closing(sqlite3.connect(folder / "r")) as connection:
        connection.execute("CREATE TABLE versions AS SELECT '0001' AS version_num UNION SELECT '0002'")
        connection.execute("DROP TABLE intaglio_registry_version")
        connection.execute("ALTER TABLE versions RENAME TO intaglio_registry_version")
        connection.commit()
    return str(folder / "r")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (not_a_database, "not a registry, or damaged"),
        (damaged, "not a registry, or damaged"),
        (str, "is a folder; name a file in it"),
        (pipe, "not a regular file"),
        (lambda _: "/dev/null", "not a regular file"),
        (below_a_file, "can't open the registry|not a folder|Not a directory"),
        (lambda folder: f"{folder}/\0", "the registry's path can't be used"),
        (lambda folder: f"{folder}/{'x' * 300}", "File name too long"),
        (lambda _: "~nobody-of-this-name/r", "the registry's path can't be used"),
        (lambda _: "sqlite://", "a registry in SQLite is a file"),
        (lambda _: "sqlite:///:memory:", "a registry in SQLite is a file"),
        (lambda folder: f"sqlite:///{folder}/r?mode=ro", "a registry in SQLite is a file"),
        (lambda folder: f"sqlite://host/{folder}/r", "a registry in SQLite is a file"),
        (lambda _: "mysql://u:s3cret@h/db", "kept in SQLite or PostgreSQL, not in 'mysql': give a file"),
        (lambda _: "u:s3cret@h://x", "kept in SQLite or PostgreSQL, not in that"),
        (lambda _: "postgresql://u:p@s3cret@h/db", "more than one @; write an @ in a password as %40"),
        (lambda _: "postgresql://u:s3cret/db", "URL can't be read"),
        (lambda _: "postgresql://u:p@h:s3cret/db", "URL can't be read"),
        (lambda _: "postgresql+psycopg://u:s3cret@127.0.0.1:1/db", "registry can't be used: .*port 1 failed"),
    ],
)
def test_bad_places(place: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    with pytest.raises((EvidenceError, StorageError), match=message) as caught:
        Registry.open(place(tmp_path), timeout=0.05)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:  # nor does --debug show it
        assert "s3cret" not in str(error)
        error = error.__cause__


def test_tables_of_two_known_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.evidence.registry.schema._versions", lambda: ("0002", "0001"))
    with pytest.raises(EvidenceError, match="damaged, it has tables of 2 versions; restore it from a copy"):
        Registry.open(two_versions(tmp_path))


def test_postgres_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EvidenceError, match=r"PostgreSQL needs psycopg: pip install 'intaglio\[postgres\]'"):
        Registry.open("postgresql://u@127.0.0.1/db")


@given(password=st.text(min_size=1, max_size=20), query=st.booleans())
def test_no_message_shows_a_password(password: str, query: bool) -> None:
    """Whatever the driver says, even if it quotes the password as given or as written in the URL."""
    secret = "".join(character for character in f"s3cret{password}" if not "\ud800" <= character <= "\udfff")
    written = quote(secret, safe="")
    url = f"postgresql://u@h/db?password={written}" if query else f"postgresql://u:{written}@h:5/db"
    location = locate(url)
    assert location.name == f"postgresql+psycopg://u@h{'' if query else ':5'}/db"
    assert secret in location.secrets
    shown = location.scrub(f"connection to '{secret}'\n failed: {written} {'x' * 400}")
    assert "s3cret" not in shown
    assert "\n" not in shown
    assert len(shown) <= 300


# --- what goes wrong later -------------------------------------------------------------------------------------------


def test_a_locked_file_that_is_not_yet_a_registry(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "r", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EvidenceError, match=r"r: locked by another program for more than 0.05 s; try again"):
            Registry.open(tmp_path / "r", timeout=0.05)
    Registry.open(tmp_path / "r").close()


def test_an_old_registry_is_read_while_it_cannot_be_written(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r") as registry:
        registry.spend_batch("mark", 0, "a")
    with closing(sqlite3.connect(tmp_path / "r")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM owners").fetchall()  # a reader: the log can't be switched on now
        with Registry.open(tmp_path / "r", timeout=0.05) as registry:
            assert registry.next_batch("mark", 2) == 1


@pytest.mark.parametrize(
    ("pragma", "kind", "message"),
    [
        ("PRAGMA query_only=1", StorageError, "can't write the registry .*: attempt to write a readonly database"),
        ("PRAGMA max_page_count=1", StorageError, "can't write the registry .*: database or disk is full"),
    ],
)
def test_a_disk_that_takes_no_more(pragma: str, kind: type[IntaglioError], message: str, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r") as registry:
        registry.spend_batch("mark", 0, "a")
        database = registry._database
        with database.reading() as session:
            session.connection().exec_driver_sql(pragma)
        with pytest.raises(kind, match=message):
            list(map(registry.spend_batch, ["mark"] * 200, range(1, 200), ["a" * 4000] * 200))
        assert registry.spent_batches()[0].batch == 0


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE seal_checks SET result = '{'", "the registry can't be used"),
        ("UPDATE seal_checks SET result = '[]'", "entry 1 of the registry's table seal_checks is damaged"),
        ("UPDATE seal_checks SET recorded = 'yesterday'", "the registry can't be used"),
        ("UPDATE seal_checks SET seal_id = ''", "entry 1 of the registry's table seal_checks is damaged"),
        ("DROP TABLE seal_checks", "the registry can't be used: no such table: seal_checks"),
    ],
)
def test_a_registry_that_was_edited(statement: str, message: str, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r") as registry:
        registry.record_seal_check("seal", "a", {"intact": True})
        with closing(sqlite3.connect(tmp_path / "r")) as connection:
            connection.execute(statement)
            connection.commit()
        with pytest.raises(EvidenceError, match=message):
            registry.seal_checks()
