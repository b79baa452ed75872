"""What every command takes: scripts may pass it to all of them alike."""

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
