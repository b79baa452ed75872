"""What `benchmarks.lock` measures beside the leak table: tracing users, and what keying costs."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.owners import accuracy
from benchmarks.results import interval
from intaglio.data import ImageData
from intaglio.evidence.key import Key
from intaglio.evidence.statistics import proportion
from intaglio.lock import Lock, LockSettings
from intaglio.lock.channel import rounded
from intaglio.lock.checking import JPEG_QUALITY
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.lock import LockFacts
from intaglio.tampering import Jpeg

USERS = 64
QUALITIES = (95, 85, 65, 50)
MOVED = f"JPEG {JPEG_QUALITY}, moved"
#: Pixels down and to the right: half a block or less.
_MOVED = (3, 2)
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


def through_jpeg(locked: nn.Module, lock: Lock, data: ImageData) -> dict[str, float]:
    """Share of keyed images that are answered rightly after JPEG of several qualities.

    The last is JPEG on another grid of 8 x 8 pixels than that of the picture's upper left corner: images are moved on,
    round their edges, and back.
    """
    keyed = lock.apply(data.images, user="user 0")
    moved = torch.roll(keyed, _MOVED, dims=(2, 3))
    back = tuple(-step for step in _MOVED)
    received = {f"JPEG {quality}": Jpeg(quality=quality)(keyed) for quality in QUALITIES}
    received[MOVED] = torch.roll(Jpeg(quality=JPEG_QUALITY)(moved), back, dims=(2, 3))
    return {name: accuracy(locked, ImageData(images, data.labels)) for name, images in received.items()}


#: Keys images with a lock.
Keying = Callable[[Lock, Tensor], Tensor]


def as_issued(lock: Lock, images: Tensor) -> Tensor:
    """As the lock keys them for one of its users."""
    return lock.apply(images, user="user 0")


def as_rivals(lock: Lock, images: Tensor) -> Tensor:
    """As the key network keys them under other keys than the one it was trained for most: its rivals', in turn."""
    plane, rivals = lock.secrets.secret("user 0").plane, lock.secrets.rivals
    with torch.no_grad():
        keyed = [lock.network.encoder(part, plane, rivals[: len(part)]) for part in torch.split(images, len(rivals))]
    return rounded(torch.cat(keyed))


def residual_loudness(lock: Lock, images: Tensor) -> float:
    """The root mean square of the residuals that images are keyed with."""
    return float((as_issued(lock, images) - images).square().mean().sqrt())


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
