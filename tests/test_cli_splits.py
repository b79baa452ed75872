"""Figures on images that were trained on are never given without a word."""

from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.cli.main import ExitCode, main
from intaglio.cli.splits import train_and_test
from intaglio.data import open_data

WARNED = (
    "has no test images of its own, so the figures are those of images that were trained on; name others with --test"
)


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


@pytest.mark.parametrize("command", [["mark", "embed"], ["lock", "train"]])
def test_marks_and_locks_take_test_images(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == ExitCode.CLEAN
    assert "--test" in capsys.readouterr().out
