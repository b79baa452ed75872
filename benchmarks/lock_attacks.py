"""The attacks of `benchmarks.lock`, by name; each gives the accuracy that the attacker ends with on the test images.

The attacker holds the locked weights, and 1, 5 or 10 % as many images of the task as the owner trained on (his own,
with labels), or N pairs of an image and its keyed version. "from scratch" is what the same images and training steps
give without the locked model.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.owners import Task, accuracy
from intaglio.data import ImageData
from intaglio.lock import Lock
from intaglio.lock.attacks import (
    Forgery,
    learned_key_attack,
    per_image_attack,
    surrogate_attack,
    universal_attack,
)
from intaglio.networks import Architecture
from intaglio.tampering import Distil, FineTune
from intaglio.training import TrainingSettings, train

SHARES = (0.01, 0.05, 0.10)
PAIRS = (10, 100, 1000)
STEPS = 1000
BOLD = 32 / 255
_BATCH = 250

Attack = Callable[[], float]
#: Opens the locked model and its lock when an attack really runs.
Opened = Callable[[], tuple[nn.Module, Lock]]


def key_attacks(task: Task, opened: Opened, seed: int) -> dict[str, Attack]:
    """Attacks that forge keyed images for the locked model as it is."""

    def forged(make: Callable[[nn.Module, Lock], Forgery]) -> Attack:
        def attack() -> float:
            locked, lock = opened()
            forge = make(locked, lock)
            images = torch.cat([forge(part).detach() for part in torch.split(task.test.images, _BATCH)])
            right = (locked(images).argmax(dim=1) == task.test.labels).float()
            return round(float(right.mean()), 4)

        return attack

    attacks: dict[str, Attack] = {"a shared key": forged(lambda locked, lock: _users_key(lock))}
    for count in PAIRS:
        originals = task.thief.images[:count]
        attacks[f"surrogate from {count} pairs"] = forged(
            lambda locked, lock, originals=originals: surrogate_attack(
                locked, (originals, lock.apply(originals, user="user 0")), steps=STEPS, seed=seed
            )
        )
    for share in SHARES:
        images, labels = part(task, share)
        for bound, epsilon in (("8/255", 8 / 255), ("32/255", BOLD)):
            attacks[f"learned key within {bound}, {share:.0%}"] = forged(
                lambda locked, lock, images=images, labels=labels, epsilon=epsilon: learned_key_attack(
                    locked, images, labels, epsilon=epsilon, steps=STEPS, seed=seed
                )
            )
        attacks[f"universal within 32/255, {share:.0%}"] = forged(
            lambda locked, lock, images=images, labels=labels: universal_attack(
                locked, images, labels, epsilon=BOLD, steps=STEPS, seed=seed
            )
        )
    for bound, epsilon in (("8/255", 8 / 255), ("32/255", BOLD)):
        attacks[f"per image within {bound}"] = forged(
            lambda locked, lock, epsilon=epsilon: per_image_attack(locked, epsilon=epsilon)
        )
    return attacks


def model_attacks(task: Task, opened: Opened, built: Architecture, seed: int) -> dict[str, Attack]:
    """Attacks that make a model of their own that needs no key, and training one from scratch on the same images."""
    attacks: dict[str, Attack] = {}
    for share in SHARES:
        data = part(task, share)
        size = min(64, len(data))

        def tuned(data: ImageData = data, size: int = size, rate: float = 1e-3) -> float:
            stolen = FineTune(steps=STEPS, batch_size=size, learning_rate=rate, schedule="cosine")
            return accuracy(stolen.apply(opened()[0], data, seed=seed), task.test)

        def head(data: ImageData = data, size: int = size) -> float:
            stolen = FineTune(layers="last-reinitialised", steps=STEPS, batch_size=size, learning_rate=1e-2)
            return accuracy(stolen.apply(opened()[0], data, seed=seed), task.test)

        def distilled(data: ImageData = data, size: int = size) -> float:
            locked, lock = opened()
            service = nn.Sequential(lock.user_key("user 0"), locked)
            copy = Distil(student=built, steps=STEPS, batch_size=size, learning_rate=3e-3)
            return accuracy(copy.apply(service, data, seed=seed), task.test)

        def scratch(data: ImageData = data, size: int = size) -> float:
            torch.manual_seed(seed)
            settings = TrainingSettings(steps=STEPS, batch_size=size, learning_rate=3e-3)
            return accuracy(train(built.build(), data, settings, seed=seed), task.test)

        attacks[f"fine-tune, {share:.0%}"] = tuned
        attacks[f"fine-tune hard, {share:.0%}"] = lambda tuned=tuned: tuned(rate=3e-3)
        attacks[f"new last layer, {share:.0%}"] = head
        attacks[f"distil from a user's answers, {share:.0%}"] = distilled
        attacks[f"from scratch, {share:.0%}"] = scratch
    return attacks


def part(task: Task, share: float) -> ImageData:
    """The first images of the thief: `share` as many as the owner has (they go round the classes)."""
    return task.thief.take(torch.arange(round(share * len(task.owner))))


def _users_key(lock: Lock) -> Forgery:
    return lambda images: lock.apply(images, user="user 0")
