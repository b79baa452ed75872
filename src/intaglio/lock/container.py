"""Weights at rest: one encrypted file, opened into memory only.

    file    = header | AES-256-GCM(content), the header authenticated with it
    header  = "INTAGLIO-SEALED\\n" | version | how the key comes about | salt (16) | nonce (12)
    key     = HKDF of the owner's key under "container/" salt, or scrypt(passphrase, salt) with 128 MiB

Nothing inside is looked at before the whole of it is authenticated.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from intaglio.errors import KeyFileError, ModelError, StorageError
from intaglio.evidence.key import Key
from intaglio.files import write_private

SUFFIX = ".sealed"

_MAGIC = b"INTAGLIO-SEALED\n"
_VERSION = 1
_BY_KEY, _BY_PASSPHRASE = b"K", b"P"
_SALT, _NONCE, _TAG = 16, 12, 16
_HEADER = len(_MAGIC) + 2 + _SALT + _NONCE
#: AES-GCM encrypts at most 2 GiB in one piece.
LARGEST = 2**31 - 1
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 17, 8, 1

#: The owner's key, or a passphrase.
Opener = Key | str


def write_container(path: Path | str, content: bytes, opener: Opener) -> None:
    """Writes `content` encrypted, atomically, readable by its owner alone.

    Raises:
        KeyFileError: an empty passphrase.
        StorageError: it can't be written, or is larger than 2 GiB.
    """
    if not opener:
        raise KeyFileError("a sealed file needs a passphrase that is not empty")
    if len(content) > LARGEST:
        raise StorageError(f"can't write {path}: {len(content)} bytes are more than AES-GCM encrypts, {LARGEST}")
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    way = _BY_KEY if isinstance(opener, Key) else _BY_PASSPHRASE
    header = _MAGIC + bytes([_VERSION]) + way + salt + nonce
    write_private(path, header + AESGCM(_secret(opener, salt)).encrypt(nonce, content, header))


def read_container(path: Path | str, opener: Opener) -> bytes:
    """The content of a sealed file, in memory.

    Raises:
        ModelError: missing, or not a sealed file.
        KeyFileError: the key or passphrase is wrong, or the file was changed or cut short.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _HEADER + LARGEST:
            raise ModelError(f"{path}: larger than any sealed file")
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    if not raw.startswith(_MAGIC):
        raise ModelError(f"{path}: not a sealed file of intaglio")
    if len(raw) < _HEADER + _TAG:
        raise KeyFileError(f"{path}: cut short")
    header, sealed = raw[:_HEADER], raw[_HEADER:]
    version, way = header[len(_MAGIC)], header[len(_MAGIC) + 1 : len(_MAGIC) + 2]
    if version != _VERSION or way not in (_BY_KEY, _BY_PASSPHRASE):
        raise ModelError(f"{path}: sealed by another version of intaglio, or changed")
    if (way == _BY_KEY) != isinstance(opener, Key):
        wanted = "the owner's key" if way == _BY_KEY else "a passphrase"
        raise KeyFileError(f"{path}: was sealed with {wanted}, and opens with nothing else")
    salt, nonce = header[-_SALT - _NONCE : -_NONCE], header[-_NONCE:]
    try:
        return AESGCM(_secret(opener, salt)).decrypt(nonce, sealed, header)
    except InvalidTag as error:
        kind = "key" if way == _BY_KEY else "passphrase"
        raise KeyFileError(f"{path}: wrong {kind}, or the file was changed or cut short") from error


def _secret(opener: Opener, salt: bytes) -> bytes:
    if isinstance(opener, Key):
        return opener.derive(f"container/{salt.hex()}")
    typed = opener.encode(errors="surrogateescape")
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(typed)
