"""Figures on images that were trained on are never given without a word."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intaglio.classifiers import Sidecar, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.cli.splits import train_and_test
from intaglio.data import open_data
from intaglio.errors import DataError
from lock_models import ARCHITECTURE, OWNER, tiny_model

WARNED = "its test images are those that are trained on, and figures on them flatter; name others with --test"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An archive without splits."""
    path = tmp_path / "whole.npz"
    draw = np.random.default_rng(0)
    np.savez(path, images=draw.integers(0, 256, (24, 12, 12), np.uint8), labels=np.arange(24) % 3)
    return path


def test_images_without_splits_are_measured_on_with_a_warning(whole: Path, toy_file: Path) -> None:
    with pytest.warns(UserWarning, match=WARNED):
        trained, measured = train_and_test(open_data, str(whole), None)
    assert torch.equal(trained.images, measured.images)
    with pytest.warns(UserWarning, match=WARNED):
        train_and_test(open_data, str(whole), str(whole))
    trained, measured = train_and_test(open_data, str(whole), str(toy_file))
    assert len(trained) == 24
    assert torch.equal(measured.images, open_data(toy_file, "test").images)
    trained, measured = train_and_test(open_data, str(toy_file), None)
    assert torch.equal(measured.images, open_data(toy_file, "test").images)
    assert not torch.equal(trained.images[: len(measured)], measured.images)


def test_the_commands_say_so(whole: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = ["attack", "badnets", "--data", str(whole), "--train", "--epochs", "1", "--arch", "lenet", "--width", "1"]
    assert main([*victim, "--out", str(tmp_path / "a")]) == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert f"{whole}: {WARNED}" in " ".join(printed.err.split())
    assert main([*victim, "--out", str(tmp_path / "b"), "--test", str(toy_file)]) == ExitCode.CLEAN
    assert WARNED not in " ".join(capsys.readouterr().err.split())


def test_marks_and_locks_say_so(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host, key, passphrase = tmp_path / "host.safetensors", tmp_path / "owner.key", tmp_path / "passphrase"
    save_classifier(tiny_model(), host, Sidecar(architecture=ARCHITECTURE))
    OWNER.save(key, passphrase="a")
    passphrase.write_text("a")
    of = [str(host), "--data", str(whole), "--key", str(key), "--passphrase-file", str(passphrase), "--out"]
    marked = ["mark", "embed", *of, str(tmp_path / "marked"), "--batch-size", "5", "--batches", "1", "--epochs", "1"]
    assert main(marked) == ExitCode.CLEAN
    assert f"{whole}: {WARNED}" in " ".join(capsys.readouterr().err.split())
    refused = ["--encrypt", "--onnx"]  # only when the images are there
    assert main(["lock", "train", *of, str(tmp_path / "locked"), *refused]) == ExitCode.ERROR
    assert f"{whole}: {WARNED}" in " ".join(capsys.readouterr().err.split())


def pictures(root: Path, classes: str) -> Path:
    """Four pictures a class, each of its grey level."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (12, 12), 60 * "abcd".index(name) + number).save(root / name / f"{number}.png")
    return root


def test_classes_of_test_images_are_those_of_their_names(tmp_path: Path) -> None:
    training, fewer = pictures(tmp_path / "tr", "abc"), pictures(tmp_path / "te", "ac")
    trained, measured = train_and_test(open_data, str(training), str(fewer))
    assert measured.labels.tolist() == [0] * 4 + [2] * 4
    assert measured.classes == trained.classes == ("a", "b", "c")
    with pytest.raises(DataError, match=r"other: has classes that .*tr has not: d; "):
        train_and_test(open_data, str(training), str(pictures(tmp_path / "other", "ad")))


def test_test_images_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, draw = tmp_path / "unlabelled.npz", np.random.default_rng(0)
    images = draw.integers(0, 256, (18, 12, 12), np.uint8)
    np.savez(path, x_train=images[:9], x_test=images[9:], y_train=np.arange(9) % 3)
    command = ["attack", "badnets", "--data", str(path), "--out", str(tmp_path / "out"), "--train", "--arch", "lenet"]
    assert main(command) == ExitCode.ERROR
    printed = capsys.readouterr().err
    assert f"{path}: 9 test images have no label; a measurement needs them all" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_there_is_nothing_to_measure_without_a_victim(whole: Path, tmp_path: Path) -> None:
    of = ["attack", "badnets", "--data", str(whole), "--out", str(tmp_path / "a"), "--test", str(whole)]
    assert main(of) == ExitCode.USAGE
    assert not (tmp_path / "a").exists()
