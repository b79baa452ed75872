"""What votes over noise read out of locked models, by draws and loudness. For `benchmarks.lock`."""

from typing import Any

from torch import nn

from benchmarks.lock_measures import residual_loudness
from benchmarks.owners import Task, classifier
from benchmarks.results import interval
from intaglio.data import evenly_spaced
from intaglio.evidence.statistics import proportion
from intaglio.lock import Lock
from intaglio.lock.noise import Noise, waves, white
from intaglio.lock.votes import votes

DRAWS = (1, 10, 30, 100)
#: Which noise, and how many times as loud as the residual.
NOISES: dict[str, tuple[float, Noise]] = {
    "1": (1, white),
    "2": (2, white),
    "4": (4, white),
    "8": (8, white),
    "4, waves": (4, waves),
}
_IMAGES = 200


def voted(task: Task, locked: nn.Module, lock: Lock) -> dict[str, Any]:
    """The share of right classes, of `_IMAGES` test images that are evenly spaced."""
    test = task.test
    some = test.take(evenly_spaced(len(test), _IMAGES))
    suspect, loudness = classifier(locked, task), residual_loudness(lock, some.images)
    found = {}
    for name, (times, noise) in NOISES.items():
        read = votes(suspect, some.images, draws=DRAWS, loudness=times * loudness, noise=noise)
        found[name] = {
            str(draws): interval(proportion(int((labels == some.labels).sum()), len(some)))
            for draws, labels in zip(DRAWS, read, strict=True)
        }
    keyed = suspect.predict(lock.apply(some.images, user="user 0"))
    return {"images": len(some), "voted": found, "keyed": float((keyed == some.labels).double().mean())}
