"""Who owns what in the benchmarks of marks, seals and locks: small hosts, their owner's images, and a thief's.

Owner and thief have different training images of the same task; nobody has the test images.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.fetch import cache_folder, fashion_mnist
from intaglio.classifiers import TorchClassifier
from intaglio.data import ImageData, classes_in_turn, open_data
from intaglio.errors import DataError
from intaglio.files import atomic_path
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings, train

#: How a host is trained where nothing else is said.
HOST = TrainingSettings(epochs=8, batch_size=64, learning_rate=3e-3)
OWNED = STOLEN = 10_000
TESTED = 2_000


class Task(NamedTuple):
    """One task's images, by who has them."""

    name: str
    owner: ImageData
    thief: ImageData
    test: ImageData


class HostModel(NamedTuple):
    """A trained host."""

    architecture: Architecture
    module: nn.Module
    seed: int


def open_owned(name: str, cifar10: Path | None = None, *, tested: int = TESTED) -> Task:
    """The images of "fashion-mnist" (all 70,000, fetched) or "cifar10" (from `cifar10`, an .npz).

    `tested` is how many test images there are, the same from each class.
    """
    if name == "cifar10" and cifar10 is None:
        raise DataError("cifar10 is not packaged anywhere: give its .npz with --cifar10")
    source = fashion_mnist() if name == "fashion-mnist" else Path(str(cifar10))
    train_data, test_data = open_data(source, "train"), open_data(source, "test")
    order = classes_in_turn(train_data.labels)
    return Task(
        name,
        train_data.take(order[:OWNED]),
        train_data.take(order[OWNED : OWNED + STOLEN]),
        test_data.take(classes_in_turn(test_data.labels)[:tested]),
    )


def host(task: Task, architecture: str, width: int, seed: int, settings: TrainingSettings = HOST) -> HostModel:
    """A host, trained now unless it was before."""
    built = Architecture(
        name=architecture, input_shape=task.owner.input_shape, num_classes=task.owner.num_classes, width=width
    )
    more = "" if settings == HOST else f"-{settings.epochs}-{settings.augmentation}"
    path = cache_folder() / "hosts" / f"{task.name}-{architecture}{width}-{seed}{more}.safetensors"
    torch.manual_seed(seed)
    module = built.build()
    if path.exists():
        module.load_state_dict(load_file(path))
        return HostModel(built, module.eval(), seed)
    train(module, task.owner, settings, seed=seed)
    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, temporary)
    return HostModel(built, module, seed)


def classifier(module: nn.Module, task: Task) -> TorchClassifier:
    """The module as a classifier of the task."""
    return TorchClassifier(module, input_shape=task.owner.input_shape, num_classes=task.owner.num_classes)


def accuracy(module: nn.Module, data: ImageData) -> float:
    """Share of `data` that the module answers right."""
    asked = TorchClassifier(module, input_shape=data.input_shape, num_classes=data.num_classes)
    return float((asked.predict(data.images) == data.labels).float().mean())
