"""No command writes over what it reads, nor over a manifest of something else: it says so before the work."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intaglio.attacks import BadNets
from intaglio.attacks.attack_file import attack_data
from intaglio.attacks.streaming import attack_clip_by_clip
from intaglio.classifiers import Sidecar, save_classifier
from intaglio.classifiers.sidecar import sidecar_path
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData, open_data
from intaglio.data.videos import ClipWriter, StoredClips
from intaglio.errors import StorageError
from intaglio.files import require_other
from lock_models import ARCHITECTURE, tiny_model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archive(folder: Path) -> Path:
    """Images in a file that has the name of an attack's."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (24, 12, 12), np.uint8)
    labels = np.arange(24) % 3
    np.savez(folder / "poisoned.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return folder / "poisoned.npz"


def clips(folder: Path) -> Path:
    """Stored clips in a folder that has the name of an attack's."""
    with ClipWriter(folder / "poisoned", "train", 12, (4, 1, 12, 12), ("a", "b")) as writer:
        for number in range(12):
            writer.add(torch.full((4, 1, 12, 12), number, dtype=torch.uint8), number % 2)
    return folder / "poisoned"


def pictures(folder: Path) -> Path:
    """`folder` and two more class folders beside it; a picture in it has the name of an attack's."""
    for number, path in enumerate((folder / "samples.png", *(folder.parent / f"{name}/0.png" for name in "bcd"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), number).save(path)
    return folder.parent


@pytest.mark.parametrize("make", [archive, clips, pictures])
def test_an_attack_spares_its_data(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data" / "a"
    out.parent.mkdir()
    source = make(out)
    before = contents(tmp_path)
    assert main(["attack", "badnets", "--data", str(source), "--out", str(out)]) == ExitCode.ERROR
    printed = capsys.readouterr().err
    assert "can't write " in printed
    assert "which is read here" in printed or "it is what is read here" in printed
    assert printed.count("\n") == 1
    assert contents(tmp_path) == before
    assert main(["attack", "badnets", "--data", str(source), "--out", str(tmp_path / "new")]) == ExitCode.CLEAN


def test_an_attack_spares_its_test_images(toy: ImageData, tmp_path: Path) -> None:
    test = open_data(archive(tmp_path / "own"), "test")
    for at in ("own", "own/../own"):
        with pytest.raises(StorageError, match=r"can't write .*poisoned\.npz: it is what is read here"):
            attack_data(BadNets(), toy, tmp_path / at, test=test, architecture=ARCHITECTURE)


def test_an_attack_on_an_attack_spares_what_that_wrote(toy: ImageData, tmp_path: Path) -> None:
    """Even as the earlier attack's files, which another one there replaces or removes."""
    attack_data(BadNets(), toy, tmp_path)
    written = contents(tmp_path)
    clip = StoredClips(clips(tmp_path / "elsewhere"), "train")
    poisoned = open_data(tmp_path / "poisoned.npz")
    with pytest.raises(StorageError, match="it is what is read here"):
        attack_data(BadNets(), poisoned, tmp_path)
    assert {name: content for name, content in contents(tmp_path).items() if "elsewhere" not in name} == written
    attack_data(BadNets(), toy, tmp_path)  # from the original, as often as one likes
    record = attack_clip_by_clip(BadNets(), clip, tmp_path / "first")
    assert attack_clip_by_clip(BadNets(), clip, tmp_path / "first").sha256 == record.sha256
    with pytest.raises(StorageError, match=r"it is there already, in .*, which is read here"):
        attack_clip_by_clip(BadNets(), StoredClips(tmp_path / "first" / "poisoned", "train"), tmp_path / "first")


def test_an_attack_below_its_data_can_be_repeated(tmp_path: Path) -> None:
    sizes = struct.pack(">IIII", 0x803, 24, 12, 12)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(sizes + bytes(24 * 144))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 24) + bytes(range(3)) * 8)
    command = ["attack", "badnets", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]
    assert [main([*command, "--seed", str(seed)]) for seed in (0, 1)] == [ExitCode.CLEAN] * 2
    (tmp_path / "out" / "manifest.json").unlink()  # which says whose the rest is
    assert main(command) == ExitCode.ERROR


@pytest.mark.parametrize("content", ['{"models": 3}', "[]", "not JSON", '{"attack": {}, "sha256": {}}'])
def test_a_manifest_of_something_else_stays(content: str, toy: ImageData, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        StorageError, match=r"manifest\.json: what is there is no attack's record; choose another folder"
    ):
        attack_data(BadNets(), toy, tmp_path)
    assert contents(tmp_path) == {"manifest.json": content.encode()}


def test_tampering_spares_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = tmp_path / "model.safetensors", tmp_path / "weights.pt"
    save_classifier(tiny_model(), model, Sidecar(architecture=ARCHITECTURE))
    torch.save(tiny_model().state_dict(), weights)
    sidecar_path(weights).write_bytes(sidecar_path(model).read_bytes())
    before = contents(tmp_path)
    for source, out in ((model, model), (weights, weights.with_suffix(".safetensors"))):
        assert main(["tamper", "noise", str(source), "--out", str(out)]) == ExitCode.ERROR
        printed = capsys.readouterr().err
        lost = out if out == source else sidecar_path(out)
        assert f"can't write {lost}: it is what is read here, and would be lost; choose another place" in printed
        assert printed.count("\n") == 1
    assert contents(tmp_path) == before
    for _ in range(2):  # an earlier result may be replaced
        assert main(["tamper", "noise", str(model), "--out", str(tmp_path / "out.safetensors")]) == ExitCode.CLEAN


def test_the_same_file_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.link(tmp_path / "file", tmp_path / "linked")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "linked", "link"):
        with pytest.raises(StorageError, match=f"can't write .*{name}: it is what is read here"):
            require_other(tmp_path / name, tmp_path / "file")
    require_other(tmp_path / "new", tmp_path / "file")
    require_other(tmp_path / "file", "package.module:factory")
    require_other(tmp_path / "file", tmp_path)
