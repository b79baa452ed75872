"""The list of users: what may be done in which order, and that nobody changes it without the owner's key."""

import errno
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from intaglio.errors import DataError, KeyFileError, StorageError
from intaglio.files import holding
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


def test_names_that_look_alike_are_one_user_or_refused() -> None:
    users = UserStore(OWNER, "a")
    users.issue("Jos\u00e9")
    for action in (users.issue, users.admit):
        with pytest.raises(DataError, match="accents in its letters"):
            action("Jose\u0301")
    assert users.names == ("Jos\u00e9",)


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


# --- several processes ------------------------------------------------------------------------------------------------


def test_what_one_writes_every_other_sees(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    first, second = new_store(path), store(path)
    first.issue("alice")
    assert second.names == ("alice",)
    assert second.active("alice") == first.active("alice")
    second.revoke("alice")
    with pytest.raises(DataError, match="'alice' was revoked"):
        first.active("alice")
    first.issue("bob")
    assert (second.to_json(), len(second), "bob" in second) == (first.to_json(), 2, True)
    assert store(path).to_json() == first.to_json()


def test_who_was_never_named_is_admitted_once(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    first, second = new_store(path), store(path)
    alice = first.admit("alice")
    assert second.admit("alice") == first.admit("alice") == alice
    second.revoke("alice")
    with pytest.raises(DataError, match="'alice' was revoked"):
        first.admit("alice")
    with pytest.raises(DataError, match="a user's name"):
        first.admit(" bob")
    assert store(path).names == ("alice",)


def test_who_was_issued_a_key_between_look_up_and_change_is_not_issued_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "users.json"
    first, second = new_store(path), store(path)
    alice = second.issue("alice")
    second.issue("eve")
    second.revoke("eve")
    monkeypatch.setattr(UserStore, "__contains__", lambda *_: False)  # as it was when `first` looked
    assert first.admit("alice") == alice
    with pytest.raises(DataError, match="'eve' was revoked"):
        first.admit("eve")


def test_changes_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    new_store(path)
    stores = [store(path) for _ in range(4)]  # each holds the folder by a handle of its own, as a process does

    def issue(number: int) -> None:
        for user in range(12):
            stores[number].issue(f"{number}-{user}")

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(issue, range(len(stores))))
    assert sorted(store(path).names) == sorted(f"{number}-{user}" for number in range(4) for user in range(12))
    assert [entry.name for entry in tmp_path.iterdir()] == ["users.json"]


def test_a_list_that_is_changed_or_gone_is_noticed_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    users = new_store(path)
    users.issue("alice")
    users.revoke("alice")
    whole = path.read_text()
    changed = json.loads(whole)
    del changed["users"]["alice"]["revoked"]
    for content, error, message in (
        (json.dumps(changed), KeyFileError, "was changed, or belongs to another key or lock"),
        (whole[:-20], DataError, "not a lock's list of users, or damaged"),
        (None, DataError, "the list of users can't be read: No such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_text(content)
        for action in (lambda: users.active("alice"), lambda: users.issue("bob"), lambda: users.names):
            for _ in range(2):  # not the first time alone
                with pytest.raises(error, match=message):
                    action()
        assert (path.read_text() if path.exists() else None) == content
    path.write_text(whole)
    assert users.names == ("alice",)


def test_an_older_list_put_back_brings_no_revoked_user_back(tmp_path: Path) -> None:
    path, copy = tmp_path / "users.json", tmp_path / "copy.json"
    users = new_store(path)
    users.issue("alice")
    shutil.copy(path, copy)
    users.revoke("alice")
    users.issue("bob")
    copy.replace(path)
    with pytest.raises(DataError, match="'alice' was revoked"):
        users.active("alice")
    users.issue("carol")
    again = store(path)
    assert again.names == ("alice", "bob", "carol")
    with pytest.raises(DataError, match="'alice' was revoked"):
        again.active("alice")


def test_a_change_that_cannot_be_written_was_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.json"
    users = new_store(path)
    users.issue("alice")

    def full(*_: object) -> None:
        raise StorageError("can't write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("intaglio.lock.users.write_json", full)
        for action, name in ((users.issue, "bob"), (users.admit, "bob"), (users.revoke, "alice")):
            with pytest.raises(StorageError, match="No space left"):
                action(name)
    assert users.names == ("alice",)
    assert users.active("alice").revoked is None
    users.issue("bob")  # the folder is held no longer
    assert store(path).names == ("alice", "bob")


def test_lists_that_are_attached_to_a_file_are_joined_or_put_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    there = new_store(path)
    there.issue("alice")
    there.revoke("alice")
    joining = UserStore(OWNER, "a")
    for name in ("bob", "alice"):
        joining.issue(name)
    joining.attach(path)
    assert there.names == joining.names == ("alice", "bob")
    with pytest.raises(DataError, match="'alice' was revoked"):
        joining.active("alice")
    other = UserStore(OWNER, "b")
    other.issue("carol")
    with pytest.raises(KeyFileError, match="belongs to another key or lock"):
        other.attach(path)
    assert store(path).names == ("alice", "bob")
    other.attach(path, anew=True)
    assert store(path, "b").names == ("carol",)


def test_a_list_is_found_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attached = new_store(Path("users.json"))
    opened = store(Path("users.json"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    attached.issue("alice")
    opened.issue("bob")
    assert store(tmp_path / "users.json").names == attached.names == ("alice", "bob")


def test_what_cannot_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"can't write .*file: File exists"), holding(tmp_path / "file"):
        pass

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    users = new_store(tmp_path / "users.json")
    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(StorageError, match=r"can't hold .*: No locks available"):
        users.issue("alice")
    assert not len(users)
