"""Keys: what is derived from the secret, and the encrypted file it lies in."""

import base64
import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

import intaglio.evidence.key as module
from intaglio.errors import KeyFileError, StorageError
from intaglio.evidence.key import Key
from intaglio.files import require_new

SECRET = bytes(range(32))
PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COST", {"n": 4, "r": 8, "p": 1})


def saved(folder: Path, **changes: Any) -> Path:
    """A key file with some fields replaced; None leaves a field out."""
    path = folder / "owner.key"
    Key(SECRET).save(path, passphrase=PASSPHRASE)
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return path


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with no salt, by hand."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    output = block = b""
    for count in range(1, length // 32 + 2):
        block = hmac.digest(extracted, block + info + bytes([count]), "sha256")
        output += block
    return output[:length]


# --- derivation ------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.text(max_size=30), st.integers(1, 100))
def test_derivation_is_hkdf_and_hmac_under_a_named_context(secret: bytes, context: str, length: int) -> None:
    key = Key(secret)
    info = f"intaglio/1/{context}".encode()
    assert key.derive(context, length) == hkdf(secret, info, length)
    assert key.mac(context, b"message") == hmac.digest(hkdf(secret, info, 32), b"message", "sha256")


def test_the_signing_key_is_ed25519_with_a_derived_seed() -> None:
    key = Key(SECRET)
    expected = Ed25519PrivateKey.from_private_bytes(key.derive("sign"))
    assert key.public_key == expected.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert key.fingerprint == hashlib.sha256(key.public_key).hexdigest()
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(key.sign(b"words"), b"words")
    assert key.sign(b"words") == expected.sign(b"words")


def test_keys_are_equal_by_their_secret_and_never_show_it() -> None:
    first, same, other = Key(SECRET), Key(SECRET), Key.generate()
    assert first == same
    assert hash(first) == hash(same)
    assert first != other
    assert first != SECRET
    assert other != Key.generate()
    assert repr(first) == f"Key({first.fingerprint[:16]})"
    assert first.derive("a") != first.derive("b")


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_has_32_bytes(secret: bytes) -> None:
    with pytest.raises(KeyFileError, match=f"a key has 32 bytes, got {len(secret)}"):
        Key(secret)


# --- the file --------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_a_file_opens_with_its_passphrase_and_no_other(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    path = tmp_path_factory.mktemp("keys") / "owner.key"
    key = Key.generate()
    key.save(path, passphrase=word)
    assert Key.load(path, passphrase=word) == key
    assert Key.read_public(path) == key.public_key
    with pytest.raises(KeyFileError, match="wrong passphrase, or the file was changed"):
        Key.load(path, passphrase=word + " ")


def test_an_undecodable_passphrase_is_taken_byte_for_byte(tmp_path: Path) -> None:
    word = os.fsdecode(b"caf\xe9")
    Key(SECRET).save(tmp_path / "k", passphrase=word)
    assert Key.load(tmp_path / "k", passphrase=word) == Key(SECRET)


def test_the_file_is_private_and_shows_neither_secret_nor_passphrase(tmp_path: Path) -> None:
    path = saved(tmp_path / "new" / "folder")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert PASSPHRASE not in content
    for form in (SECRET.hex(), base64.b64encode(SECRET).decode()):
        assert form not in content
    assert [entry.name for entry in path.parent.iterdir()] == ["owner.key"]


def test_new_files_cost_128_mib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    Key(SECRET).save(tmp_path / "k", passphrase=PASSPHRASE)
    fields = json.loads((tmp_path / "k").read_text())
    assert 128 * fields["n"] * fields["r"] == 128 << 20
    assert Key.load(tmp_path / "k", passphrase=PASSPHRASE) == Key(SECRET)


def test_equal_keys_and_passphrases_give_unlike_files(tmp_path: Path) -> None:
    for name in "ab":
        Key(SECRET).save(tmp_path / name, passphrase=PASSPHRASE)
    first, second = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert {name for name in first if first[name] != second[name]} == {"salt", "nonce", "sealed"}


def test_a_key_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"owner.key exists already, and a key that is overwritten is lost"):
        Key.generate().save(path, passphrase=PASSPHRASE)
    assert path.read_bytes() == before
    Key(SECRET).save(path, passphrase="another", overwrite=True)
    assert Key.load(path, passphrase="another") == Key(SECRET)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="link exists already"):
        require_new(tmp_path / "link", "a key")


