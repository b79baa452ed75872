"""What goes wrong on the command line: one line on standard error, the right exit code, and nothing half-written."""

import errno
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import intaglio
from classifier_models import ARCHITECTURE, Payload, lenet, onnx_linear
from intaglio.classifiers import Sidecar, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.errors import NothingToExamineError
from scan_models import MODELS, TASK, scanned, write_calibration
from test_fitting import Here
from test_open_onnx import external_onnx

CLEAN = str(MODELS / "clean.onnx")
Files = Callable[[Path], list[str]]
SIDECAR = Sidecar(architecture=ARCHITECTURE)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: one line, and nothing on standard output."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("intaglio: ")
    return printed.err


# --- models ----------------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> list[str]:
    (folder / "m.onnx").write_bytes(Path(CLEAN).read_bytes()[:9000])
    return [str(folder / "m.onnx")]


def outside(folder: Path) -> list[str]:
    (folder / "inside").mkdir()
    (folder / "weights.bin").write_bytes(bytes(48))
    return [str(external_onnx(folder / "inside", "../weights.bin"))]


def payload(folder: Path) -> list[str]:
    torch.save({"state_dict": lenet().state_dict(), "more": Payload(folder / "executed")}, folder / "m.pt")
    return [str(folder / "m.pt"), "--arch", "lenet", "--input-shape", "1,12,12", "--classes", "5"]


def weights(change: Callable[[dict[str, Any]], object]) -> Files:
    def files(folder: Path) -> list[str]:
        save_classifier(lenet(), folder / "m.safetensors", SIDECAR)
        tensors = lenet().state_dict()
        change(tensors)
        save_file(tensors, folder / "m.safetensors")
        return [str(folder / "m.safetensors")]

    return files


def unknown_architecture(folder: Path) -> list[str]:
    save_classifier(lenet(), folder / "m.safetensors", SIDECAR)
    sidecar = json.loads((folder / "m.intaglio.json").read_text())
    sidecar["architecture"]["name"] = "hydra"
    (folder / "m.intaglio.json").write_text(json.dumps(sidecar))
    return [str(folder / "m.safetensors")]


def seven_classes(folder: Path) -> list[str]:
    model = onnx_linear(("n", 1, 28, 28), 7, torch.randn(784, 7, generator=torch.Generator().manual_seed(0)))
    onnx.save(model, folder / "m.onnx")
    return [str(folder / "m.onnx"), "--task", TASK]


def factory() -> None:
    raise ValueError("no\nweights")


def quitter() -> None:
    raise SystemExit(0)


# --- data ------------------------------------------------------------------------------------------------------------


def npz(images: np.ndarray[Any, Any]) -> Files:
    def files(folder: Path) -> list[str]:
        np.savez(folder / "data.npz", images=images)
        return [CLEAN, "--data", str(folder / "data.npz")]

    return files


def folder_of(**contents: bytes) -> Files:
    def files(folder: Path) -> list[str]:
        (folder / "pictures").mkdir()
        Image.new("L", (28, 28)).save(folder / "pictures" / "a.png")
        for name, content in contents.items():
            (folder / "pictures" / f"{name}.png").write_bytes(content)
        if not contents:
            (folder / "pictures" / "a.png").unlink()
        return [CLEAN, "--data", str(folder / "pictures")]

    return files


def with_options(*options: str) -> Files:
    return lambda folder: [CLEAN, *(option.format(folder=folder) for option in options)]


BAD: dict[str, tuple[Files, str]] = {
    "missing file": (lambda folder: [str(folder / "no.onnx")], "no such file"),
    "a folder": (lambda folder: [str(folder)], "is a folder"),
    "truncated ONNX": (truncated, "or truncated"),
    "external data outside": (outside, "outside the model's folder"),
    "payload": (payload, "would execute code when loaded"),
    "wrong shapes": (weights(lambda t: t.update({"fc.bias": torch.ones(6)})), "'fc.bias' must be [5], got [6]"),
    "NaN": (weights(lambda t: t["fc.bias"].fill_(float("nan"))), "not finite, first in 'fc.bias'"),
    "unknown architecture": (unknown_architecture, "unknown architecture 'hydra'"),
    "wrong class count": (seven_classes, "task fashion-mnist has 10 classes, this model answers with 7"),
    "factory that fails": (lambda _: [f"{__name__}:factory"], "ValueError: no weights (--debug shows where)"),
    "factory that quits": (lambda _: [f"{__name__}:quitter"], "ended the program (exit code 0)"),
    "8-bit range": (npz(np.full((3, 28, 28), 200, np.float32)), "divide 8-bit images by 255"),
    "below zero": (npz(np.full((3, 28, 28), -0.5, np.float32)), "expected [0, 1]"),
    "wrong image size": (
        npz(np.zeros((3, 32, 32), np.uint8)),
        "images are (1, 32, 32), but the model takes (1, 28, 28",
    ),
    "pickled images": (npz(np.array([{}, None])), "can't be read without executing it"),
    "no pictures": (folder_of(), "no pictures in it"),
    "corrupt picture": (folder_of(b=b"\x89PNG\r\n\x1a\n broken"), "b.png: "),
    "no data": (with_options("--data", "{folder}/absent"), "no file or folder"),
    "alpha of 2": (with_options("--alpha", "2", "--task", TASK), "alpha lies between 0 and 1, got 2.0"),
    "alpha of 0": (with_options("--alpha", "0", "--task", TASK), "alpha lies between 0 and 1"),
    "unknown detector": (with_options("--detector", "oracle"), "unknown detector 'oracle'"),
    "no calibration": (with_options("--calibration", "{folder}"), "not a fitted detector"),
    "calibration of others": (with_options("--calibration", "{folder}/own"), "task mine has 3 classes"),
    "output is a folder": (with_options("--json", "{folder}"), "it is a folder"),
    "output below a file": (with_options("--html", f"{CLEAN}/page.html"), "can't write"),
    "output in /proc": (with_options("--json", "/proc/x/verdict.json"), "can't write /proc/x/verdict.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, message = BAD[case]
    write_calibration(tmp_path / "own", name="mine", num_classes=3)
    assert main(["scan", *files(tmp_path)]) == ExitCode.ERROR
    assert message in only_line(capsys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_classifier(lenet(), tmp_path / "m.safetensors", SIDECAR)
    for device in ("cuda", "abacus"):
        assert main(["scan", str(tmp_path / "m.safetensors"), "--device", device]) == ExitCode.ERROR
        assert f"can't use device '{device}'" in only_line(capsys)


def test_an_onnx_model_is_not_silently_run_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", CLEAN, "--device", "cuda"]) == ExitCode.ERROR
    assert "ONNX models run on the CPU" in only_line(capsys)


@pytest.mark.parametrize(("extra", "lines"), [([], 1), (["-q"], 0), (["--quiet"], 0)])
def test_warnings_are_one_line_of_our_own(
    extra: list[str], lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def opened(*_: object, **__: object) -> None:
        warnings.warn_explicit("skipped: a.mp4:\nnot a video", UserWarning, intaglio.__file__, 1)
        warnings.warn_explicit("deprecated", UserWarning, "elsewhere.py", 1)
        raise NothingToExamineError("nothing")

    monkeypatch.setattr("intaglio.cli.scan.open_model", opened)
    assert main(["scan", CLEAN, *extra]) == ExitCode.NOTHING
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["intaglio: warning: skipped: a.mp4: not a video"] * lines + ["intaglio: nothing"]


def test_debug_shows_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["scan", str(tmp_path / "no.onnx"), "--debug"]) == ExitCode.ERROR
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last)")
    assert printed.rstrip().splitlines()[-1].startswith("intaglio.errors.ModelError: no such file")


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage"),
        (["scann"], "No such command 'scann'"),
        (["scan"], "Missing argument 'MODEL'"),
        (["scan", CLEAN, "--colour", "red"], "--colour"),
        (["scan", CLEAN, "more"], "unexpected extra argument"),
        (["scan", CLEAN, "--alpha", "often"], "--alpha"),
        (["scan", CLEAN, "--outputs", "words"], "--outputs"),
        (["scan", CLEAN, "--input-shape", "1,a"], "'1,a' is not a shape such as 3,224,224"),
        (["scan", CLEAN, "--input-shape", "28"], "'28' is not a shape such as 3,224,224"),
        (["scan", CLEAN, "--input-shape", "1,0,28"], "'1,0,28' is not a shape"),
        (["scan", CLEAN, "--classes", "-1"], "--classes"),
        (["scan", CLEAN, "--preprocess", "{"], "Invalid JSON"),
        (["scan", CLEAN, "--preprocess", '{"std": [0]}'], "std must be above 0"),
        (["population"], "Usage"),
        (["population", "fit", "x"], "Missing option '--out'"),
        (["population", "fit", "x", "--out", "y", "--probes", "dreams"], "--probes"),
        (["population", "fit", "x", "--out", "y", "--base", "task-free", "--task-free"], "are those of --base"),
        (["population", "fit", "x", "--out", "y", "--base", "task-free", "--detector", "strip"], "--base"),
        (["evidence", "verify", "e.json", "--mapping", "m.yaml"], "--suspect MODEL"),
        (["population", "build", "r.yaml", "--out", "y", "--workers", "0"], "--workers"),
        (["population", "build", "r.yaml", "--out", "y", "--executor", "cloud"], "--executor"),
    ],
)
def test_a_wrong_command_line_is_exit_code_4(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())
    assert "Traceback" not in printed.err


