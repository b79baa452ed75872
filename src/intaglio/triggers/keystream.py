"""Numbers from a secret: a pseudo-random stream that only the holder of its seed can foretell.

    stream(seed, context) = ChaCha20 keystream under the key SHA-256(seed || context)

Integers are drawn by rejection (exactly uniform), normals by Box-Muller from 53-bit uniforms.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from intaglio.errors import RecipeError


class KeyStream:
    """One stream; every call takes the next part of it.

    Args:
        seed: secret bytes, 16 at least.
        context: names the use; streams of other contexts are unrelated.

    Raises:
        RecipeError: a seed that is too short to be secret.
    """

    def __init__(self, seed: bytes, context: str) -> None:
        if len(seed) < 16:
            raise RecipeError(f"a key stream needs a seed of 16 bytes or more, got {len(seed)}")
        secret = hashlib.sha256(seed + context.encode()).digest()
        self._encryptor = Cipher(ChaCha20(secret, bytes(16)), mode=None).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._encryptor.update(bytes(count))

    def integers(self, count: int, bound: int) -> NDArray[np.int64]:
        """`count` integers, uniform in [0, bound)."""
        if not 1 <= bound <= 1 << 32:
            raise RecipeError(f"a key stream draws integers below 1 to 2^32, got {bound}")
        limit = (1 << 32) // bound * bound
        drawn: list[NDArray[np.int64]] = []
        missing = count
        while missing > 0:
            words = np.frombuffer(self.bytes(4 * missing), "<u4").astype(np.int64)
            kept = words[words < limit] % bound
            drawn.append(kept)
            missing -= len(kept)
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniform order of [0, count)."""
        return np.argsort(np.frombuffer(self.bytes(8 * count), "<u8"), kind="stable").astype(np.int64)

    def normals(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal numbers."""
        pairs = -(-count // 2)
        words = np.frombuffer(self.bytes(16 * pairs), "<u8").reshape(2, pairs) >> np.uint64(11)
        first, second = (words.astype(np.float64) + 0.5) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
