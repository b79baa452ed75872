"""Pickled code in `.pt` files, and archives that are none of torch's, are refused; nothing runs."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from classifier_models import (
    ARCHITECTURE,
    Payload,
    lenet,
    rewrite_zip,
    save_exported,
)
from intaglio.classifiers import (
    open_classifier,
)
from intaglio.errors import ModelError, UnsafeFileError

torch.set_num_threads(1)

MEMBER = "models/model.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.save(lenet().state_dict(), folder / "net.pt")
    save_exported(folder / "net.pt2")
    return folder


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_pickled_code_does_not_run(tmp_path: Path, new_format: bool, nested: bool) -> None:
    marker = tmp_path / "executed"
    content: Any = {"state_dict": lenet().state_dict(), "extra": Payload(marker)} if nested else Payload(marker)
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeFileError, match=r"holds a pickled posix\.mkdir that would execute code when loaded"):
        open_classifier(path, architecture=ARCHITECTURE)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is a real one
    assert marker.exists()


def test_plain_pickles_and_whole_modules_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(marker)))
    torch.save(lenet(), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"plain\.pt"):
        open_classifier(tmp_path / "plain.pt", architecture=ARCHITECTURE)
    with pytest.raises(UnsafeFileError, match=r"holds a pickled intaglio\.networks\.lenet\.LeNet"):
        open_classifier(tmp_path / "whole.pt", architecture=ARCHITECTURE)
    assert not marker.exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "script.pt")
    with pytest.raises(UnsafeFileError, match="holds TorchScript code"):
        open_classifier(tmp_path / "script.pt", architecture=ARCHITECTURE)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, {}, torch.ones(3)])
def test_pt_files_without_named_tensors_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="expected named tensors"):
        open_classifier(tmp_path / "x.pt", architecture=ARCHITECTURE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            r"plain real numbers, got torch\.qint8",
        ),
        (lambda weight: weight.to(torch.uint8).view(torch.bits8), r"plain real numbers, got torch\.bits8"),
        (lambda weight: weight.to(torch.complex64), r"plain real numbers, got torch\.complex64"),
        (lambda weight: torch.zeros(()).expand(weight.shape), r"tensor 'fc\.weight' claims .* values, but holds fewer"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    tensors = lenet().state_dict()
    torch.save(tensors | {"fc.weight": change(tensors["fc.weight"])}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=message) as caught:
        open_classifier(tmp_path / "net.pt", architecture=ARCHITECTURE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["net.pt", "net.pt2"])
def test_zip_bombs_are_refused(models: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    bomb = {"data/999": b"\0" * 50_000_000}
    rewrite_zip(models / file, path, lambda _, content: content, bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UnsafeFileError, match="is compressed, which torch never does"):
        open_classifier(path, architecture=ARCHITECTURE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_two_members_of_one_name_are_refused(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    rewrite_zip(models / "net.pt2", path, lambda _, content: content, {MEMBER: b"{}"})
    with pytest.raises(UnsafeFileError, match="two members have the same name"):
        open_classifier(path)
