"""A small trained model and its seal, made once for all tests of seals."""

import copy
from functools import cache
from unittest.mock import patch

import torch
from torch import Tensor, nn

from conftest import bands
from intaglio.classifiers import TorchClassifier
from intaglio.evidence.key import Key
from intaglio.networks import Architecture
from intaglio.seal import Seal, make_seal
from intaglio.training import TrainingSettings, train

SHAPE = (1, 12, 12)
ARCHITECTURE = Architecture(name="lenet", input_shape=SHAPE, num_classes=3, width=4)
KEY = Key(b"a key that is known to the tests")
PAIRS = 8


@cache
def sealed_module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.01)
        return train(ARCHITECTURE.build(), bands(96, 1), settings, seed=0)


def classifier(module: nn.Module | None = None, **options: object) -> TorchClassifier:
    chosen = copy.deepcopy(sealed_module()) if module is None else module
    return TorchClassifier(chosen, input_shape=SHAPE, num_classes=3, **options)  # type: ignore[arg-type]


@cache
def toy_seal() -> Seal:
    """The default method on the small model, without the ONNX export, which takes seconds."""
    with patch("intaglio.seal.executions._exported", return_value=None):
        return make_seal(classifier(), KEY, pairs=PAIRS)


class Linear(nn.Module):
    """Scores x W + b of flattened images, for sums that can be done by hand."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[1]) if bias is None else bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight + self.bias


def linear(shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, seed: int = 0) -> TorchClassifier:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.Size(shape).numel()
    weight = torch.randn(pixels, classes, generator=generator)
    return TorchClassifier(Linear(weight - weight.mean(dim=0)), input_shape=shape, num_classes=classes)
