"""Random numbers that flow from one explicit seed: every use derives its own stream by name."""

import hashlib
import random

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on the whole path of names: SHA-256(seed / name / name ...)."""
    path = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`, independent of torch's global state."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def python_random(seed: int, *names: str | int) -> random.Random:
    """A `random.Random` seeded with `derive_seed`, for choices that are not tensors."""
    return random.Random(derive_seed(seed, *names))
