"""What the tests share: one thread, a toy problem that a tiny network learns in seconds, and that problem on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.data import ImageData

CLASSES = ("top", "middle", "bottom")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def bands(count: int, seed: int) -> ImageData:
    """Grey 12 x 12 images of faint noise; class k has its third of the rows lit. Labels are 0, 1, 2, 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 12, 12, generator=generator) * 0.3
    labels = torch.arange(count) % len(CLASSES)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 0.5
    return ImageData(images, labels, CLASSES, "bands")


@pytest.fixture(scope="session")
def toy() -> ImageData:
    return bands(96, 1)


@pytest.fixture(scope="session")
def toy_test() -> ImageData:
    return bands(60, 2)


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory, toy: ImageData, toy_test: ImageData) -> Path:
    """Both splits of the toy problem as one `.npz`."""
    path = tmp_path_factory.mktemp("data") / "bands.npz"
    arrays = {
        f"{axis}_{split}": values.numpy()
        for split, data in (("train", toy), ("test", toy_test))
        for axis, values in (("x", data.images), ("y", data.labels))
    }
    np.savez(path, **arrays, classes=np.array(CLASSES), allow_pickle=False)
    return path
