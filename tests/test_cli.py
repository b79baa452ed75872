"""The command line: what it prints where, what it writes, and what it answers."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import intaglio as ig
from intaglio.cli.main import ExitCode, main
from intaglio.evidence.registry import Registry
from intaglio.scan import Verdict
from intaglio.scan.calibration import Calibration, CalibrationMeta, open_calibration
from scan_models import MODELS, TASK, scanned, toy_meta, write_calibration

COMMAND = str(Path(sys.executable).with_name("intaglio"))
BACKDOORED, CLEAN = str(MODELS / "backdoored.onnx"), str(MODELS / "clean.onnx")
ON_TASK = ("--task", TASK)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library was asked for; it answers at once, with verdicts made before."""
    calls: list[dict[str, Any]] = []

    def answer(classifier: ig.Classifier, **options: Any) -> list[Verdict]:
        calls.append({"classifier": classifier} | options)
        return [scanned(Path(classifier.source).stem) for _ in options["detectors"]]

    monkeypatch.setattr(importlib.import_module("intaglio.scan"), "scan_all", answer)
    return calls


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)


# --- the installed command -------------------------------------------------------------------------------------------


def test_the_command_scans(tmp_path: Path) -> None:
    result = run("scan", BACKDOORED, *ON_TASK, "--html", str(tmp_path / "new" / "page.html"), "--json", "-")
    assert result.returncode == ExitCode.FOUND
    verdict = Verdict.from_json(result.stdout)
    known = scanned("backdoored")  # in one thread, so that sums may differ in their last digits
    assert (verdict.flagged, verdict.target_class, verdict.subject) == (True, 3, known.subject)
    assert verdict.score == pytest.approx(known.score, abs=1e-2)
    assert verdict.maps.decode() == pytest.approx(known.maps.decode(), abs=1e-2)
    assert "Backdoor suspected" in result.stderr
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_a_reader_that_leaves_is_no_finding() -> None:
    command = subprocess.Popen([COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    command.stdout.close()
    _, errors = command.communicate()
    assert command.returncode == ExitCode.ERROR
    assert b"Traceback" not in errors


def test_a_full_disk_behind_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == ExitCode.ERROR
    assert "Traceback" not in result.stderr


# --- scan ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("asked")
def test_the_exit_code_tells_clean_from_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", BACKDOORED]) == ExitCode.FOUND
    printed = capsys.readouterr()
    assert "Backdoor suspected" in printed.out
    assert "backdoored.onnx" in printed.out
    assert printed.err == ""
    assert main(["scan", CLEAN]) == int(scanned("clean").flagged)


@pytest.mark.usefixtures("asked")
def test_json_goes_to_a_file_or_pure_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "verdict.json"
    assert main(["scan", BACKDOORED, "--json", str(path), "--quiet"]) == ExitCode.FOUND
    assert Verdict.from_json(path.read_text()) == scanned("backdoored")
    assert capsys.readouterr() == ("", "")
    main(["scan", BACKDOORED, "--json", "-"])
    printed = capsys.readouterr()
    assert printed.out == scanned("backdoored").to_json()
    assert "Backdoor suspected" in printed.err
    main(["scan", BACKDOORED, "--json", "-", "-q"])
    assert capsys.readouterr() == (scanned("backdoored").to_json(), "")
    main(["scan", BACKDOORED, "--json", "-", "-q", "--detector", "auto", "--detector", "one-pixel-signature"])
    verdicts = [Verdict.model_validate(entry) for entry in json.loads(capsys.readouterr().out)]
    assert verdicts == [scanned("backdoored")] * 2


@pytest.mark.usefixtures("asked")
def test_html_holds_everything_it_needs(tmp_path: Path) -> None:
    main(["scan", BACKDOORED, "--html", str(tmp_path / "page.html"), "-q"])
    page = (tmp_path / "page.html").read_text()
    assert "Dress" in page
    assert "data:image/png;base64," in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_options_reach_the_library(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    write_calibration(tmp_path / "own")
    options = ["--alpha", "0.2", "--seed", "7", *ON_TASK, "--detector", "auto", "--calibration", str(tmp_path / "own")]
    main(["scan", CLEAN, *options, "--data", TASK, "-q"])
    call = asked[0]
    assert (call["alpha"], call["seed"], call["task"], call["detectors"]) == (0.2, 7, TASK, ["auto"])
    assert call["calibration"] == tmp_path / "own"
    assert call["clean"].shape == (2000, 1, 28, 28)
    assert call["classifier"].sha256 == scanned("clean").subject.sha256
    main(["scan", CLEAN, "--preprocess", '{"mean": [0.5], "std": [0.5]}', "--outputs", "logits", "-q"])
    assert asked[1]["classifier"].preprocessing == ig.Preprocessing(mean=(0.5,), std=(0.5,))
    assert (asked[1]["classifier"].outputs, asked[1]["clean"]) == ("logits", None)


@pytest.mark.usefixtures("asked")
def test_verdicts_are_registered_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "registry.sqlite"
    for model in (CLEAN, BACKDOORED):
        main(["scan", model, "--detector", "auto", "--detector", "strip", "--registry", str(place), "-q"])
    with Registry.open(place, create=False) as book:
        kept = book.verdicts()
        assert {record.sha256: record.name for record in book.models()} == {
            scanned(name).subject.sha256: path for name, path in (("clean", CLEAN), ("backdoored", BACKDOORED))
        }
    expected = [scanned(name) for name in ("clean", "clean", "backdoored", "backdoored")]
    found = sorted((record.model_sha256, record.flagged, record.p_value) for record in kept)
    assert found == sorted((verdict.subject.sha256, verdict.flagged, verdict.p_value) for verdict in expected)
    main(["scan", CLEAN, "-q"])
    with Registry.open(place, create=False) as book:
        assert len(book.verdicts()) == len(expected)  # nothing is registered unasked
    (tmp_path / "text").write_text("not a registry")
    assert main(["scan", CLEAN, "--registry", str(tmp_path / "text"), "-q"]) == ExitCode.ERROR
    capsys.readouterr()


def test_what_is_no_file_is_not_registered(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
    (tmp_path / "users_code.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = ["users_code:make", "--input-shape", "1,2,2", "--classes", "3"]
    place = tmp_path / "registry.sqlite"
    assert main(["scan", *model, "--registry", str(place)]) == ExitCode.ERROR
    assert "not a file, so it has no digest" in capsys.readouterr().err
    assert (asked, place.exists()) == ([], False)


@pytest.mark.usefixtures("asked")
def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    assert main(["scan", CLEAN, "--json", "/dev/null", "--html", "/dev/null", "-q"]) == int(scanned("clean").flagged)
    assert Path("/dev/null").is_char_device()


# --- report ----------------------------------------------------------------------------------------------------------


def test_report_makes_one_page_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a [bold] folder :x:"
    folder.mkdir()
    for name in ("clean", "backdoored"):
        (folder / f"{name}.json").write_text(scanned(name).to_json())
    (folder / "recipe.json").write_text('{"data": "fashion-mnist"}')
    assert main(["report", str(folder)]) == ExitCode.CLEAN
    flagged = 1 + scanned("clean").flagged
    assert capsys.readouterr().out == f"{folder / 'report.html'}: 2 verdicts, {flagged} flagged\n"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 2
    elsewhere = tmp_path / "elsewhere.html"
    assert main(["report", str(folder), "--html", str(elsewhere), "--json", "-", "--quiet"]) == ExitCode.CLEAN
    verdicts = json.loads(capsys.readouterr().out)
    assert [Verdict.model_validate(entry) for entry in verdicts] == [scanned("backdoored"), scanned("clean")]
    assert elsewhere.read_text() == page


# --- population ------------------------------------------------------------------------------------------------------


def test_fit_passes_on_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def fit(folders: list[Path], out: Path, **options: Any) -> CalibrationMeta:
        calls.append((folders, out, options))
        return toy_meta()

    monkeypatch.setattr(importlib.import_module("intaglio.scan.fitting"), "fit_calibration", fit)
    arguments = ["a", "b", "--out", "o", "--test", "c", "--task-free", "--probes", "data", "--models", "9"]
    assert (
        main(["population", "fit", *arguments, "--seed", "3", "--json", str(tmp_path / "meta.json")]) == ExitCode.CLEAN
    )
    folders, out, options = calls[0]
    assert (folders, out) == ([Path("a"), Path("b")], Path("o"))
    options.pop("progress")
    assert options == {"test": [Path("c")], "task_free": True, "probes": "data", "models": 9, "seed": 3}
    assert CalibrationMeta.from_json((tmp_path / "meta.json").read_text()) == toy_meta()
    assert capsys.readouterr().out == f"o: {toy_meta().statement}\n"


@pytest.mark.parametrize("shipped", [True, False])
def test_fit_with_a_base_joins_it(shipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def join(base: Calibration, folders: list[Path], out: Path, **options: Any) -> CalibrationMeta:
        calls.append((base.meta, folders, out, options))
        return toy_meta()

    monkeypatch.setattr(importlib.import_module("intaglio.scan.fitting"), "join_calibration", join)
    write_calibration(tmp_path / "own")
    name = "fashion-mnist" if shipped else str(tmp_path / "own")
    arguments = ["a", "--out", "o", "--test", "c", "--models", "9", "--base", name]
    assert main(["population", "fit", *arguments, "--quiet"]) == ExitCode.CLEAN
    meta, folders, out, options = calls[0]
    options.pop("progress")
    assert (folders, out, options) == ([Path("a")], Path("o"), {"test": [Path("c")], "models": 9})
    assert meta == open_calibration(name).meta
    assert meta.name == ("fashion-mnist" if shipped else toy_meta().name)
    assert main(["population", "fit", "a", "--out", "o", "--base", str(tmp_path / "gone")]) == ExitCode.ERROR


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "Exit codes: 0 nothing found / verified / intact, 1 found / not verified / tampered, 2 error"),
        (["-h"], "scan"),
        (["scan", "--help"], "--calibration"),
        (["report", "--help"], "--html"),
        (["population", "--help"], "build"),
        (["population", "build", "--help"], "--executor"),
        (["population", "fit", "--help"], "--task-free"),
    ],
)
def test_help(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.CLEAN
    assert expected in " ".join(capsys.readouterr().out.split())


def test_the_package_is_the_command() -> None:
    said = subprocess.run([sys.executable, "-m", "intaglio", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"intaglio {ig.__version__}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == ExitCode.CLEAN
    assert capsys.readouterr().out == f"intaglio {version('intaglio')}\n"
