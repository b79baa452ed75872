"""`intaglio registry`: what it shows to people and to programs, and one line for each error."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from intaglio.cli.registry import registry_app
from intaglio.errors import EvidenceError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry

KEY = Key(bytes(32))
DIGEST = "0123456789abcdef" * 4
LISTS: dict[str, tuple[Callable[[Registry], Any], str, list[str]]] = {
    "owners": (Registry.owners, "owners", ["public key", KEY.public_key.hex()[:12] + "…", "[bold]Ada"]),
    "models": (Registry.models, "models", ["input shape", "1 x 28 x 28", "10", "host", "0123456789ab…"]),
    "commitments": (Registry.commitments, "commitments", ["model sha256", "mark-1", "yes"]),
    "spent": (Registry.spent_batches, "spent batches", ["batch", "mark-1", "0", "https://example.com/v2"]),
    "verifications": (Registry.verifications, "verifications", ["p value", "90", "100", "1e-70", "yes"]),
    "verdicts": (Registry.verdicts, "verdicts", ["flagged", "0123456789ab…", "0.5", "no"]),
    "checks": (Registry.seal_checks, "seal checks", ["intact", "seal-1", "suspect.onnx", "no"]),
}


def run(*arguments: str) -> int:
    app = typer.Typer()
    app.add_typer(registry_app)
    app.callback()(lambda: None)
    return int(app(["registry", *arguments], standalone_mode=False) or 0)


@pytest.fixture
def empty(tmp_path: Path) -> str:
    Registry.open(tmp_path / "registry.sqlite").close()
    return str(tmp_path / "registry.sqlite")


@pytest.fixture
def filled(empty: str) -> str:
    with Registry.open(empty) as registry:
        registry.add_owner(KEY.public_key, "[bold]Ada")
        registry.add_model(DIGEST, name="host", input_shape=(1, 28, 28), classes=10)
        registry.add_commitment('{"payload": "e30="}', "mark-1", KEY.public_key, DIGEST, stamp=b"\x30\x00")
        registry.spend_batch("mark-1", 0, "https://example.com/v2")
        claim = {"hits": 90, "trials": 100, "p_value": 1e-70, "verified": True}
        registry.record_verification("mark-1", "https://example.com/v2", claim)
        registry.record_verdict(DIGEST, {"flagged": False, "p_value": 0.5})
        registry.record_seal_check("seal-1", "suspect.onnx", {"intact": False})
    return empty


@pytest.mark.parametrize("command", LISTS)
def test_lists(command: str, filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask, _, expected = LISTS[command]
    assert run(command, "--registry", filled) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 2
    squeezed = "".join(printed.split())
    for part in expected:
        assert part.replace(" ", "") in squeezed
    assert run(command, "--registry", filled, "--json", "-") == 0
    captured = capsys.readouterr()
    with Registry.open(filled) as registry:
        records = [record.to_dict() for record in ask(registry)]
    assert json.loads(captured.out) == records
    assert len(records) == 1
    assert captured.err == printed
    assert run(command, "--registry", filled, "--json", str(tmp_path / "out.json"), "--quiet") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == records
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", LISTS)
def test_lists_of_nothing(
    command: str, empty: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTAGLIO_REGISTRY", empty)
    assert run(command) == 0
    assert capsys.readouterr().out == f"{empty}: no {LISTS[command][1]}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["commitments", "--mark", "ID"],
        ["spent", "--mark", "ID"],
        ["verifications", "--mark", "ID"],
        ["verifications", "--suspect", "ID"],
        ["verdicts", "--model", "ID"],
        ["checks", "--seal", "ID"],
        ["checks", "--suspect", "ID"],
    ],
)
def test_filters(arguments: list[str], filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = arguments[1]
    known = {"--mark": "mark-1", "--model": DIGEST, "--seal": "seal-1"}
    suspect = "https://example.com/v2" if arguments[0] == "verifications" else "suspect.onnx"
    for identity, count in ((known.get(option, suspect), 1), ("another", 0)):
        assert run(arguments[0], option, identity, "--registry", filled, "--json", "-", "-q") == 0
        assert len(json.loads(capsys.readouterr().out)) == count


def test_show(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--registry", filled) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"{filled}: version 0001; 1 owners, 1 models, 1 commitments, 1 spent batches, 1 verifications, 1 verdicts, "
    )
    assert "tampered" in printed
    assert run("show", "mark-1", "--limit", "2", "--registry", filled, "--json", "-", "-q") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["counts"]["seal_checks"] == 1
    assert [entry["event"] for entry in content["history"]] == ["spent", "verification"]
    assert run("show", "nobody", "--registry", filled) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_upgrade_makes_a_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "new" / "registry.sqlite")
    for _ in range(2):
        assert run("upgrade", "--registry", place) == 0
        assert capsys.readouterr().out == f"{place}: version 0001\n"
    assert run("upgrade", "--registry", place, "--json", "-", "-q") == 0
    assert json.loads(capsys.readouterr().out)["version"] == "0001"


@pytest.mark.parametrize("command", [*LISTS, "show"])
def test_a_mistyped_name_makes_no_registry(command: str, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="there is no registry yet; `intaglio registry upgrade` makes one"):
        run(command, "--registry", str(tmp_path / "typo.sqlite"))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_registry_pass_through(empty: str) -> None:
    with closing(sqlite3.connect(empty)) as connection:
        connection.execute("UPDATE intaglio_registry_version SET version_num = '0042'")
        connection.commit()
    with pytest.raises(EvidenceError, match="written by a newer intaglio"):
        run("show", "--registry", empty)
    with pytest.raises(EvidenceError, match="port 1 failed") as caught:
        run("upgrade", "--registry", "postgresql+psycopg://ada:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in str(caught.value)
