"""Which wrong keys open a lock: a leak of a few points may be a little of every key, or all of one key in thirty."""

import torch

from intaglio.classifiers import Classifier
from intaglio.data import ImageData, evenly_spaced
from intaglio.lock.channel import rounded
from intaglio.lock.codes import random_planes, wrong_secret
from intaglio.lock.frames import frame_count
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.leaks import right
from intaglio.lock.lock import Lock
from intaglio.seeds import torch_generator

#: Keys that are tried, and images that each is tried on.
KEYS, _IMAGES = 200, 20
#: A key opens a lock if it gets more than this share of what the right key gets.
_OPENS = 0.5


def keys_that_open(
    classifier: Classifier, lock: Lock, data: ImageData, right_key: float, *, keys: int = KEYS, seed: int = 0
) -> int:
    """How many of so many random wrong keys, each with the lock's own U-Net, open the model.

    Args:
        right_key: accuracy on images keyed by a user; a wrong key opens if it gets more than half of that right, on 20
            evenly spaced images that are 8-bit afterwards.
    """
    generator = torch_generator(seed, "lock", "wrong keys")
    some = data.take(evenly_spaced(len(data), max(1, _IMAGES // frame_count(data.images))))
    opened = 0
    for _ in range(keys):
        with torch.inference_mode():
            planes = random_planes(1, lock.secrets.carriers, generator)
            secret = wrong_secret(lock.network.encoder, planes, generator)
            one_key = (part.expand(len(some), *part.shape[1:]) for part in secret)
            made = rounded(with_key(lock.network.encoder, some.images, *one_key).clamp(0, 1))
        opened += right(classifier.predict(made).cpu(), some.labels) > _OPENS * right_key
    return opened
