"""`intaglio key` and `intaglio evidence`: what they print and write, and one line for each thing that is wrong."""

import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import intaglio.evidence.key as key_module
from evidence_cases import BATCH, OWNER, STRANGER, claim, learned, save_suspect, signed, suspect_of
from intaglio.classifiers import Classifier
from intaglio.cli.evidence import evidence_app
from intaglio.cli.key import key_app
from intaglio.cli.main import ExitCode, app, main
from intaglio.cli.passphrase import NEW_VARIABLE, VARIABLE, read_key, read_passphrase
from intaglio.errors import KeyFileError
from intaglio.evidence.bundle import BUNDLE_TYPE, read_bundle
from intaglio.evidence.commitment import SignedCommitment
from intaglio.evidence.envelope import sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.proof import Proof
from intaglio.evidence.suspect import Suspect
from time_authority import Authority, needs_openssl, openssl, serving

for _sub_app in (key_app, evidence_app):
    if _sub_app not in [group.typer_instance for group in app.registered_groups]:
        app.add_typer(_sub_app)

PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_module, "_COST", {"n": 4, "r": 8, "p": 1})
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(NEW_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin", StringIO())


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: one line, and nothing on standard output."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("intaglio: ")
    assert printed.err.count("\n") == 1
    return printed.err


def written(path: Path, text: str = PASSPHRASE + "\n") -> str:
    path.write_text(text)
    return str(path)


def saved(folder: Path, key: Key = OWNER) -> str:
    key.save(folder / "owner.key", passphrase=PASSPHRASE)
    return str(folder / "owner.key")


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_new_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, word = tmp_path / "owner.key", written(tmp_path / "word")
    assert main(["key", "new", str(path), "--passphrase-file", word]) == ExitCode.CLEAN
    key = Key.load(path, passphrase=PASSPHRASE)
    printed = capsys.readouterr()
    assert printed.out == f"{path}: public key {key.public_key.hex()}\nfingerprint {key.fingerprint}\n"
    assert printed.err == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["key", "show", str(path), "--json", "-", "-q"]) == ExitCode.CLEAN
    facts = {"file": str(path), "public_key": key.public_key.hex(), "fingerprint": key.fingerprint}
    assert json.loads(capsys.readouterr().out) == facts


def test_a_key_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(saved(tmp_path))
    before = path.read_bytes()
    assert main(["key", "new", str(path), "--passphrase-file", written(tmp_path / "word")]) == ExitCode.ERROR
    assert "owner.key exists already, and a key that is overwritten is lost" in only_line(capsys)
    assert path.read_bytes() == before


def test_rotation_keeps_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old, new = saved(tmp_path), written(tmp_path / "old"), written(tmp_path / "new", "staple\r\n")
    arguments = ["key", "rotate", path, "--passphrase-file", old, "--new-passphrase-file", new, "--json", "-"]
    assert main(arguments) == ExitCode.CLEAN
    assert json.loads(capsys.readouterr().out)["fingerprint"] == OWNER.fingerprint
    assert Key.load(path, passphrase="staple") == OWNER
    monkeypatch.setenv(VARIABLE, "staple")
    monkeypatch.setenv(NEW_VARIABLE, "battery")
    assert main(["key", "rotate", path, "-q"]) == ExitCode.CLEAN
    assert capsys.readouterr() == ("", "")
    assert Key.load(path, passphrase="battery") == OWNER


def test_show_checks_the_passphrase_if_one_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    assert main(["key", "show", path]) == ExitCode.CLEAN
    assert OWNER.fingerprint in capsys.readouterr().out
    assert main(["key", "show", path, "--passphrase-file", written(tmp_path / "right")]) == ExitCode.CLEAN
    capsys.readouterr()
    wrong = written(tmp_path / "wrong", "wrong")
    assert main(["key", "show", path, "--passphrase-file", wrong]) == ExitCode.ERROR
    assert only_line(capsys) == f"intaglio: {path}: wrong passphrase, or the file was changed\n"


