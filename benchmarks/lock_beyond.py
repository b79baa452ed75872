"""What the bars of a lock don't ask: harder inputs, a key network without its code, and a user who is framed.

For `benchmarks.lock`; whoever tries it has a user's key network, or some keyed images beside their originals.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.owners import Task, classifier
from intaglio.lock import Lock, check_lock
from intaglio.lock.channel import rounded
from intaglio.lock.leaks import READERS, recovered
from intaglio.seeds import torch_generator

#: How many pairs of an original and its keyed image somebody knows.
PAIRS = (100, 1000)
_READ = ("argmax", "second")
_FRAMED = 300
_USER = "user 9"


def beyond(task: Task, locked: nn.Module, lock: Lock) -> dict[str, Any]:
    """Tables of what is read and who is named, on the task's test images."""
    suspect = classifier(locked, task)
    table = check_lock(suspect, lock, task.test)
    inputs = {row.inputs: {reader: row.recovered[reader] for reader in _READ} for row in table.rows}
    for count in PAIRS:
        scores = suspect.log_probs(with_nearest(lock, task.thief.images[:count], task.test.images))
        found = {reader: recovered(READERS[reader], scores, task.test.labels) for reader in _READ}
        inputs[f"residual of the nearest of {count} known pairs"] = found
    return {
        "inputs": inputs,
        "images": len(task.test),
        "codes": codes(task, locked, lock),
        "framed": framed(task, lock),
    }


def with_nearest(lock: Lock, known: Tensor, images: Tensor) -> Tensor:
    """Each image with the residual of the most similar one of those whose keyed versions are known."""
    residuals = lock.apply(known, user=_USER) - known
    nearest = torch.cdist(images.flatten(1), known.flatten(1)).argmin(dim=1)
    return rounded((images + residuals[nearest]).clamp(0, 1)).clone()


def codes(task: Task, locked: nn.Module, lock: Lock) -> dict[str, dict[str, float]]:
    """What a user's key network opens, and how many of its images are traced, with the code in it replaced."""
    images, labels = task.test.images, task.test.labels
    key = lock.user_key(_USER)
    own = key.plane.clone()
    noise = torch.randn(own.shape, generator=torch_generator(0, "benchmarks", "beyond")) * own.std()
    found = {}
    for name, plane in {"as issued": own, "none": torch.zeros_like(own), "noise": noise}.items():
        key.plane.copy_(plane)
        with torch.inference_mode():
            keyed = rounded(torch.cat([key(part) for part in torch.split(images, 250)])).clone()
        answers = classifier(locked, task).predict(keyed)
        matches = lock.trace(keyed[:_FRAMED]).images
        found[name] = {
            "accuracy": float((answers == labels).double().mean()),
            "named": sum(match.user == _USER for match in matches) / len(matches),
        }
    return found


def framed(task: Task, lock: Lock) -> dict[str, float]:
    """How many images that a user has not keyed name him, once the residual of one image that he did is known."""
    images = task.test.images[: _FRAMED + 1]
    residual = lock.apply(images[:1], user=_USER) - images[:1]
    forged = rounded((images[1:] + residual).clamp(0, 1)).clone()
    found = lock.trace(forged)
    named = sum(match.user == _USER for match in found.images)
    return {"named": named / len(forged), "p_value": found.together.p_value}
