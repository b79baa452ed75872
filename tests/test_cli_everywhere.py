"""What every command takes: scripts may pass it to all of them alike."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from intaglio.cli.main import ExitCode, app, main


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_the_common_options(words: tuple[str, ...]) -> None:
    taken = {name for parameter in COMMANDS[words].params for name in parameter.opts}
    assert taken >= {"--json", "--seed", "--device", "--quiet", "--debug"}


def test_what_has_no_use_for_them_does_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["--seed", "3", "--device", "cpu"]):
        assert main(["report", str(tmp_path), *more]) == ExitCode.NOTHING
        found.append(capsys.readouterr())
    assert found[0] == found[1]
    assert main(["report", str(tmp_path), "--seed", "three"]) == ExitCode.USAGE


def test_a_recipes_seed_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class FoundError(Exception):
        pass

    def caught(plan: Any, *_: Any, **__: Any) -> None:
        seeds.append(plan.seed)
        raise FoundError

    monkeypatch.setattr("intaglio.bench.run_bench", caught)
    monkeypatch.setattr("intaglio.populations.build_population", caught)
    recipes = Path(__file__).parents[1]
    for words, recipe in (
        (["bench"], recipes / "examples" / "bench-small.yaml"),
        (["population", "build"], recipes / "benchmarks" / "recipes" / "mnist.yaml"),
    ):
        for more in ([], ["--seed", "77"]):
            assert main([*words, str(recipe), "--out", str(tmp_path), "-q", *more]) == ExitCode.ERROR
    assert seeds[1::2] == [77, 77]
    assert 77 not in seeds[::2]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("scan FILE", "--json"),
        ("scan FILE", "--html"),
        ("scan other.onnx --calibration FILE", "--json"),
        ("mark verify FILE --commitment c.json --key k", "--json"),
        ("mark verify m.onnx --commitment c.json --key k --registry FILE", "--json"),
        ("mark embed m.onnx --data d --key FILE --out out", "--json"),
        ("seal check FILE --seal s --key k", "--json"),
        ("lock apply a.png FILE --key-network n.onnx --out out", "--json"),
        ("key show FILE", "--json"),
        ("key rotate FILE", "--json"),
        ("evidence verify c.json --suspect FILE", "--json"),
        ("evidence verify c.json --roots FILE", "--json"),
        ("registry show --registry FILE", "--json"),
    ],
)
def test_no_result_goes_over_what_a_command_was_given(
    words: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key's only copy, say, by `key show owner.key --json owner.key`; by whatever path it is named."""
    monkeypatch.chdir(tmp_path)
    Path("given").write_text("the only copy")
    Path("link").symlink_to("given")
    for written in ("given", "./given", str(tmp_path / "given"), "link"):
        arguments = ["given" if word == "FILE" else word for word in words.split()]
        assert main([*arguments, option, written]) == ExitCode.USAGE
        assert f"{Path(written)} would be written over" in capsys.readouterr().err
    assert Path("given").read_text() == "the only copy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "link"]


def test_a_new_key_is_not_written_over_by_what_is_told_of_it(tmp_path: Path) -> None:
    assert main(["key", "new", str(tmp_path / "k"), "--json", str(tmp_path / "k")]) == ExitCode.USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "option", "kept"),
    [
        ("weights.bin", b"PK\x03\x04", "--json", True),
        ("m.intaglio.json", b'{"architecture": null}', "--json", True),
        ("claim.json", b'{"a": 1}', "--html", True),
        ("result.json", b' {"a": 1}', "--json", False),
        ("list.json", b"[]", "--json", False),
        ("new.json", b"", "--json", False),
        ("page.html", b"<!doctype html>", "--html", False),
    ],
)
def test_results_go_over_earlier_results_alone(
    name: str, content: bytes, option: str, kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a folder that was named holds isn't named itself: a lock's sealed network, a model's side-car."""
    path = tmp_path / name
    path.write_bytes(content)
    code = main(["scan", str(tmp_path / "missing.onnx"), option, str(path)])
    said = capsys.readouterr().err
    assert code == (ExitCode.USAGE if kept else ExitCode.ERROR)
    assert ("no earlier result" in " ".join(said.split())) == kept
    assert path.read_bytes() == content


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_verdict(closed: str, tmp_path: Path) -> None:
    """Exit code 1 would mean that something was found; and Python ends so after a traceback."""
    command = f"'{sys.executable}' -c 'from intaglio.cli.main import run; run()' key new '{tmp_path}/k' {closed}"
    environment = {name: value for name, value in os.environ.items() if name != "INTAGLIO_PASSPHRASE"}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == ExitCode.ERROR
    assert "Traceback" not in done.stderr
    if "2>" not in closed:
        assert "no passphrase: name a file that holds it" in done.stderr
