"""`Key`: one 256-bit secret from which everything secret is derived, and its encrypted file.

    derive(context)       HKDF-SHA256(secret, info = "intaglio/1/" context)
    mac(context, message) HMAC-SHA256(derive(context), message)
    signing key           Ed25519 with seed derive("sign")

File: JSON with scrypt parameters, a salt, a nonce, and AES-256-GCM of the secret; the header is authenticated with it.
"""

import base64
import functools
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from intaglio.errors import KeyFileError
from intaglio.files import require_new, write_private

_FORMAT = "intaglio-key/1"
_SECRET_BYTES = 32
#: scrypt cost of new files: 128 MiB, about half a second. Files that ask for much more are refused, not computed.
_COST = {"n": 1 << 17, "r": 8, "p": 1}
_LARGEST_COST = 1 << 20
_SIZE_LIMIT = 1 << 16


class Key:
    """An owner's secret. Equal secrets are equal keys; neither `repr` nor any error shows the secret.

    Args:
        secret: 32 random bytes; use `Key.generate()` or `Key.load()`.

    Raises:
        KeyFileError: not 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _SECRET_BYTES:
            raise KeyFileError(f"a key has {_SECRET_BYTES} bytes, got {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's random numbers."""
        return cls(os.urandom(_SECRET_BYTES))

    def derive(self, context: str, length: int = 32) -> bytes:
        """Secret bytes for one named use: HKDF-SHA256. Different contexts tell nothing about each other."""
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=f"intaglio/1/{context}".encode()).derive(
            self._secret
        )

    def mac(self, context: str, message: bytes) -> bytes:
        """HMAC-SHA256 of `message` under the context's own key, 32 bytes."""
        return hmac.digest(self.derive(context), message, "sha256")

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._signer.sign(message)

    @functools.cached_property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 raw bytes: what the world knows the owner by."""
        return self._signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the public key."""
        return hashlib.sha256(self.public_key).hexdigest()

    @functools.cached_property
    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.derive("sign"))

    def save(self, path: Path | str, *, passphrase: str, overwrite: bool = False) -> None:
        """Writes the key encrypted, atomically, readable by its owner alone.

        With `overwrite` it re-encrypts the key's own file under another passphrase.

        Raises:
            KeyFileError: an empty passphrase.
            StorageError: it can't be written, or there is a file already, which may hold the only copy of a key.
        """
        if not passphrase:
            raise KeyFileError("a key file needs a passphrase that is not empty")
        if not overwrite:
            require_new(path, "a key")
        salt, nonce = os.urandom(16), os.urandom(12)
        header = {"format": _FORMAT, "kdf": "scrypt", **_COST, "salt": _b64(salt), "public_key": _b64(self.public_key)}
        sealed = AESGCM(_stretch(passphrase, salt, _COST)).encrypt(nonce, self._secret, _canonical(header))
        write_private(
            path, (json.dumps(header | {"nonce": _b64(nonce), "sealed": _b64(sealed)}, indent=1) + "\n").encode()
        )

    @classmethod
    def load(cls, path: Path | str, *, passphrase: str) -> Self:
        """Reads what `save` wrote.

        Raises:
            KeyFileError: missing, not a key file, damaged, or the passphrase is wrong.
        """
        header, nonce, sealed = _read(Path(path))
        cost = {name: int(header[name]) for name in _COST}
        try:
            secret = AESGCM(_stretch(passphrase, _unb64(header["salt"]), cost)).decrypt(
                nonce, sealed, _canonical(header)
            )
        except (InvalidTag, ValueError) as error:
            raise KeyFileError(f"{path}: wrong passphrase, or the file was changed") from error
        return cls(secret)

    @staticmethod
    def read_public(path: Path | str) -> bytes:
        """The public key that a key file states, without its passphrase (proved right only by `load`).

        Raises:
            KeyFileError: missing or not a key file.
        """
        return _unb64(_read(Path(path))[0]["public_key"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.public_key)

    def __repr__(self) -> str:
        return f"Key({self.fingerprint[:16]})"


def _read(path: Path) -> tuple[dict[str, str | int], bytes, bytes]:
    """Header, nonce and sealed secret of a key file."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > _SIZE_LIMIT:
        raise KeyFileError(f"{path}: larger than {_SIZE_LIMIT} bytes, which no key file is")
    try:
        fields = json.loads(content)
        nonce, sealed = _unb64(fields.pop("nonce")), _unb64(fields.pop("sealed"))
        cost = [int(fields[name]) for name in _COST]
        _unb64(fields["salt"])
        usable = fields["format"] == _FORMAT and fields["kdf"] == "scrypt" and len(_unb64(fields["public_key"])) == 32
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise KeyFileError(f"{path}: not an intaglio key file, or damaged") from error
    if not usable or len(nonce) != 12:
        raise KeyFileError(f"{path}: not a key file of the form {_FORMAT}")
    if min(cost) < 1 or cost[0] * cost[1] * cost[2] > _LARGEST_COST * _COST["r"]:
        raise KeyFileError(f"{path}: asks for an unreasonable scrypt cost")
    return fields, nonce, sealed


def _stretch(passphrase: str, salt: bytes, cost: dict[str, int]) -> bytes:
    typed = passphrase.encode(errors="surrogateescape")  # what a terminal could not decode is taken byte for byte
    return Scrypt(salt=salt, length=32, n=cost["n"], r=cost["r"], p=cost["p"]).derive(typed)


def _canonical(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unb64(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("expected base64 text")
    return base64.b64decode(text, validate=True)
