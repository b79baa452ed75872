"""`intaglio seal`: making, checking and watching from the command line; exit codes and one line for every error."""

import json
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from http_servers import FakeTime
from intaglio.classifiers import Clock, Sidecar, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.errors import EvidenceError, RemoteError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry
from intaglio.seal import Seal, SealCheck, SealRecord, Watch
from intaglio.tampering import Noise
from seal_models import ARCHITECTURE, KEY, PAIRS, SHAPE, classifier, linear, toy_seal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sealed model, a tampered copy, the seal, its key and another."""
    folder = tmp_path_factory.mktemp("seal")
    module = classifier().module
    sidecar = Sidecar(architecture=ARCHITECTURE)
    save_classifier(module, folder / "model.safetensors", sidecar)
    save_classifier(Noise(sigma=1e-4).apply(module), folder / "tampered.safetensors", sidecar)
    toy_seal().write(folder / "model.seal")
    KEY.save(folder / "owner.key", passphrase="open")
    Key(b"o" * 32).save(folder / "other.key", passphrase="open")
    return folder


@pytest.fixture(autouse=True)
def _at_home(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INTAGLIO_PASSPHRASE", "open")
    monkeypatch.setenv("INTAGLIO_REGISTRY", str(tmp_path / "registry.sqlite"))
    monkeypatch.setattr("intaglio.seal.executions._exported", lambda classifier: None)
    monkeypatch.setattr("intaglio.classifiers.http_classifier.Clock", lambda: FakeTime().clock)


MAKE = ("seal", "make", "model.safetensors", "--key", "owner.key")
CHECK = ("--seal", "model.seal", "--key", "owner.key")


def test_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "m.seal"
    before = Path("model.safetensors").read_bytes()
    arguments = [
        "--key",
        "owner.key",
        "--out",
        str(out),
        "--pairs",
        "2",
        "--seed",
        "4",
        "--json",
        "-",
        "--allow",
        "fp16,",
    ]
    assert main(["seal", "make", "model.safetensors", *arguments]) == ExitCode.CLEAN
    printed = capsys.readouterr()
    record = Seal.read(out).verify(KEY.public_key)
    assert SealRecord.from_json(printed.out) == record
    assert (record.pairs, record.seed, record.allowed) == (2, 4, ("fp16",))
    assert "2 pairs of triggers" in printed.err
    assert Path("model.safetensors").read_bytes() == before


def test_make_overwrites_no_seal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.seal"
    toy_seal().write(out)
    before = out.read_bytes()
    with patch("intaglio.seal.make_seal", side_effect=AssertionError("work began")):
        assert main([*MAKE, "--out", str(out), "--seed", "4"]) == ExitCode.ERROR
    assert f"{out} exists already, and a seal that is overwritten is lost" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_locked_registry_swallows_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def locked(*call: Any, **options: Any) -> None:
        raise EvidenceError("the registry is locked")

    arguments = ["tampered.safetensors", *CHECK, "--registry", str(tmp_path / "r.sqlite")]
    with patch("intaglio.evidence.registry.Registry.record_seal_check", locked):
        assert main(["seal", "check", *arguments]) == ExitCode.ERROR
        printed = capsys.readouterr()
        assert printed.out.startswith("tampered.safetensors: Tampered: ")
        assert "the registry is locked" in printed.err
        assert main(["seal", "watch", *arguments, "--every", "1"]) == ExitCode.FOUND
    told, problem, verdict = capsys.readouterr().out.splitlines()
    assert "Tampered: " in told
    assert problem.endswith("the registry is locked")
    assert verdict.startswith("tampered.safetensors: Broken in check 1. Tampered: ")


@pytest.mark.parametrize("order", [(True, False), (True, False, False, True)])
def test_a_watch_of_what_became_another_model_is_no_verdict(
    order: tuple[bool, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(order)

    def opened(*call: Any) -> Any:
        return classifier() if left.pop(0) else linear(SHAPE, 4)

    monkeypatch.setattr("intaglio.cli.seal._open", opened)
    options = ["--every", "0.001", "--times", str(len(order)), "--queries", "4", "--json", "-"]
    assert main(["seal", "watch", "model.safetensors", *CHECK, *options]) == ExitCode.NOTHING
    printed = capsys.readouterr()
    watch = Watch.from_json(printed.out)
    assert (watch.intact, watch.undecided) == (None, order.count(False))
    assert "Not decided: intact in " in printed.err
    assert "has 4 classes, but the sealed model has 3" in printed.err


def test_make_from_images_with_a_method(tmp_path: Path, toy_file: Path) -> None:
    out = str(tmp_path / "m.seal")
    arguments = [
        "--key",
        "owner.key",
        "--out",
        out,
        "--pairs",
        "2",
        "--method",
        "random",
        "--data",
        str(toy_file),
        "-q",
    ]
    assert main(["seal", "make", "model.safetensors", *arguments]) == ExitCode.CLEAN
    assert Seal.read(out).record.method == {"method": "random"}


def test_check_tells_intact_from_tampered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", "check", "model.safetensors", *CHECK]) == ExitCode.CLEAN
    assert capsys.readouterr().out == f"model.safetensors: Intact: all {2 * PAIRS} answers are as sealed.\n"
    registry = str(tmp_path / "r.sqlite")
    arguments = ["--json", "-", "--max-queries", "8", "--registry", registry, "--seed", "3"]
    assert main(["seal", "check", "tampered.safetensors", *CHECK, *arguments]) == ExitCode.FOUND
    printed = capsys.readouterr()
    check = SealCheck.from_json(printed.out)
    assert (check.intact, check.planned, check.seed) == (False, 8, 3)
    assert "Tampered: " in printed.err
    with Registry.open(registry) as book:
        assert [entry.intact for entry in book.seal_checks()] == [False]


def test_watch_keeps_history(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[Any] = []
    monkeypatch.setattr("intaglio.seal.watching.post_json", lambda *call: posted.append(call))
    every = ["--every", "0.001", "--times", "2", "--queries", "4"]
    assert main(["seal", "watch", "model.safetensors", *CHECK, *every]) == ExitCode.CLEAN
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "model.safetensors: Intact in 2 checks."
    with Registry.open() as book:
        assert [entry.intact for entry in book.seal_checks()] == [True, True]
    options = [*every, "--webhook", "http://hook", "--json", "-", "-q"]
    assert main(["seal", "watch", "tampered.safetensors", *CHECK, *options]) == ExitCode.FOUND
    printed = capsys.readouterr()
    watch = Watch.from_json(printed.out)
    assert (watch.intact, watch.checks, printed.err) == (False, 1, "")
    assert [url for url, _ in posted] == ["http://hook"]


def test_a_break_that_nobody_was_told_of_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*call: Any) -> None:
        raise RemoteError("the webhook did not take it: 500")

    monkeypatch.setattr("intaglio.seal.watching.post_json", refuse)
    options = ["--every", "0.001", "--queries", "4", "--webhook", "http://hook"]
    assert main(["seal", "watch", "tampered.safetensors", *CHECK, *options]) == ExitCode.FOUND
    tampered, untold, _ = capsys.readouterr().out.splitlines()
    assert "Tampered" in tampered
    assert untold.endswith("the webhook did not take it: 500")


def test_a_signal_ends_a_watch_cleanly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    interrupting = Clock(sleep=lambda seconds: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("intaglio.seal.watching.Clock", lambda: interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        assert main(["seal", "watch", "model.safetensors", *CHECK, "--every", "3600"]) == ExitCode.CLEAN
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().out.splitlines()[-1].startswith("model.safetensors: Intact in 1 checks.")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["check", "model.safetensors", "--seal", "model.seal", "--key", "other.key"], "the seal is of key"),
        (["check", "model.safetensors", "--seal", "owner.key", "--key", "owner.key"], "owner.key: not a seal"),
        (["check", "model.safetensors", "--seal", "no.seal", "--key", "owner.key"], "no.seal: can't be read"),
        (["check", "no.onnx", *CHECK], "no such file"),
        (["check", "http://127.0.0.1:1/v2/models/m", *CHECK], "can't connect"),
        (["watch", "no.onnx", *CHECK, "--every", "1"], "no such file"),
        (["watch", "model.safetensors", *CHECK, "--every", "0"], "watching waits more than 0 seconds"),
        (
            ["make", "model.safetensors", "--key", "owner.key", "--out", "o", "--allow", "int7"],
            "unknown variant 'int7'",
        ),
        (
            ["make", "model.safetensors", "--key", "owner.key", "--out", "o", "--method", "wax"],
            "unknown way of sealing",
        ),
        (["make", "model.safetensors", "--key", "no.key", "--out", "o"], "no.key: can't be read"),
        ([*MAKE[1:], "--out", "."], "it is a folder"),
    ],
)
def test_errors_are_one_line(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", *arguments]) == ExitCode.ERROR
    printed = capsys.readouterr()
    assert printed.out == ""
    assert problem in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_watch_without_an_answer_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["http://127.0.0.1:1/v2/models/m", *CHECK, "--every", "0.001", "--times", "1", "--json", "-"]
    assert main(["seal", "watch", *arguments]) == ExitCode.NOTHING
    printed = capsys.readouterr()
    assert json.loads(printed.out)["intact"] is None
    assert "Not checked: 1 rounds without an answer" in printed.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--help"], "watch"), (["make", "--help"], "--allow"), (["check", "--help"], "--max-queries"),
     (["watch", "--help"], "--webhook")],
)  # fmt: skip
def test_help(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", *arguments]) == ExitCode.CLEAN
    assert expected in capsys.readouterr().out
