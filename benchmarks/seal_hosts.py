"""The models that are sealed in `benchmarks.seal`: small networks on two tasks, trained once and cached."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.fetch import cache_folder
from intaglio.attacks import accuracy
from intaglio.classifiers import Classifier, Sidecar, TorchClassifier, open_classifier, save_classifier
from intaglio.data import ImageData, open_data
from intaglio.data.images import classes_in_turn
from intaglio.errors import DataError
from intaglio.evidence.key import Key
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings, train

KEY = Key(b"benchmarks of the seals of model")
FOLDER = cache_folder() / "seal"
#: Training images, and images that a tamperer has (other ones of the training split).
TRAINED, TAMPERED = 8000, 2000


class Host(NamedTuple):
    """A network of a width on a task."""

    task: str
    architecture: str
    width: int
    epochs: int


HOSTS = {
    "Fashion-MNIST, LeNet": Host("fashion-mnist", "lenet", 8, 5),
    "Fashion-MNIST, MobileNet": Host("fashion-mnist", "mobilenet", 16, 5),
    "Fashion-MNIST, ResNet-8": Host("fashion-mnist", "resnet8", 8, 5),
    "CIFAR-10 (JPEG), VGG": Host("cifar10", "vgg", 8, 5),
    "CIFAR-10 (JPEG), ResNet-8": Host("cifar10", "resnet8", 8, 6),
}


class Sources:
    """Where the data of each task are; CIFAR-10 is packaged nowhere and must be given."""

    cifar10: Path | None = None
    #: Only these hosts, where the user names some.
    hosts: list[str] | None = None


@cache
def split(task: str, part: str) -> ImageData:
    """ "train": what hosts learn from; "tamper": what a tamperer has; "test"."""
    source: str | Path = task
    if task == "cifar10":
        if Sources.cifar10 is None:
            raise DataError("cifar10 is not packaged anywhere: give its .npz with --cifar10")
        source = Sources.cifar10
    data = open_data(source, "test" if part == "test" else "train")
    order = classes_in_turn(data.labels)
    if part == "test":
        return data.take(order[:TAMPERED])
    return data.take(order[:TRAINED] if part == "train" else order[TRAINED : TRAINED + TAMPERED])


def available() -> list[str]:
    """Hosts whose data are there, or those of them that are asked for."""
    wanted = Sources.hosts or list(HOSTS)
    there = [name for name, host in HOSTS.items() if host.task != "cifar10" or Sources.cifar10 is not None]
    return [name for name in there if name in wanted]


def slug(name: str) -> str:
    """A host's or row's name as a file's."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name.lower())


def open_host(name: str) -> TorchClassifier:
    """The trained host, made now if need be."""
    path = FOLDER / "hosts" / f"{slug(name)}.safetensors"
    host = HOSTS[name]
    if not path.exists():
        data = split(host.task, "train")
        architecture = Architecture(
            name=host.architecture, input_shape=data.input_shape, num_classes=10, width=host.width
        )
        torch.manual_seed(1)
        settings = TrainingSettings(epochs=host.epochs, batch_size=32)
        module = train(architecture.build(), data, settings, seed=1)
        save_classifier(module, path, Sidecar(architecture=architecture, task=host.task))
    opened: Classifier = open_classifier(path)
    assert isinstance(opened, TorchClassifier)
    return opened


def test_accuracy(name: str, classifier: Classifier) -> float:
    """Share of 2,000 test images answered rightly."""
    return accuracy(classifier.predict, split(HOSTS[name].task, "test"))
