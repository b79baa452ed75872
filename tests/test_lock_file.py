"""`lock_file`: what it refuses before an hour of training, and what lies in the folder afterwards."""

from pathlib import Path

import pytest
import torch

from intaglio.classifiers import Sidecar, TorchClassifier, open_classifier
from intaglio.data import ImageData
from intaglio.errors import DataError, StorageError
from intaglio.lock import lock_file as module
from intaglio.lock.lock_file import CHECKPOINT, lock_file
from intaglio.lock.sealed_model import write_locked
from intaglio.networks import Architecture
from lock_models import OWNER, TINY, some_images

ARCHITECTURE = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=4)
DATA = ImageData(some_images(12), torch.arange(12) % 3, name="toy")


def opened(path: Path) -> TorchClassifier:
    torch.manual_seed(0)
    write_locked(ARCHITECTURE.build().eval(), path, Sidecar(architecture=ARCHITECTURE))
    found = open_classifier(path)
    assert isinstance(found, TorchClassifier)
    return found


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("an hour of training for nothing")


def test_an_unlocked_model_in_the_same_folder_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = opened(tmp_path / "model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(module, "train_lock", never)
    with pytest.raises(StorageError, match=r"model\.(safetensors|intaglio\.json) exists already, and a model that is"):
        lock_file(host, DATA, OWNER, tmp_path, test=DATA, settings=TINY)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(StorageError, match=r"model\.intaglio\.json exists already"):
        lock_file(host, DATA, OWNER, tmp_path, test=DATA, settings=TINY)
    (tmp_path / "other.safetensors").rename(tmp_path / "model.safetensors")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((12,), -1), "12 images have no label; a leak table needs them all"),
        (torch.arange(12), "has labels up to 11, but the model answers with 3 classes"),
    ],
)
def test_test_images_that_say_nothing_are_refused_before_training(
    labels: torch.Tensor, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train_lock", never)
    test = ImageData(DATA.images, labels, name="test")
    with pytest.raises(DataError, match=message):
        lock_file(opened(tmp_path / "host.safetensors"), DATA, OWNER, tmp_path / "out", test=test, settings=TINY)
    assert not (tmp_path / "out").exists()


def test_both_files_open_where_onnx_is_asked_for_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lock_file(opened(tmp_path / "host.safetensors"), DATA, OWNER, out, test=DATA, settings=TINY, onnx=True)
    weights, graph = (open_classifier(out / name) for name in ("model.safetensors", "model.onnx"))
    assert torch.allclose(weights.log_probs(DATA.images), graph.log_probs(DATA.images), atol=1e-4)


def test_an_interrupted_run_may_write_its_own_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, out = opened(tmp_path / "host.safetensors"), tmp_path / "out"

    def cut(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "check_lock", cut)
        with pytest.raises(KeyboardInterrupt):
            lock_file(host, DATA, OWNER, out, test=DATA, settings=TINY)
    assert (out / "model.safetensors").exists()
    assert (out / CHECKPOINT).exists()
    written = lock_file(host, DATA, OWNER, out, test=DATA, settings=TINY)
    assert written.leaks.images == 12
    assert not (out / CHECKPOINT).exists()
