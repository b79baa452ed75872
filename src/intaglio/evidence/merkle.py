"""Merkle trees over SHA-256: one root commits to many leaves, and a short proof shows one leaf alone.

    leaf  = SHA-256(0x00 || data)
    node  = SHA-256(0x01 || left || right), split at the largest power of two below the number of leaves

Source: RFC 6962, section 2.1; verification as in RFC 9162, section 2.1.3.2.
"""

import hashlib
import hmac
from collections.abc import Sequence

from intaglio.errors import EvidenceError


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The tree's root, 32 bytes; without leaves SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256().digest()
    return _root([_leaf(leaf) for leaf in leaves])


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes beside the way from leaf `index` to the root, from the bottom up.

    Raises:
        EvidenceError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise EvidenceError(f"there is no leaf {index} among {len(leaves)}")
    return tuple(_path([_leaf(leaf) for leaf in leaves], index))


def verify_merkle_proof(leaf: bytes, index: int, count: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` is number `index` of the `count` leaves under `root`."""
    if not 0 <= index < count:
        return False
    node, last, value = index, count - 1, _leaf(leaf)
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            value = _node(sibling, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = _node(value, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and hmac.compare_digest(value, root)


def _root(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    split = _split(len(hashes))
    return _node(_root(hashes[:split]), _root(hashes[split:]))


def _path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*_path(hashes[:split], index), _root(hashes[split:])]
    return [*_path(hashes[split:], index - split), _root(hashes[:split])]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