# --- outputs, interruptions, nothing to do ---------------------------------------------------------------------------


@pytest.fixture
def _instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("intaglio.scan"), "scan_all", lambda *_, **__: [scanned("clean")])


@pytest.mark.usefixtures("_instant")
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_full_disk_leaves_nothing_behind(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("intaglio.files.os.fsync", full)
    assert main(["scan", CLEAN, option, str(tmp_path / "out"), "-q"]) == ExitCode.ERROR
    assert only_line(capsys) == f"intaglio: can't write {tmp_path / 'out'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []
    assert main(["scan", CLEAN, option, "/dev/full", "-q"]) == ExitCode.ERROR
    assert only_line(capsys) == "intaglio: can't write /dev/full: No space left on device\n"
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MemoryError(), "out of memory"),
        (KeyboardInterrupt(), "interrupted\n"),
        (RuntimeError("odd\nshape"), "RuntimeError: odd shape (--debug shows where)"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_failures_on_the_way_are_never_a_finding(
    failure: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(importlib.import_module("intaglio.scan"), "scan_all", fail)
    assert main(["scan", CLEAN]) == ExitCode.ERROR
    assert message in only_line(capsys)


def test_report_without_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == ExitCode.NOTHING
    assert "no verdict in it" in only_line(capsys)
    assert main(["report", str(tmp_path / "absent")]) == ExitCode.ERROR
    assert "no such folder" in only_line(capsys)
    (tmp_path / "verdict.json").write_text(scanned("clean").to_json()[:500])
    assert main(["report", str(tmp_path)]) == ExitCode.ERROR
    assert "not JSON, perhaps cut short" in only_line(capsys)
    assert not (tmp_path / "report.html").exists()


def test_fitting_without_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["population", "fit", str(tmp_path), "--out", str(tmp_path / "out")]) == ExitCode.NOTHING
    assert "no finished models in it" in only_line(capsys)


def test_an_interrupted_population_is_resumed(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: toys\ntask: bands\ndata: {toy_file}\nmodels: 4\nsamples: 32\n"
        "architectures: [{name: lenet, width: [1, 2]}]\ntraining: {epochs: [1, 1], batch_size: [16]}\n"
        "attacks: [{trigger: patch, rate: [0.1, 0.2]}]\n"
    )

    def build(out: str, limit: int) -> int:
        monkeypatch.setattr("intaglio.populations.LocalExecutor", lambda workers: Here(limit))
        return main(["population", "build", str(recipe), "--out", str(tmp_path / out)])

    assert build("a", 2) == ExitCode.ERROR
    assert "interrupted; run the same command again to go on from what it had finished" in only_line(capsys)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "00000",
        "00001",
        "manifest.json",
        "recipe.json",
    ]
    kept = (tmp_path / "a" / "00001" / "model.safetensors").stat().st_mtime_ns
    assert build("a", 9) == ExitCode.CLEAN
    assert f"{tmp_path / 'a'}: 4 models, 2 of them backdoored" in capsys.readouterr().out
    assert (tmp_path / "a" / "00001" / "model.safetensors").stat().st_mtime_ns == kept
    assert build("b", 9) == ExitCode.CLEAN
    for index in range(4):
        first, second = (tmp_path / out / f"{index:05d}" / "model.safetensors" for out in "ab")
        assert first.read_bytes() == second.read_bytes()
