"""`intaglio scan --training --inputs`: what reaches the detectors, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intaglio.classifiers import CallableClassifier, Sidecar, open_classifier, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData
from intaglio.errors import ClassifierError
from intaglio.evidence.registry import Registry
from intaglio.networks import Architecture
from intaglio.scan import scanning
from intaglio.scan.activation_clustering import ActivationClustering
from intaglio.scan.final_layer import FinalLayer
from intaglio.scan.mm_bd import MMBD
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.score_detector import Measured
from intaglio.scan.spectral_signatures import SpectralSignatures
from intaglio.scan.strip import STRIP
from scan_models import write_calibration


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


def test_of_a_folder_clean_pictures_are_read_up_to_a_number_and_inputs_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (12, 12), int(name[-1])).save(path)
    monkeypatch.setattr(scanning, "CLEAN_PICTURES", 3)
    classifier = open_classifier(model)
    assert (scanning.clean_images(tmp_path, classifier)[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 1]
    assert (scanning.suspected_inputs(tmp_path, classifier)[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 3, 1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "oracle"], "unknown detector 'oracle'"),
        (["--detector", "activation-clustering"], "activation-clustering needs the labelled images"),
        (["--detector", "strip"], "strip needs images that the model was asked about"),
        (["--detector", "mm-bd", "--calibration", "own"], "own/clean-scores.json"),
    ],
)
def test_a_second_detector_that_cannot_run_is_refused_before_the_first_runs(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_calibration(Path("own"))
    monkeypatch.setattr(OnePixelSignature, "run", _never)
    assert main(["scan", str(model), "--detector", "one-pixel-signature", *options]) == ExitCode.ERROR
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_second_detector_that_wants_more_access_is_refused_before_the_first_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OnePixelSignature, "run", _never)
    classifier = CallableClassifier(lambda images: images.flatten(1)[:, :3], input_shape=(1, 12, 12), num_classes=3)
    with pytest.raises(ClassifierError, match=r"final-layer needs WEIGHTS access, .* offers SCORES"):
        scanning.scan_all(classifier, detectors=["one-pixel-signature", "final-layer"])
    assert classifier.queries == 0


def test_a_detector_that_cannot_decide_costs_no_other_verdict(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At an alpha that no rank reaches, MM-BD's own p-value still decides, and what the other measured is kept."""
    monkeypatch.setattr(MMBD, "measure", _measured(p_value=0.5))
    monkeypatch.setattr(FinalLayer, "measure", _measured(score=1e6))
    place = tmp_path / "registry.sqlite"
    options = ["--detector", "final-layer", "--detector", "mm-bd", "--alpha", "1e-5", "--registry", str(place)]
    file = tmp_path / "verdicts.json"
    assert main(["scan", str(model), *options, "--json", str(file), "-q"]) == ExitCode.NOTHING
    assert "Can't be decided at alpha = 1e-05" in capsys.readouterr().err
    found = json.loads(file.read_text())
    assert [(verdict["detector"], verdict["flagged"]) for verdict in found] == [
        ("final-layer", False),
        ("mm-bd", False),
    ]
    with Registry.open(str(place)) as book:
        assert [record.p_value for record in book.verdicts()] == [0.5]
    monkeypatch.setattr(MMBD, "measure", _measured(p_value=1e-6))
    assert main(["scan", str(model), *options, "-q"]) == ExitCode.FOUND
    alone = tmp_path / "alone.json"
    assert main(["scan", str(model), *options[:2], *options[4:], "--json", str(alone)]) == ExitCode.NOTHING
    assert not alone.exists()


def test_a_detector_that_fails_costs_no_other_verdict(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> Measured:
        raise ClassifierError("it went away")

    monkeypatch.setattr(FinalLayer, "measure", fails)
    options = ["--detector", "final-layer", "--detector", "mm-bd", "--json", str(tmp_path / "verdicts.json")]
    for p_value, flagged, code, said in (
        (0.5, False, ExitCode.ERROR, "intaglio: it went away"),
        (1e-6, True, ExitCode.FOUND, "intaglio: warning: final-layer gave no verdict: it went away"),
    ):
        monkeypatch.setattr(MMBD, "measure", _measured(p_value=p_value))
        assert main(["scan", str(model), *options]) == code
        assert said in capsys.readouterr().err.splitlines()
        found = json.loads((tmp_path / "verdicts.json").read_text())
        found = found if isinstance(found, list) else [found]
        assert [(verdict["detector"], verdict["flagged"]) for verdict in found] == [("mm-bd", flagged)]


def _measured(score: float = 1.0, p_value: float | None = None) -> Callable[..., Measured]:
    return lambda *_: Measured(score=score, suspicions=torch.tensor([score, 0.0, 0.0]), p_value=p_value)


def _never(*_: object) -> None:
    pytest.fail("the first detector ran")
