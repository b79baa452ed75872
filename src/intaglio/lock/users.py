"""Who was given a key: a list beside the lock, authenticated with the owner's key. It holds names, no secrets.

Several processes may have a lock open: one serves users while the owner revokes one in another. So the list is looked
up where it lies, one process at a time changes what it says at that moment, and nobody is ever taken off. What was
changed is found out, but not an old list that is put back in its place while no process has it open: whoever can write
the owner's folder can have a revoked user served again, and somebody who was issued a key since not looked for.
"""

import hmac
import json
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from intaglio.errors import DataError, KeyFileError
from intaglio.evidence.key import Key
from intaglio.files import holding, write_json
from intaglio.lock.codes import checked_name

_FORMAT = "intaglio-lock-users/1"
_CONTEXT = "lock/users"
_SIZE_LIMIT = 1 << 26


class User(BaseModel):
    """When a user was issued a key, and when it was revoked, if it was (UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issued: datetime
    revoked: datetime | None = None


class UserStore:
    """The users of one lock, in the order they were issued keys.

    Where a path is given, every change is written at once, and what others wrote there is seen at the next look-up;
    without one the store lives in memory. Whatever is asked of it can raise what opening it can.

    Args:
        key: the owner's; authenticates the file.
        lock_id: which lock the users belong to.
        path: the file; it has to be there, for who was revoked must not be forgotten with it.

    Raises:
        DataError: a file that is missing, or is no such list.
        KeyFileError: a list that was changed, or is another key's or another lock's.
    """

    def __init__(self, key: Key, lock_id: str, path: Path | None = None) -> None:
        self._key = key
        self._lock_id = lock_id
        self._path = None if path is None else path.absolute()  # a service may change its working folder
        self._users: dict[str, User] = {}
        self._seen: tuple[int, int] | None = None  # the file's stamp when it was last read
        self._threads = threading.RLock()
        self._newest()

    def __iter__(self) -> Iterator[tuple[str, User]]:
        return iter(self._newest().items())

    def __len__(self) -> int:
        return len(self._newest())

    def __contains__(self, name: str) -> bool:
        return name in self._newest()

    @property
    def names(self) -> tuple[str, ...]:
        """Everyone who was ever issued a key: a revoked user's pictures are still traced."""
        return tuple(self._newest())

    def to_json(self) -> str:
        """Names with dates, as JSON."""
        return json.dumps(_plain(self._newest()), indent=1) + "\n"

    def issue(self, name: str) -> User:
        """Adds a user.

        Raises:
            DataError: not a name, or one that is taken or revoked.
            StorageError: the list can't be written.
        """
        with self._changing() as users:
            if (known := users.get(name)) is not None:
                state = "was revoked, and a name is never issued twice" if known.revoked else "has a key already"
                raise DataError(f"user '{name}' {state}")
            return self._add(name)

    def admit(self, name: str) -> User:
        """The user; one who was never named before is issued a key.

        Raises:
            DataError: not a name, or a revoked user.
            StorageError: the list can't be written.
        """
        if name not in self:
            with self._changing() as users:
                if name not in users:  # nor was issued one by another process just now
                    return self._add(name)
        return self.active(name)

    def revoke(self, name: str) -> User:
        """Marks a user's key as no longer to be served.

        Raises:
            DataError: no such user, or revoked before.
            StorageError: the list can't be written.
        """
        with self._changing():
            return self._put(name, User(issued=self.active(name).issued, revoked=_now()))

    def active(self, name: str) -> User:
        """The user, if there is one of this name who was not revoked.

        Raises:
            DataError: there is none.
        """
        known = self._newest().get(name)
        if known is None:
            raise DataError(f"no key was issued to user '{name}': issue one first")
        if known.revoked is not None:
            raise DataError(f"the key of user '{name}' was revoked on {known.revoked:%Y-%m-%d}")
        return known

    def attach(self, path: Path, *, anew: bool = False) -> None:
        """Writes the list to `path`, now and after every change; whoever is on the list there stays on it.

        The caller is `holding` the folder.

        Args:
            anew: a list that is there is of a lock that is gone, and is replaced.

        Raises:
            DataError, KeyFileError: the list that is there is damaged, was changed, or is another lock's.
            StorageError: it can't be written.
        """
        path = path.absolute()
        with self._threads:
            users = self._users
            for kept in (self._path, None if anew else path):
                if kept is not None and kept.exists():  # one that was deleted is written again, as far as it is known
                    users = _joined(self._read(kept), users)
            self._write(path, users)
            self._path, self._users, self._seen = path, users, None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, User]]:
        """The newest list, which nobody else changes meanwhile."""
        if self._path is None:
            with self._threads:
                yield self._users
        else:
            with holding(self._path.parent), self._threads:  # in this order, as `Lock.save` has it
                yield self._newest()

    def _newest(self) -> dict[str, User]:
        """Everyone by now: the file is read again if anybody wrote it since."""
        with self._threads:
            if self._path is not None and (stamp := _stamp(self._path)) != self._seen:
                self._users = _joined(self._read(self._path), self._users)
                self._seen = stamp  # taken before reading: what is written in between is noticed the next time
            return self._users

    def _add(self, name: str) -> User:
        return self._put(_new_name(name), User(issued=_now()))

    def _put(self, name: str, user: User) -> User:
        users = {**self._users, name: user}
        if self._path is not None:
            self._write(self._path, users)
        self._users = users  # not before it is on disk
        return user

    def _write(self, path: Path, users: dict[str, User]) -> None:
        plain = _plain(users)
        write_json(path, {"format": _FORMAT, "users": plain, "mac": self._mac(plain)})

    def _mac(self, users: object) -> str:
        message = json.dumps([_FORMAT, self._lock_id, users], separators=(",", ":"))
        return self._key.mac(_CONTEXT, message.encode()).hex()

    def _read(self, path: Path) -> dict[str, User]:
        try:
            if path.stat().st_size > _SIZE_LIMIT:
                raise DataError(f"{path}: larger than any list of users")
            content = json.loads(path.read_bytes())
            users, mac = content["users"], str(content["mac"])
            if content["format"] != _FORMAT:
                raise DataError(f"{path}: not a list of the form {_FORMAT}")
            known = {str(name): User.model_validate(user) for name, user in users.items()}
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
            raise DataError(f"{path}: not a lock's list of users, or damaged") from error
        if not hmac.compare_digest(mac.encode(), self._mac(users).encode()):
            raise KeyFileError(f"{path}: was changed, or belongs to another key or lock")
        return known


def _stamp(path: Path) -> tuple[int, int]:
    """When a file was written, in ns, and its size in bytes: enough to tell lists apart, for they only ever grow.

    Raises:
        DataError: it is missing.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_mtime_ns, status.st_size


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: the list of users can't be read: {error.strerror or error}")


def _new_name(name: str) -> str:
    """A name whose accents are part of their letters: two that look alike would be two users with two codes."""
    if not unicodedata.is_normalized("NFC", checked_name(name)):
        raise DataError(
            f"a user's name has its accents in its letters (Unicode's form NFC), this one doesn't: {name!r}"
        )
    return name


def _plain(users: dict[str, User]) -> dict[str, dict[str, str]]:
    return {name: user.model_dump(mode="json", exclude_none=True) for name, user in users.items()}


def _joined(one: dict[str, User], other: dict[str, User]) -> dict[str, User]:
    """Everyone on either list, the first's before the rest; who was revoked on either is revoked."""
    found = dict(one)
    for name, user in other.items():
        if name not in found or (user.revoked is not None and found[name].revoked is None):
            found[name] = user
    return found


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