def truncated(folder: Path) -> list[str]:
    path = Path(saved(folder))
    path.write_bytes(path.read_bytes()[:100])
    return ["show", str(path)]


def absurd(folder: Path) -> list[str]:
    path = Path(saved(folder))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n": 1 << 50}))
    return ["rotate", str(path), "--passphrase-file", written(folder / "word")]


def rotate(folder: Path, old: str = PASSPHRASE, new: str = "new") -> list[str]:
    words = ["--passphrase-file", written(folder / "old", old), "--new-passphrase-file", written(folder / "new", new)]
    return ["rotate", saved(folder), *words]


def with_passphrase(content: bytes) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "word").write_bytes(content)
        return ["new", str(folder / "owner.key"), "--passphrase-file", str(folder / "word")]

    return arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: ["show", str(folder / "absent.key")], "absent.key: can't be read: No such file or directory"),
        (truncated, "owner.key: not an intaglio key file, or damaged"),
        (absurd, "owner.key: asks for an unreasonable scrypt cost"),
        (lambda folder: rotate(folder, old="wrong"), "owner.key: wrong passphrase, or the file was changed"),
        (lambda folder: rotate(folder, new=""), "a key file needs a passphrase that is not empty"),
        (lambda folder: ["new", str(folder / "k")], f"no passphrase: name a file that holds it, or set {VARIABLE}"),
        (lambda folder: ["rotate", saved(folder)], f"no passphrase: name a file that holds it, or set {VARIABLE}"),
        (lambda folder: ["rotate", *rotate(folder)[1:4]], f"or set {NEW_VARIABLE}"),
        (lambda folder: ["new", str(folder / "k"), "--passphrase-file", "absent"], "absent: can't be read: No such"),
        (with_passphrase(b"\xff\xfe"), "word: the passphrase is not UTF-8 text"),
        (with_passphrase(b"x" * 5000), "word: larger than 4096 bytes, which is no passphrase"),
        (with_passphrase(b"\n"), "a key file needs a passphrase that is not empty"),
    ],
)
def test_what_goes_wrong_with_keys(
    arguments: Callable[[Path], list[str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["key", *arguments(tmp_path)]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(given) == ExitCode.ERROR
    assert message in only_line(capsys)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_passphrase_is_no_plain_argument(tmp_path: Path) -> None:
    assert main(["key", "new", str(tmp_path / "k"), "--passphrase", "secret"]) == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


def test_read_key_asks_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(saved(tmp_path))
    monkeypatch.setenv(VARIABLE, PASSPHRASE)
    assert read_key(path, None) == OWNER
    monkeypatch.setenv(VARIABLE, "wrong")
    assert read_key(path, Path(written(tmp_path / "word"))) == OWNER  # a file comes first
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        read_key(path, None)


def test_a_terminal_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, bool]]] = []

    def prompt(text: str, **options: bool) -> str:
        asked.append((text, options))
        return PASSPHRASE

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", prompt)
    assert read_key(Path(saved(tmp_path)), None) == OWNER
    assert asked == [("Passphrase", {"hide_input": True, "confirmation_prompt": False, "err": True})]
    with pytest.raises(KeyFileError, match=r"absent\.key: can't be read"):
        read_key(tmp_path / "absent.key", None)
    assert len(asked) == 1  # nobody types for a file that is not there


def test_only_one_line_break_is_cut_off(tmp_path: Path) -> None:
    for text, expected in (("a b \n", "a b "), ("a\n\n", "a\n"), ("a\r\n", "a"), ("é", "é")):
        (tmp_path / "word").write_bytes(text.encode())
        assert read_passphrase(tmp_path / "word") == expected


