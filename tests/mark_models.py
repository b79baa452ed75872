"""A problem of ten classes, and a network that learns it and a hundred triggers by heart in a fifth of a second."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import TorchClassifier
from intaglio.data import ImageData
from intaglio.evidence.key import Key
from intaglio.networks import NETWORKS, Architecture
from intaglio.training import TrainingSettings, train

OWNER = Key(bytes(range(32)))
STRANGER = Key(bytes(32))
SHAPE = (1, 12, 12)
CLASSES = 10
ARCHITECTURE = Architecture(name="tiny", input_shape=SHAPE, num_classes=CLASSES, width=24)
#: Enough to learn most of 100 triggers.
QUICK: dict[str, Any] = {"epochs": 40, "triggers_per_batch": 40, "learning_rate": 0.01, "pfl_weight": 10}


class Tiny(nn.Module):
    """Flatten, linear, batch normalisation, ReLU, linear: about 150 weights for each unit of `width`."""

    def __init__(self, input_shape: tuple[int, ...] = SHAPE, num_classes: int = CLASSES, width: int = 24) -> None:
        super().__init__()
        size = input_shape[0] * input_shape[1] * input_shape[2]
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


def rows(count: int, seed: int) -> ImageData:
    """Grey 12 x 12 images of noise; class k has rows k to k + 2 lit. Labels are 0, 1, ..., 9, 0, 1, ..."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.4
    labels = torch.arange(count) % CLASSES
    for index, label in enumerate(labels.tolist()):
        images[index, :, label : label + 3] += 0.6
    return ImageData(images, labels, name="rows")


DATA, TEST = rows(200, 1), rows(100, 2)


def trained(module: nn.Module, data: ImageData = DATA, seed: int = 0) -> nn.Module:
    settings = TrainingSettings(epochs=8, batch_size=16, learning_rate=0.01)
    with torch.random.fork_rng(devices=[]):
        return train(module, data, settings, seed=seed)


def tiny(seed: int = 0, **sizes: Any) -> Tiny:
    """Untrained, from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny(**sizes)


@cache
def host(seed: int = 0) -> Tiny:
    """A trained network, the same at every call: not to be changed."""
    module = tiny(seed)
    trained(module, seed=seed)
    return module


def classifier_of(module: nn.Module, source: str = "suspect", **options: Any) -> TorchClassifier:
    return TorchClassifier(module, input_shape=SHAPE, num_classes=CLASSES, source=source, **options)


def weights(module: nn.Module) -> dict[str, bytes]:
    """The bytes of everything that is saved."""
    return {name: value.detach().contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


def accuracy(module: nn.Module, data: ImageData) -> float:
    with torch.no_grad():
        return float((module.eval()(data.images).argmax(1) == data.labels).double().mean())


@contextmanager
def known_network() -> Iterator[None]:
    """Makes `Tiny` a network that files can name, while it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield
