"""What the checks work on: a small problem, and a small network that has learned it."""

import functools

import torch
from torch import nn

from intaglio.data import ImageData
from intaglio.networks import Architecture
from intaglio.seeds import torch_generator
from intaglio.training import TrainingSettings, train

SHAPE = (1, 12, 12)
CLASSES = ("north", "south", "west", "east")
ARCHITECTURE = Architecture(name="resnet8", input_shape=SHAPE, num_classes=len(CLASSES), width=4)


def toy_data(count: int = 120, seed: int = 0) -> ImageData:
    """Grey 12 x 12 images of noise, the half of the image that the label names lit; labels 0, 1, 2, 3, 0, 1, ..."""
    images = torch.rand(count, *SHAPE, generator=torch_generator(seed, "checks", "images")) * 0.4
    labels = torch.arange(count) % len(CLASSES)
    first, second, whole = slice(0, 6), slice(6, 12), slice(None)
    halves = ((first, whole), (second, whole), (whole, first), (whole, second))
    for index, (rows, columns) in enumerate(halves):
        images[labels == index, :, rows, columns] += 0.3
    return ImageData(images, labels, CLASSES, "toy images of the checks")


@functools.cache
def _learned() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ARCHITECTURE.build()
        return train(module, toy_data(), TrainingSettings(epochs=4, batch_size=16, learning_rate=0.01), seed=0)


def toy_module() -> nn.Module:
    """A residual network with batch normalisation that has learned `toy_data`: a new copy, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        module = ARCHITECTURE.build()
    module.load_state_dict(_learned().state_dict())
    return module.eval()
