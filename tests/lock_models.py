"""A lock that was never trained: small, quick, and enough for everything but accuracy."""

import torch
from torch import nn

from intaglio.classifiers import TorchClassifier
from intaglio.evidence.key import Key
from intaglio.lock import Lock, LockSettings
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.lock import LockFacts
from intaglio.networks import Architecture

OWNER = Key(bytes(range(32)))
STRANGER = Key(bytes(32))
TINY = LockSettings(width=4, features=4, code_length=16, steps=4, refining_steps=2, batch_size=16)
ARCHITECTURE = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=2)


def tiny_lock(key: Key = OWNER, shape: tuple[int, int, int] = (1, 12, 12), generation: int = 0, seed: int = 0) -> Lock:
    torch.manual_seed(seed)
    facts = LockFacts(lock_id="0" * 32, input_shape=shape, settings=TINY, generation=generation)
    return Lock(KeyNetwork(shape[0], TINY), key, facts)


def tiny_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ARCHITECTURE.build()


def some_images(count: int = 4, shape: tuple[int, int, int] = (1, 12, 12)) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(4))
    return pixels.float() / 255


def tiny_classifier() -> TorchClassifier:
    """A factory, as `package.module:factory` names one."""
    return TorchClassifier(tiny_model(), input_shape=(1, 12, 12), num_classes=3)
