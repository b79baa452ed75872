"""Where a registry is: a file or a URL; and how to name it without showing a password."""

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from intaglio.errors import EvidenceError

_VARIABLE = "INTAGLIO_REGISTRY"
_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg"}
_SQLITE = {"sqlite", "sqlite+pysqlite"}
_FORMS = "give a file, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
#: What a URL's query can hold that must not be shown.
_SECRETS = ("password", "sslpassword", "passfile", "sslkey")


@dataclass(frozen=True)
class Location:
    """A database. `name` is for people; `path` is the file of a SQLite database; `secrets` never appear in messages."""

    url: URL
    name: str
    path: Path | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def scrub(self, text: str) -> str:
        """`text` on one line, short, without secrets."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else text[:297] + "..."


def default_registry() -> str:
    """$INTAGLIO_REGISTRY (a file or a URL), or else registry.sqlite in the user's data folder.

    Raises:
        EvidenceError: the user has no home folder.
    """
    if named := os.environ.get(_VARIABLE):
        return named
    try:
        return str(_data_home() / "intaglio" / "registry.sqlite")
    except RuntimeError as error:
        raise EvidenceError(f"there is no home folder for the registry; set {_VARIABLE}") from error


def _data_home() -> Path:
    # The XDG rule: a relative path is to be ignored.
    chosen = Path(os.environ.get("XDG_DATA_HOME", ""))
    if chosen.is_absolute():
        return chosen
    system = platform.system()
    if system == "Darwin":
        return Path.home() / "Library" / "Application Support"
    if system == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".local" / "share"


def locate(place: str | Path) -> Location:
    """Reads a path or a URL.

    Raises:
        EvidenceError: an unknown kind of database, or a URL that can't be read; it is never shown.
    """
    if isinstance(place, Path) or "://" not in place:
        return _file(Path(place))
    scheme, rest = place.split("://", 1)
    if scheme not in _SQLITE | _POSTGRES:
        raise EvidenceError(f"registries are kept in SQLite or PostgreSQL, not in {_word(scheme)}: {_FORMS}")
    if scheme in _POSTGRES and rest.split("?", 1)[0].count("@") > 1:  # the rest of the password would pass for a host
        raise EvidenceError("the registry's URL holds more than one @; write an @ in a password as %40")
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):  # not chained: their messages may quote the URL
        raise EvidenceError(f"the registry's URL can't be read: {_FORMS}") from None
    return _file_url(url) if scheme in _SQLITE else _postgres(url)


def _file(path: Path) -> Location:
    if "\0" in str(path):
        raise EvidenceError("the registry's path can't be used: it holds a zero byte")
    try:
        absolute = path.expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user, no working folder
        raise EvidenceError(f"the registry's path can't be used: {error}") from error
    return Location(URL.create("sqlite+pysqlite", database=str(absolute)), str(path), absolute)


def _file_url(url: URL) -> Location:
    if not url.database or url.database == ":memory:" or url.query or url.host:
        raise EvidenceError("a registry in SQLite is a file, without host or options: sqlite:///FILE")
    return _file(Path(url.database))


def _postgres(url: URL) -> Location:
    url = url.set(drivername="postgresql+psycopg")
    values = [url.password, *(value for name in _SECRETS for value in _all(url.query.get(name, ())))]
    plain = [str(value) for value in values if value]
    secrets = {form for value in plain for form in (value, quote(value, safe=""), quote_plus(value), quote(value))}
    shown = URL.create(url.drivername, username=url.username, host=url.host, port=url.port, database=url.database)
    return Location(url, str(shown), secrets=tuple(secrets))


def _all(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _word(scheme: str) -> str:
    return f"'{scheme}'" if re.fullmatch(r"[\w+]{1,40}", scheme) else "that"
