"""The list of users: what may be done in which order, and that nobody changes it without the owner's key."""

import json
from pathlib import Path

import pytest

from intaglio.errors import DataError, KeyFileError
from intaglio.lock.users import UserStore
from lock_models import OWNER, STRANGER


def store(path: Path, lock_id: str = "a") -> UserStore:
    return UserStore(OWNER, lock_id, path)


def new_store(path: Path) -> UserStore:
    users = UserStore(OWNER, "a")
    users.attach(path)
    return users


def test_a_list_lives_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    users = new_store(path)
    assert not len(store(path))
    users.issue("alice")
    users.issue("Bob Ö.")
    users.revoke("alice")
    again = store(path)
    assert again.names == ("alice", "Bob Ö.")
    assert (len(again), "alice" in again, "carol" in again) == (2, True, False)
    (_, alice), (_, bob) = again
    assert alice.revoked is not None
    assert alice.revoked >= alice.issued
    assert bob.revoked is None
    assert again.active("Bob Ö.") == bob
    assert again.to_json() == users.to_json()
    assert json.loads(again.to_json()).keys() == {"alice", "Bob Ö."}


def test_without_a_file_it_lives_in_memory_until_it_is_given_one(tmp_path: Path) -> None:
    users = UserStore(OWNER, "a")
    users.issue("alice")
    users.attach(tmp_path / "new" / "users.json")
    users.issue("bob")
    assert store(tmp_path / "new" / "users.json").names == ("alice", "bob")


@pytest.mark.parametrize(
    ("action", "name", "message"),
    [
        ("issue", "alice", "'alice' has a key already"),
        ("issue", "eve", "'eve' was revoked, and a name is never issued twice"),
        ("issue", "", "a user's name"),
        ("revoke", "nobody", "no key was issued to user 'nobody': issue one first"),
        ("revoke", "eve", r"the key of user 'eve' was revoked on \d{4}-\d\d-\d\d"),
        ("active", "eve", "was revoked"),
        ("active", "nobody", "no key was issued"),
    ],
)
def test_what_is_refused(action: str, name: str, message: str) -> None:
    users = UserStore(OWNER, "a")
    users.issue("alice")
    users.issue("eve")
    users.revoke("eve")
    with pytest.raises(DataError, match=message):
        getattr(users, action)(name)
    assert users.names == ("alice", "eve")


def test_a_changed_list_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    users = new_store(path)
    users.issue("alice")
    users.revoke("alice")
    content = json.loads(path.read_text())
    del content["users"]["alice"]["revoked"]
    path.write_text(json.dumps(content))
    with pytest.raises(KeyFileError, match="was changed, or belongs to another key or lock"):
        store(path)


def test_another_keys_or_locks_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    new_store(path).issue("alice")
    for key, lock_id in ((STRANGER, "a"), (OWNER, "b")):
        with pytest.raises(KeyFileError, match="belongs to another key or lock"):
            UserStore(key, lock_id, path)


def test_a_list_that_is_gone_is_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    users = new_store(path)
    users.issue("alice")
    users.revoke("alice")
    path.unlink()
    with pytest.raises(DataError, match="the list of users can't be read: No such file"):
        store(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"format": "intaglio-lock-users/1"}', "damaged"),
        ('{"format": "intaglio-lock-users/1", "users": [], "mac": ""}', "damaged"),
        ('{"format": "intaglio-lock-users/1", "users": {"a": {"issued": "never"}}, "mac": ""}', "damaged"),
        ('{"format": "intaglio-lock-users/9", "users": {}, "mac": ""}', "not a list of the form"),
        ('{"format": "intaglio-lock-users/1", "users": {}, "mac": "é"}', None),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, content: str, message: str | None) -> None:
    (tmp_path / "users.json").write_text(content)
    with pytest.raises(DataError if message else KeyFileError, match=message or "was changed"):
        store(tmp_path / "users.json")


def test_a_folder_or_a_huge_file_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        store(tmp_path)
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate((1 << 26) + 1)
    with pytest.raises(DataError, match="larger than any list"):
        store(tmp_path / "huge")