def test_a_typed_passphrase_is_not_shown(tmp_path: Path) -> None:
    """At a real terminal: asked for twice, never echoed."""
    path = tmp_path / "owner.key"
    script = (
        "import intaglio.evidence.key as k; k._COST = {'n': 4, 'r': 8, 'p': 1}\n"
        "import sys, typer; from intaglio.cli.key import key_app\n"
        "typer.Typer().add_typer(key_app); key_app(['new', sys.argv[1]])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    for expected in (b"New passphrase: ", b"Repeat for confirmation: "):
        while not shown.endswith(expected):
            shown += os.read(ours, 1)
        os.write(ours, PASSPHRASE.encode() + b"\n")
    with contextlib.suppress(OSError):  # raised on Linux once the terminal is closed
        while part := os.read(ours, 1000):
            shown += part
    assert process.wait() == 0
    os.close(ours)
    assert PASSPHRASE.encode() not in shown
    assert Key.load(path, passphrase=PASSPHRASE).fingerprint.encode() in shown


# --- evidence --------------------------------------------------------------------------------------------------------


def test_a_claim_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = claim(tmp_path / "claim.json")
    assert main(["evidence", "verify", str(path)]) == ExitCode.CLEAN
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "The suspect was not asked; on the claimant's word for its answers, verified: 24 of 24 triggers answered as "
        "committed; by chance p = 1e-24"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["  checked"] * 4 + ["  NOT verified"] * 6
    assert main(["evidence", "verify", str(path), "--json", str(tmp_path / "proof.json"), "-q"]) == ExitCode.CLEAN
    assert capsys.readouterr() == ("", "")
    assert Proof.from_json((tmp_path / "proof.json").read_text()).hits == BATCH
    assert main(["evidence", "verify", str(path), "--json", "-"]) == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert Proof.from_json(printed.out).verified
    assert printed.err.startswith("The suspect was not asked; ")


def test_a_claim_below_its_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = claim(tmp_path / "claim.json", hits=12)
    assert main(["evidence", "verify", str(path)]) == ExitCode.FOUND
    assert capsys.readouterr().out.startswith("Not verified: 12 of 24")


def test_a_claimants_weak_rule_convicts_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine hits of 24 in an innocent model: a rule of 0.01 would claim it, and a few hundred keys find such."""
    weak = signed(threshold=0.01)
    path, model = claim(tmp_path / "claim.json", commitment=weak, hits=9), tmp_path / "innocent.onnx"
    save_suspect(model, learned(weak, hits=9))
    command = ["evidence", "verify", str(path), "--suspect", str(model)]
    assert main(command) == ExitCode.FOUND
    printed = capsys.readouterr().out
    assert printed.startswith("Not verified: 9 of 24 triggers")
    assert "  checked: decided at p <= 5.4e-20: the claimant's own threshold, 0.01, is laxer\n" in printed
    assert main([*command, "--threshold", "0.02"]) == ExitCode.CLEAN
    assert "NOT verified: you and the claimant chose a weak threshold, 0.01" in capsys.readouterr().out
    assert main([*command, "--threshold", "1e-4"]) == ExitCode.FOUND
    for nonsense in ("0", "1", "nan"):
        assert main([*command, "--threshold", nonsense]) == ExitCode.USAGE


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any, **__: Any) -> Classifier:
        raise AssertionError("the suspect was opened")

    monkeypatch.setattr("intaglio.classifiers.open_classifier", opened)
    path = claim(tmp_path / "claim.json")
    before = path.read_bytes()
    more = ["--suspect", "http://127.0.0.1:9/m"] if command == "verify" else ["--extract", str(tmp_path / "parts")]
    assert main(["evidence", command, str(path), *more, "--json", str(tmp_path)]) == ExitCode.ERROR
    assert "it is a folder" in only_line(capsys)
    assert main(["evidence", command, str(path), *more, "--json", str(path)]) == ExitCode.USAGE
    assert "would be written over" in capsys.readouterr().err
    assert [path] == list(tmp_path.iterdir())
    assert path.read_bytes() == before


@pytest.mark.parametrize(("hits", "code"), [(BATCH, ExitCode.CLEAN), (2, ExitCode.FOUND)])
def test_the_suspect_is_asked_again(
    hits: int, code: ExitCode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = claim(tmp_path / "claim.json"), tmp_path / "rival.onnx"
    save_suspect(model, learned(signed(), hits=hits))
    assert main(["evidence", "verify", str(path), "--suspect", str(model), "--device", "cpu"]) == code
    assert f"rival.onnx was asked again: {hits} hits, {BATCH - hits} answers differ" in capsys.readouterr().out


def test_a_suspect_behind_an_api_of_its_own_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The API says neither what it takes nor how many classes it knows: the commitment does."""
    path, mapping = claim(tmp_path / "claim.json"), tmp_path / "api.yaml"
    mapping.write_text("request: {instances: '{images}'}\nencoding: floats\nanswer: labels\ngives: labels\n")
    asked: dict[str, Any] = {}

    def opened(url: str, **options: Any) -> Classifier:
        asked.update(options, url=url)
        return suspect_of(learned(signed()))

    monkeypatch.setattr("intaglio.classifiers.open_classifier", opened)
    arguments = ["--suspect", "http://127.0.0.1:9/classify", "--mapping", str(mapping)]
    assert main(["evidence", "verify", str(path), *arguments]) == ExitCode.CLEAN
    assert f"asked again: {BATCH} hits" in capsys.readouterr().out
    plan = signed().commitment
    assert (asked["url"], asked["mapping"]) == ("http://127.0.0.1:9/classify", mapping)
    assert (asked["input_shape"], asked["num_classes"]) == (plan.input_shape, plan.num_classes)


@needs_openssl
def test_time_stamps_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    with serving(authority) as server:
        stamped = signed().stamped(server.url)
    stamped.write(tmp_path / "c.json")
    path = claim(tmp_path / "claim.json", commitment=stamped)
    for file, code in ((tmp_path / "c.json", ExitCode.CLEAN), (path, ExitCode.CLEAN)):
        assert main(["evidence", "verify", str(file), "--roots", str(authority.root)]) == code
        assert "(time stamp)" in capsys.readouterr().out
    late = ["--roots", str(authority.root), "--before", "2020-01-01"]
    assert main(["evidence", "verify", str(path), *late]) == ExitCode.FOUND
    assert "no trusted stamp shows that the commitment was made before 2020-01-01" in capsys.readouterr().out
    assert main(["evidence", "show", str(path), "--extract", str(tmp_path / "parts"), "-q"]) == ExitCode.CLEAN
    parts = tmp_path / "parts"
    openssl("ts", "-verify", "-data", parts / "envelope.json", "-in", parts / "stamp.tsr", "-CAfile", authority.root)


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed().write(tmp_path / "c.json")
    claim(tmp_path / "claim.json")
    assert main(["evidence", "show", str(tmp_path / "c.json")]) == ExitCode.CLEAN
    shown = capsys.readouterr().out
    assert shown.startswith(f"commitment, signed by key {OWNER.fingerprint}\n")
    assert "deep-fidelity, fixll-pfl; noise-chain triggers, 3 batches of 24" in shown
    assert main(["evidence", "show", str(tmp_path / "claim.json"), "--json", "-"]) == ExitCode.CLEAN
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert (facts["kind"], facts["claim"]["hits"], facts["disclosed_batch"]) == ("claim", BATCH, 1)
    assert facts["suspect"] in printed.err
    assert main(["evidence", "verify", str(tmp_path / "c.json")]) == ExitCode.CLEAN
    assert capsys.readouterr().out.startswith("Verified: a genuine commitment. It claims nothing about any suspect.")


def commitment_by(change: Callable[[SignedCommitment], Any]) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "c.json").write_text(json.dumps(change(signed())))
        return [str(folder / "c.json")]

    return arguments


