"""Everything about a seal that only its owner can know: drawn from the key, under contexts that begin with "seal/"."""

import hmac

import torch

from intaglio.evidence.canonical import canonical_json
from intaglio.evidence.key import Key


class Draws:
    """Keyed choices for one seal: HKDF(key, "seal/<id>/<use>") is the secret of each use, HMAC-SHA256 draws with it.

    Args:
        seal_id: 32 hex digits (`seal_identity`); another identity gives unrelated choices.
    """

    def __init__(self, key: Key, seal_id: str) -> None:
        self._key = key
        self.seal_id = seal_id

    def number(self, use: str, *path: int | str) -> int:
        """63 bits that depend on the key, the seal, the use and the path."""
        return int.from_bytes(self._mac(use, *path)[:8], "big") >> 1

    def generator(self, use: str, *path: int | str) -> torch.Generator:
        """A CPU generator seeded with `number`."""
        return torch.Generator().manual_seed(self.number(use, *path))

    def shuffled(self, count: int, use: str, *path: int | str) -> list[int]:
        """0 to count - 1 in the order of their HMACs."""
        secret = self._secret(use)
        return sorted(range(count), key=lambda index: hmac.digest(secret, _message(*path, index), "sha256"))

    def targets(self, count: int, num_classes: int) -> list[int]:
        """Classes, as balanced as `count` allows: block after block of all classes, each in a keyed order."""
        blocks = -(-count // num_classes)
        return [label for block in range(blocks) for label in self.shuffled(num_classes, "targets", block)][:count]

    def commitment(self, index: int, label: int) -> str:
        """HMAC of a label at a place of the seal, in hex: without the key it tells nothing about the label."""
        return self._mac("label", index, label).hex()

    def opened(self, index: int, commitment: str, num_classes: int) -> int | None:
        """The label committed to, found by trying all; None if it is none of them."""
        secret = self._secret("label")
        for label in range(num_classes):
            if hmac.compare_digest(hmac.digest(secret, _message(index, label), "sha256").hex(), commitment):
                return label
        return None

    def _mac(self, use: str, *path: int | str) -> bytes:
        return hmac.digest(self._secret(use), _message(*path), "sha256")

    def _secret(self, use: str) -> bytes:
        return self._key.derive(f"seal/{self.seal_id}/{use}")


def seal_identity(key: Key, facts: dict[str, object]) -> str:
    """32 hex digits for a seal of these facts (model, data, settings, seed): the same facts give the same seal."""
    return key.mac("seal/identity", canonical_json(facts))[:16].hex()


def _message(*path: int | str) -> bytes:
    return "/".join(str(part) for part in path).encode()
