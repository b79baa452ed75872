"""Clips of three classes that a tiny network learns at once, and their owner: for marks, seals and locks on video."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import Sidecar, TorchClassifier, save_classifier
from intaglio.data import ImageData
from intaglio.evidence.key import Key
from intaglio.networks import VIDEO_NETWORKS, Architecture
from intaglio.training import TrainingSettings, train

OWNER = Key(bytes(range(32)))
STRANGER = Key(bytes(32))
SHAPE = (3, 1, 12, 12)
CLASSES = 3
ARCHITECTURE = Architecture(name="flat", input_shape=SHAPE, num_classes=CLASSES, width=48)
PASSPHRASE = "open sesame"


class Flat(nn.Module):
    """Flatten, linear, ReLU, linear: all frames at once."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 48) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


def moving_bars(count: int, seed: int, shape: tuple[int, ...] = SHAPE) -> ImageData:
    """Noise with a bar that stands still, goes down, or goes up: no single frame tells which."""
    frames, _, height, _ = shape
    clips = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    labels = torch.arange(count) % CLASSES
    for index, label in enumerate(labels.tolist()):
        start = height // 3 + index % (height // 3)
        for time in range(frames):
            row = start + (0, 1, -1)[label] * 2 * time
            clips[index, time, :, row % height] += 0.7
    return ImageData((clips * 255).round() / 255, labels, ("still", "down", "up"), "bars")


@cache
def host() -> nn.Module:
    """Trained; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Flat(SHAPE, CLASSES)
        return train(module, moving_bars(90, 1), TrainingSettings(epochs=8, batch_size=16, learning_rate=0.01), seed=0)


def classifier_of(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> TorchClassifier:
    return TorchClassifier(module, input_shape=shape, num_classes=CLASSES)


@contextmanager
def known_network() -> Iterator[None]:
    """Makes `Flat` a video network that files can name, while it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIDEO_NETWORKS, "flat", Flat)
        yield


def written(folder: Path) -> Path:
    """Host, clips (`clips.npz`, frames last and in 8 bits), keys and passphrase as files in `folder`."""
    save_classifier(host(), folder / "host.safetensors", Sidecar(architecture=ARCHITECTURE))
    parts = {"train": moving_bars(90, 1), "test": moving_bars(30, 2)}
    arrays = {f"y_{split}": data.labels.numpy() for split, data in parts.items()}
    for split, data in parts.items():
        arrays[f"x_{split}"] = np.moveaxis((data.images * 255).round().to(torch.uint8).numpy(), -3, -1)
    np.savez(folder / "clips.npz", allow_pickle=False, **arrays)
    OWNER.save(folder / "owner.key", passphrase=PASSPHRASE)
    (folder / "passphrase").write_text(PASSPHRASE)
    return folder