def test_an_empty_passphrase_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="a key file needs a passphrase that is not empty"):
        Key.generate().save(tmp_path / "k", passphrase="")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        Key(SECRET).save(path, passphrase="another", overwrite=True)
    assert Key.load(path, passphrase=PASSPHRASE) == Key(SECRET)
    assert [entry.name for entry in tmp_path.iterdir()] == ["owner.key"]


# --- damaged files ---------------------------------------------------------------------------------------------------


def written(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "owner.key").write_bytes(content)
        return folder / "owner.key"

    return write


def changed(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(folder, **changes)


def truncated(folder: Path) -> Path:
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


DAMAGED = "not an intaglio key file, or damaged"
CHANGED = "wrong passphrase, or the file was changed"
COST = "asks for an unreasonable scrypt cost"
FORM = "not a key file of the form intaglio-key/1"
FOREIGN = base64.b64encode(Key(bytes(32)).public_key).decode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.key", "can't be read: No such file or directory"),
        (lambda folder: folder, "can't be read: Is a directory"),
        (truncated, DAMAGED),
        (written(b""), DAMAGED),
        (written(b"\xff\xfe"), DAMAGED),
        (written(b"[]"), DAMAGED),
        (written(b'"text"'), DAMAGED),
        (written(b"[" * 60000), DAMAGED),
        (written(b" " * 70000), "larger than 65536 bytes"),
        (changed(nonce=None), DAMAGED),
        (changed(nonce=7), DAMAGED),
        (changed(salt="not base64!"), DAMAGED),
        (changed(n="many"), DAMAGED),
        (changed(n=float("nan")), DAMAGED),
        (changed(n=float("inf")), DAMAGED),
        (changed(n=None), DAMAGED),
        (changed(format="intaglio-key/2"), FORM),
        (changed(kdf="md5"), FORM),
        (changed(nonce="AAAA"), FORM),
        (changed(public_key="AAAA"), FORM),
        (changed(n=1 << 40), COST),
        (changed(r=1 << 30), COST),
        (changed(p=1 << 30), COST),
        (changed(n=0), COST),
        (changed(n=-4), COST),
        (changed(n=5), CHANGED),
        (changed(n=8), CHANGED),
        (changed(salt="AAAA"), CHANGED),
        (changed(public_key=FOREIGN), CHANGED),
        (changed(sealed="AAAA"), CHANGED),
        (changed(comment="mine"), CHANGED),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(KeyFileError, match=re.escape(message)) as caught:
        Key.load(path, passphrase=PASSPHRASE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    if message != CHANGED:
        with pytest.raises(KeyFileError, match=re.escape(message)):
            Key.read_public(path)


@given(
    st.sampled_from(["format", "kdf", "n", "r", "p", "salt", "public_key", "nonce", "sealed"]),
    st.integers(0, 63),
    st.sampled_from("A9z+"),
)
def test_any_changed_value_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, position: int, other: str
) -> None:
    path = saved(tmp_path_factory.mktemp("keys"))
    fields = json.loads(path.read_text())
    text = str(fields[name])
    position %= len(text)
    changed = text[:position] + other + text[position + 1 :]
    if changed == text or (name == "n" and changed == "4"):
        return
    path.write_text(json.dumps(fields | {name: changed}))
    with pytest.raises(KeyFileError):
        Key.load(path, passphrase=PASSPHRASE)