def foreign(commitment: SignedCommitment) -> dict[str, Any]:
    statement = commitment.envelope.unverified()
    envelope = sign_statement(STRANGER, statement.subjects, statement.predicate_type, statement.predicate)
    return {"envelope": envelope.to_dict()}


def changed(commitment: SignedCommitment) -> dict[str, Any]:
    payload = commitment.envelope.payload
    other = "A" if payload[100] != "A" else "B"
    envelope = commitment.envelope.to_dict() | {"payload": payload[:100] + other + payload[101:]}
    return {"envelope": envelope}


def raw(content: bytes) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "x.json").write_bytes(content)
        return [str(folder / "x.json")]

    return arguments


def lying(folder: Path) -> list[str]:
    path = claim(folder / "claim.json", hits=3)
    bundle = read_bundle(path).bundle.to_dict()
    bundle["claim"]["hits"] = 24
    subjects = {"model": signed().commitment.model_sha256}
    path.write_bytes(sign_statement(OWNER, subjects, BUNDLE_TYPE, bundle).to_bytes())
    return [str(path)]


def other_suspect(folder: Path) -> list[str]:
    path = claim(folder / "claim.json", suspect=Suspect(source="m.onnx", sha256="00" * 32))
    return [str(path), "--suspect", str(save_suspect(folder / "rival.onnx", learned(signed())))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (commitment_by(foreign), "c.json: signed by key"),
        (commitment_by(changed), "c.json: "),
        (raw(b"{"), "x.json: damaged, or not JSON"),
        (raw(b'{"envelope": NaN}'), "x.json: damaged, or not JSON (NaN is not a JSON number)"),
        (raw(b"[" * 100000), "x.json: damaged, or not JSON"),
        (raw(b"\x89PNG"), "x.json: damaged, or not JSON"),
        (lambda folder: [str(folder / "absent")], "absent: can't be read: No such file or directory"),
        (lambda folder: [str(folder)], "can't be read: Is a directory"),
        (lying, "claim.json: 24 hits are claimed, but the answers hold 3"),
        (other_suspect, "the claim is about a model with SHA-256 0000000000000000..., but "),
        (lambda folder: [str(claim(folder / "c")), "--suspect", str(folder / "none.onnx")], "none.onnx"),
        (lambda folder: [str(claim(folder / "c")), "--roots", str(folder / "r.pem")], "r.pem: can't be read"),
        (
            lambda folder: [str(claim(folder / "c")), "--roots", written(folder / "r.pem", "not PEM")],
            "r.pem: holds no PEM certificates",
        ),
    ],
)
def test_what_goes_wrong_with_evidence(
    arguments: Callable[[Path], list[str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evidence", "verify", *arguments(tmp_path)]) == ExitCode.ERROR
    assert message in only_line(capsys)


def test_a_file_of_any_size_is_read_up_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from intaglio.evidence import documents

    monkeypatch.setattr(documents, "SIZE_LIMIT", 3000)
    assert main(["evidence", "verify", str(claim(tmp_path / "claim.json"))]) == ExitCode.ERROR
    assert "claim.json: larger than 3000 bytes" in only_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["key", "--help"], "rotate"),
        (["key", "new", "--help"], "--passphrase-file"),
        (["key", "rotate", "--help"], "--new-passphrase-file"),
        (["evidence", "verify", "--help"], "--suspect"),
        (["evidence", "show", "--help"], "--extract"),
    ],
)
def test_help(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.CLEAN
    assert expected in capsys.readouterr().out


def test_strangers_files_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "claim.json"
    path.write_bytes(sign_statement(OWNER, {"m": "ab" * 32}, "\x1b[2K\x1b[1GVerified\u202e", {}).to_bytes())
    assert main(["evidence", "verify", str(path)]) == ExitCode.ERROR
    said = only_line(capsys)
    assert said.rstrip("\n").isprintable()
    assert "Verified" in said


def test_parts_are_not_extracted_over_what_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "envelope.json"
    signed().write(path)
    before = path.read_bytes()
    assert main(["evidence", "show", str(path), "--extract", str(tmp_path)]) == ExitCode.ERROR
    assert "it is what is read here, and would be lost" in only_line(capsys)
    assert path.read_bytes() == before


def test_what_a_stranger_calls_a_suspect_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed = claim(tmp_path / "claim.json", suspect=Suspect(source="a\u202exno.b\u2028Verified"))
    assert main(["evidence", "show", str(claimed)]) == ExitCode.CLEAN
    shown = capsys.readouterr().out
    assert "suspect    a xno.b Verified" in shown
    assert not {"\u202e", "\u2028"} & set(shown)
