"""Encrypted files: what goes in comes out, and nothing that was changed is ever looked at."""

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intaglio.errors import IntaglioError, KeyFileError, ModelError
from intaglio.lock import container
from intaglio.lock.container import read_container, write_container
from lock_models import OWNER, STRANGER


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_SCRYPT_N", 16)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.one_of(st.just(OWNER), st.text(min_size=1)))
def test_what_goes_in_comes_out(tmp_path: Path, content: bytes, opener: container.Opener) -> None:
    path = tmp_path / "file.sealed"
    write_container(path, content, opener)
    assert read_container(path, opener) == content
    sealed = path.read_bytes().removeprefix(container._MAGIC)
    assert len(content) < 16 or content not in sealed


def test_only_its_owner_may_read_it_and_no_two_files_are_alike(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for path in files:
        write_container(path, b"same", OWNER)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files[0].read_bytes() != files[1].read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_changed_or_missing_byte_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file.sealed"
    write_container(path, bytes(300), OWNER)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :])
    with pytest.raises((ModelError, KeyFileError)):
        read_container(path, OWNER)


@pytest.mark.parametrize(
    ("sealed_with", "opened_with", "message"),
    [
        (OWNER, STRANGER, "wrong key, or the file was changed or cut short"),
        ("right", "wrong", "wrong passphrase, or the file was changed or cut short"),
        (OWNER, "passphrase", "was sealed with the owner's key"),
        ("passphrase", OWNER, "was sealed with a passphrase"),
    ],
)
def test_wrong_openers(
    tmp_path: Path, sealed_with: container.Opener, opened_with: container.Opener, message: str
) -> None:
    write_container(tmp_path / "file", b"content", sealed_with)
    with pytest.raises(KeyFileError, match=message):
        read_container(tmp_path / "file", opened_with)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ModelError, "not a sealed file"),
        (b"PK\x03\x04", ModelError, "not a sealed file"),
        (b"INTAGLIO-SEALED\n\x01K", KeyFileError, "cut short"),
        (b"INTAGLIO-SEALED\n\x02K" + bytes(60), ModelError, "another version"),
        (b"INTAGLIO-SEALED\n\x01X" + bytes(60), ModelError, "another version"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, error: type[IntaglioError], message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(error, match=message):
        read_container(tmp_path / "file", OWNER)


def test_a_missing_or_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="can't be read: No such file"):
        read_container(tmp_path / "none", OWNER)
    write_container(tmp_path / "file", bytes(10), OWNER)
    monkeypatch.setattr(container, "LARGEST", 5)
    with pytest.raises(ModelError, match="larger than any sealed file"):
        read_container(tmp_path / "file", OWNER)


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="not empty"):
        write_container(tmp_path / "file", b"content", "")
    assert not (tmp_path / "file").exists()
