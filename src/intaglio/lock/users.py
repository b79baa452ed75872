"""Who was given a key: a list beside the lock, authenticated with the owner's key. It holds names, no secrets."""

import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from intaglio.errors import DataError, KeyFileError
from intaglio.evidence.key import Key
from intaglio.files import write_json
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

    Every change is written at once where a path is given; without one the store lives in memory.

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
        self._path = path
        self._users: dict[str, User] = {} if path is None else self._read(path)

    def __iter__(self) -> Iterator[tuple[str, User]]:
        return iter(self._users.items())

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, name: str) -> bool:
        return name in self._users

    @property
    def names(self) -> tuple[str, ...]:
        """Everyone who was ever issued a key: a revoked user's pictures are still traced."""
        return tuple(self._users)

    def to_json(self) -> str:
        """Names with dates, as JSON."""
        return json.dumps(self._plain(), indent=1) + "\n"

    def issue(self, name: str) -> User:
        """Adds a user.

        Raises:
            DataError: not a name, or one that is taken or revoked.
        """
        if (known := self._users.get(checked_name(name))) is not None:
            state = "was revoked, and a name is never issued twice" if known.revoked else "has a key already"
            raise DataError(f"user '{name}' {state}")
        return self._put(name, User(issued=_now()))

    def revoke(self, name: str) -> User:
        """Marks a user's key as no longer to be served.

        Raises:
            DataError: no such user, or revoked before.
        """
        return self._put(name, User(issued=self.active(name).issued, revoked=_now()))

    def active(self, name: str) -> User:
        """The user, if there is one of this name who was not revoked.

        Raises:
            DataError: there is none.
        """
        known = self._users.get(name)
        if known is None:
            raise DataError(f"no key was issued to user '{name}': issue one first")
        if known.revoked is not None:
            raise DataError(f"the key of user '{name}' was revoked on {known.revoked:%Y-%m-%d}")
        return known

    def attach(self, path: Path) -> None:
        """Writes the list to `path`, now and after every change."""
        self._path = path
        self._write()

    def _put(self, name: str, user: User) -> User:
        self._users[name] = user
        self._write()
        return user

    def _write(self) -> None:
        if self._path is not None:
            users = self._plain()
            write_json(self._path, {"format": _FORMAT, "users": users, "mac": self._mac(users)})

    def _plain(self) -> dict[str, dict[str, str]]:
        return {name: user.model_dump(mode="json", exclude_none=True) for name, user in self._users.items()}

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
            raise DataError(f"{path}: the list of users can't be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
            raise DataError(f"{path}: not a lock's list of users, or damaged") from error
        if not hmac.compare_digest(mac.encode(), self._mac(users).encode()):
            raise KeyFileError(f"{path}: was changed, or belongs to another key or lock")
        return known


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
