"""The attacks of `benchmarks.lock`, by name; each gives the accuracy that the attacker ends with on the test images.

The attacker holds the locked weights, and 1, 5 or 10 % as many images of the task as the owner trained on (his own,
with labels), or N pairs of an image and its keyed version. "from scratch" is what the same images and training steps
give without the locked model.
"""

from collections.abc import Callable
from functools import partial

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
    unlabelled_key_attack,
    unlabelled_universal_attack,
)
from intaglio.networks import Architecture
from intaglio.tampering import Distil, FineTune
from intaglio.training import TrainingSettings, train

SHARES = (0.01, 0.05, 0.10)
PAIRS = (10, 100, 1000)
STEPS = 600
#: The owner's own bound, and that of an attacker who need not hide.
BOUNDS = {"8/255": 8 / 255, "32/255": 32 / 255}
_BATCH = 250

Attack = Callable[[], float]
#: Opens the locked model and its lock when an attack really runs.
Opened = Callable[[], tuple[nn.Module, Lock]]


def key_attacks(task: Task, opened: Opened, seed: int) -> dict[str, Attack]:
    """Attacks that forge keyed images for the locked model as it is."""
    attacks: dict[str, Attack] = {"a shared key": partial(shared_key, task, opened)}
    for count in PAIRS:
        attacks[f"surrogate from {count} pairs"] = partial(surrogate, task, opened, seed, count)
    attacks |= _unlabelled_attacks(task, opened, seed)
    for share in reversed(SHARES):
        data = part(task, share)
        for bound, epsilon in BOUNDS.items():
            attacks[f"learned key within {bound}, {share:.0%}"] = partial(learned, task, opened, seed, data, epsilon)
        attacks[f"universal within 32/255, {share:.0%}"] = partial(universal, task, opened, seed, data, 32 / 255)
    return attacks


def _unlabelled_attacks(task: Task, opened: Opened, seed: int) -> dict[str, Attack]:
    """Those that need the locked model's weights and no label: with no image of the task beside those asked, or few."""
    few, attacks = part(task, SHARES[0]), dict[str, Attack]()
    for bound, epsilon in BOUNDS.items():
        attacks[f"per image within {bound}"] = partial(per_image, task, opened, epsilon)
        for name, attack in (("learned key", unlabelled_key_attack), ("universal", unlabelled_universal_attack)):
            label = f"{name} without labels within {bound}, {SHARES[0]:.0%}"
            attacks[label] = partial(unlabelled, task, opened, seed, few, attack, epsilon)
    return attacks


def model_attacks(task: Task, opened: Opened, built: Architecture, seed: int) -> dict[str, Attack]:
    """Attacks that make a model of their own that needs no key, and training one from scratch on the same images."""
    attacks: dict[str, Attack] = {}
    for share in SHARES:
        data = part(task, share)
        attacks[f"fine-tune, {share:.0%}"] = partial(tuned, task, opened, seed, data, 1e-3)
        attacks[f"fine-tune hard, {share:.0%}"] = partial(tuned, task, opened, seed, data, 3e-3)
        attacks[f"new last layer, {share:.0%}"] = partial(new_head, task, opened, seed, data)
        attacks[f"distil from a user's answers, {share:.0%}"] = partial(distilled, task, opened, seed, data, built)
        attacks[f"from scratch, {share:.0%}"] = partial(from_scratch, task, seed, data, built)
    return attacks


def shared_key(task: Task, opened: Opened) -> float:
    """A user's key, given away: no attack, and what all others are measured by."""
    locked, lock = opened()
    return judged(task, locked, lambda images: lock.apply(images, user="user 0"))


def surrogate(task: Task, opened: Opened, seed: int, count: int) -> float:
    """A key network of the attacker's own, from `count` pairs."""
    locked, lock = opened()
    originals = task.thief.images[:count]
    pairs = (originals, lock.apply(originals, user="user 0"))
    return judged(task, locked, surrogate_attack(locked, pairs, steps=STEPS, seed=seed))


def learned(task: Task, opened: Opened, seed: int, data: ImageData, epsilon: float) -> float:
    """A key network of the attacker's own, from labelled images."""
    locked, _ = opened()
    forge = learned_key_attack(locked, data.images, data.labels, epsilon=epsilon, steps=STEPS, seed=seed)
    return judged(task, locked, forge)


def universal(task: Task, opened: Opened, seed: int, data: ImageData, epsilon: float) -> float:
    """One residual for all images, from labelled images."""
    locked, _ = opened()
    forge = universal_attack(locked, data.images, data.labels, epsilon=epsilon, steps=STEPS, seed=seed)
    return judged(task, locked, forge)


def unlabelled(
    task: Task, opened: Opened, seed: int, data: ImageData, attack: Callable[..., Forgery], epsilon: float
) -> float:
    """A key network of the attacker's own, or one residual for all images, from images without labels."""
    locked, _ = opened()
    return judged(task, locked, attack(locked, data.images, epsilon=epsilon, steps=STEPS, seed=seed))


def per_image(task: Task, opened: Opened, epsilon: float) -> float:
    """A residual for each image, with no data at all."""
    locked, _ = opened()
    return judged(task, locked, per_image_attack(locked, epsilon=epsilon))


def tuned(task: Task, opened: Opened, seed: int, data: ImageData, rate: float) -> float:
    """The locked model, trained on with images without a key."""
    attack = FineTune(steps=STEPS, batch_size=min(64, len(data)), learning_rate=rate, schedule="cosine")
    return accuracy(attack.apply(opened()[0], data, seed=seed), task.test)


def new_head(task: Task, opened: Opened, seed: int, data: ImageData) -> float:
    """The locked model with a last layer of the attacker's own."""
    attack = FineTune(
        layers="last-reinitialised", steps=STEPS, batch_size=min(64, len(data)), learning_rate=1e-2, schedule="cosine"
    )
    return accuracy(attack.apply(opened()[0], data, seed=seed), task.test)


def distilled(task: Task, opened: Opened, seed: int, data: ImageData, built: Architecture) -> float:
    """A model of the attacker's own, from what an authorised user is answered."""
    locked, lock = opened()
    service = nn.Sequential(lock.user_key("user 0"), locked)
    attack = Distil(student=built, steps=STEPS, batch_size=min(64, len(data)), learning_rate=3e-3)
    return accuracy(attack.apply(service, data, seed=seed), task.test)


def from_scratch(task: Task, seed: int, data: ImageData, built: Architecture) -> float:
    """The same images, without the locked model."""
    torch.manual_seed(seed)
    settings = TrainingSettings(steps=STEPS, batch_size=min(64, len(data)), learning_rate=3e-3)
    return accuracy(train(built.build(), data, settings, seed=seed), task.test)


def judged(task: Task, locked: nn.Module, forge: Forgery) -> float:
    """Accuracy of the locked model on the test images as the attacker hands them in."""
    images = torch.cat([forge(batch).detach() for batch in torch.split(task.test.images, _BATCH)])
    with torch.no_grad():
        right = torch.cat([locked(batch).argmax(dim=1) for batch in torch.split(images, _BATCH)]) == task.test.labels
    return float(right.float().mean())


def part(task: Task, share: float) -> ImageData:
    """The first images of the thief: `share` as many as the owner has (they go round the classes)."""
    return task.thief.take(torch.arange(round(share * len(task.owner))))
