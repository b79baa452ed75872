"""What `benchmarks.lock` measures beside the leak table: tracing users, and what keying costs."""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import interval
from intaglio.evidence.key import Key
from intaglio.evidence.statistics import proportion
from intaglio.lock import Lock, LockSettings
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.lock import LockFacts
from intaglio.tampering import Jpeg

USERS = 64
_BATCH = 256


def traced(lock: Lock, images: Tensor) -> dict[str, Any]:
    """Images keyed for 64 users in turn: who is named at alpha = 0.01, and who merely comes nearest."""
    images = images[: 10 * USERS]
    truth = [f"user {index % USERS}" for index in range(len(images))]
    keyed = torch.empty_like(images)
    for user in range(min(USERS, len(images))):
        keyed[user::USERS] = lock.apply(images[user::USERS], user=f"user {user}")
    found = {}
    for kind, received in (
        ("PNG", keyed),
        ("JPEG 75", Jpeg(quality=75)(keyed)),
        ("JPEG 50", Jpeg(quality=50)(keyed)),
    ):
        matches = lock.trace(received).images
        named = sum(match.user == user for match, user in zip(matches, truth, strict=True))
        wrong = sum(match.user not in (user, None) for match, user in zip(matches, truth, strict=True))
        nearest = sum(match.nearest == user for match, user in zip(matches, truth, strict=True))
        found[kind] = {
            "named": interval(proportion(named, len(images))),
            "named_wrongly": wrong / len(images),
            "nearest": nearest / len(images),
        }
    innocent = sum(match.user is not None for match in lock.trace(images).images)
    return {**found, "images": len(images), "users": len(lock.users), "no key, somebody named": innocent / len(images)}


def keying_cost() -> dict[str, Any]:
    """Milliseconds of keying an image of 3 x 32 x 32 on one core, in a batch of 256 and alone; weights don't matter."""
    facts = LockFacts(lock_id="0" * 32, input_shape=(3, 32, 32), settings=LockSettings(grid=75))
    lock = Lock(KeyNetwork(3, facts.settings), Key(bytes(range(32))), facts)
    found = {}
    for label, images in (("batched", torch.rand(_BATCH, 3, 32, 32)), ("alone", torch.rand(1, 3, 32, 32))):
        lock.apply(images, user="a")
        times = []
        for _ in range(10):
            started = time.process_time()
            lock.apply(images, user="a")
            times.append((time.process_time() - started) / len(images))
        found[f"ms_{label}"] = round(1000 * sorted(times)[len(times) // 2], 3)
    return found
