"""`intaglio scan --training --inputs`: what reaches the detectors, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intaglio.classifiers import Sidecar, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData
from intaglio.networks import Architecture
from intaglio.scan import scanning
from intaglio.scan.activation_clustering import ActivationClustering
from intaglio.scan.spectral_signatures import SpectralSignatures
from intaglio.scan.strip import STRIP


@pytest.fixture(autouse=True)
def _by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for detector in (STRIP, ActivationClustering, SpectralSignatures):
        monkeypatch.setitem(scanning.DETECTORS, detector.name, detector)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = architecture.build()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(module, path, Sidecar(architecture=architecture, outputs="logits"))
    return path


def verdicts(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    code = main(["scan", *map(str, arguments), "--json", "-", "--quiet"])
    out, err = capsys.readouterr()
    assert code in (ExitCode.CLEAN, ExitCode.FOUND), err
    found = json.loads(out)
    return found if isinstance(found, list) else [found]


def test_training_images_reach_the_filters(model: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ("--detector", "activation-clustering", "--detector", "spectral-signatures")
    found = verdicts(capsys, model, "--training", toy_file, *both)
    assert [verdict["detector"] for verdict in found] == ["activation-clustering", "spectral-signatures"]
    assert [verdict["queries"] for verdict in found] == [96, 96]  # the training split
    assert all(not verdict["calibrated"] for verdict in found)


def test_inputs_reach_strip(
    model: Path, toy_file: Path, toy_test: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.npz"
    np.savez(path, images=toy_test.images[:7].numpy(), allow_pickle=False)
    (found,) = verdicts(capsys, model, "--inputs", path, "--data", toy_file, "--detector", "strip")
    assert found["queries"] == 32 * (60 - 32 + 7) + 7
    assert 1 / 1000 <= found["p_value"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "strip"], "(--inputs, or inputs=images)"),
        (["--detector", "spectral-signatures"], "(--training, or training=ImageData(...))"),
        (["--detector", "activation-clustering", "--training", "small.npz"], "images are (1, 9, 9), but the model"),
        (["--detector", "strip", "--inputs", "small.npz"], "small.npz: images are (1, 9, 9), but the model takes"),
        (["--training", "nowhere"], "nowhere"),
    ],
)
def test_one_line_for_every_error(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("small.npz", images=np.zeros((20, 9, 9), np.float32), allow_pickle=False)
    assert main(["scan", str(model), *options]) == ExitCode.ERROR
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
