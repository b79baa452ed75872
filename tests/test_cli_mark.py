"""`intaglio mark embed` and `verify`: files, exit codes, the registry's memory, and one line for all that is wrong."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import intaglio.evidence.key as key_module
from classifier_models import onnx_linear
from http_servers import Asked, serving
from intaglio.classifiers import Sidecar, open_classifier, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.cli.passphrase import VARIABLE
from intaglio.data.photos import public_photos
from intaglio.errors import EvidenceError
from intaglio.evidence.commitment import read_commitment
from intaglio.evidence.proof import Proof, verify_bundle
from intaglio.evidence.registry import Registry
from intaglio.files import sha256_file
from intaglio.mark import OwnershipClaim, verify_mark
from intaglio.mark import mark_file as mark_file_module
from intaglio.mark.fidelity_report import FidelityReport
from mark_models import ARCHITECTURE, CLASSES, DATA, OWNER, SHAPE, STRANGER, TEST, host, known_network
from scan_models import MODELS
from time_authority import Authority, needs_openssl
from time_authority import serving as serving_time

PASSPHRASE = "correct horse"
MAPPING = """
request: {pictures: "{images}"}
encoding: floats
batch: 20
answer: classes
gives: labels
"""
TRIGGERS = 60
#: Enough to learn most of two batches of 60.
LEARN = ("--batch-size", str(TRIGGERS), "--epochs", "60", "--learning-rate", "0.01",
         "--option", "pfl_weight=5", "--option", "triggers_per_batch=40")  # fmt: skip
HASTY = ("--batch-size", "5", "--batches", "1", "--epochs", "1")
WRITTEN = {"model.safetensors", "model.intaglio.json", "commitment.json", "fidelity.json", "fidelity.html"}


@pytest.fixture(scope="module", autouse=True)
def _tiny_and_cheap() -> Iterator[None]:
    with known_network(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_module, "_COST", {"n": 4, "r": 8, "p": 1})
        patch.setenv(VARIABLE, PASSPHRASE)
        patch.setattr("sys.stdin", StringIO())
        yield


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Each test's own, by default."""
    path = tmp_path / "registry.sqlite"
    monkeypatch.setenv("INTAGLIO_REGISTRY", str(path))
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, its data, two keys and a stranger's model, as files."""
    folder = tmp_path_factory.mktemp("given")
    names = tuple("abcdefghij")
    save_classifier(host(), folder / "host.safetensors", Sidecar(architecture=ARCHITECTURE, task="rows", classes=names))
    save_classifier(host(1), folder / "other.safetensors", Sidecar(architecture=ARCHITECTURE))
    arrays = {"x_train": DATA.images, "y_train": DATA.labels, "x_test": TEST.images, "y_test": TEST.labels}
    np.savez(folder / "rows.npz", allow_pickle=False, **{name: value.numpy() for name, value in arrays.items()})
    OWNER.save(folder / "owner.key", passphrase=PASSPHRASE)
    STRANGER.save(folder / "stranger.key", passphrase=PASSPHRASE)
    return folder


def embed(given: Path, out: Path, *more: str, model: str | None = None) -> int:
    named = ["--data", str(given / "rows.npz"), "--key", str(given / "owner.key"), "--out", str(out)]
    return main(["mark", "embed", model or str(given / "host.safetensors"), *named, *more])


@pytest.fixture(scope="module")
def marked(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a mark with two batches, registered nowhere."""
    out = tmp_path_factory.mktemp("marked")
    assert embed(given, out, "-q", "--onnx", *LEARN) == ExitCode.CLEAN
    return out


def verify(given: Path, marked: Path, suspect: str | Path, *more: str, key: str = "owner.key") -> int:
    commitment = ["--commitment", str(marked / "commitment.json")]
    return main(["mark", "verify", str(suspect), *commitment, "--key", str(given / key), *more])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("intaglio: ")
    assert printed.err.count("\n") == 1
    return printed.err


# --- embed -----------------------------------------------------------------------------------------------------------


def test_embed_writes_and_says_what_it_did(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert embed(given, out, *HASTY, "--seed", "3") == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert {path.name for path in out.iterdir()} == WRITTEN
    report = FidelityReport.from_json((out / "fidelity.json").read_text())
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert lines == [
        f"{out / 'model.safetensors'}: marked; {report.trigger_accuracy:.1%} of 5 triggers answered as committed",
        f"accuracy {report.host_accuracy:.2%}, now {report.clean_accuracy:.2%}; "
        f"{report.agreement_clean:.1%} of the images answered as before",
        f"{out / 'commitment.json'}: publish it or time-stamp it (evidence stamp) before any dispute",
        f"{out / 'fidelity.html'} shows what changed",
        "NOT LEARNED: `mark verify` would claim this model by no batch: take more --epochs, or a larger --batch-size",
        "batches of 5 are too small for others, who decide by 2^-64: that takes 20 (--batch-size)",
    ]
    assert (report.images, report.triggers, report.scheme, report.mode) == (100, 5, "deep-fidelity", "fixll-pfl")
    commitment = read_commitment(out / "commitment.json")
    commitment.verify()
    plan = commitment.commitment
    assert plan.model_sha256 == sha256_file(out / "model.safetensors")
    assert (plan.owner_public_key, plan.input_shape, plan.num_classes) == (OWNER.public_key.hex(), SHAPE, CLASSES)
    assert (plan.batches, plan.batch_size, plan.rule.threshold) == (1, 5, 2.0**-64)
    copied = open_classifier(out / "model.safetensors")
    assert (copied.task, copied.classes) == ("rows", tuple("abcdefghij"))
    assert not (tmp_path / "registry.sqlite").exists()  # nothing is registered unasked


def test_embed_says_whether_its_own_mark_would_be_claimed(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def claims(*missed: int) -> None:
        def asked(*given: Any, batch: int, **options: Any) -> OwnershipClaim:
            claim = verify_mark(*given, batch=batch, **options)
            return claim.model_copy(update={"verified": batch not in missed})

        monkeypatch.setattr(mark_file_module, "verify_mark", asked)

    for missed, told in (((), ""), ((1,), "by 1 of 2 batches only"), ((0, 1), "by no batch")):
        claims(*missed)
        assert embed(given, tmp_path / str(missed), *HASTY[:2], "--epochs", "1") == ExitCode.CLEAN
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOT LEARNED")]
        assert len(said) == bool(missed)
        assert all(told in line for line in said)


def test_embed_gives_json(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(given, tmp_path / "out", *HASTY, "--json", "-") == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert FidelityReport.from_json(printed.out).triggers == 5
    assert "model.safetensors: marked" in printed.err
    assert embed(given, tmp_path / "again", *HASTY, "--json", str(tmp_path / "r.json"), "-q") == ExitCode.CLEAN
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "r.json").read_text() == FidelityReport.from_json((tmp_path / "r.json").read_text()).to_json()


def test_options_of_embed_reach_the_mark(given: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "public.npz", allow_pickle=False, x_train=public_photos(SHAPE, 9).numpy(), y_train=np.arange(9))
    blend = ["--trigger", "public-blend", "--public", str(tmp_path / "public.npz")]
    options = ["--scheme", "margin", "--mode", "ftal", "--batches", "3", "--batch-size", "4", "--threshold", "1e-3"]
    assert embed(given, tmp_path / "out", "-q", "--epochs", "1", *options, *blend) == ExitCode.CLEAN
    plan = read_commitment(tmp_path / "out" / "commitment.json").commitment
    assert (plan.scheme, plan.mode, plan.trigger, plan.batches, plan.batch_size, plan.rule.threshold) == (
        "margin", "ftal", "public-blend", 3, 4, 1e-3,
    )  # fmt: skip
    suspect = tmp_path / "out" / "model.safetensors"
    public = ["--public", str(tmp_path / "public.npz"), "-q"]
    assert verify(given, tmp_path / "out", suspect, *public) in (ExitCode.CLEAN, ExitCode.FOUND)
    assert verify(given, tmp_path / "out", suspect, "-q") == ExitCode.ERROR


def test_a_state_dict_with_its_architecture_is_marked(given: Path, tmp_path: Path) -> None:
    torch.save(host().state_dict(), tmp_path / "host.pt")
    told = ["--arch", "tiny", "--input-shape", "1,12,12", "--classes", "10", "--preprocess", '{"scale": 0.5}']
    assert embed(given, tmp_path / "out", *HASTY, *told, "-q", model=str(tmp_path / "host.pt")) == ExitCode.CLEAN
    copied = open_classifier(tmp_path / "out" / "model.safetensors")
    assert copied.preprocessing.scale == 0.5


def test_embed_registers_the_mark(given: Path, tmp_path: Path, registry: Path) -> None:
    assert embed(given, tmp_path / "out", *HASTY, "-q", "--registry", str(registry)) == ExitCode.CLEAN
    commitment = read_commitment(tmp_path / "out" / "commitment.json")
    plan = commitment.commitment
    with Registry.open(registry, create=False) as book:
        assert [owner.public_key for owner in book.owners()] == [OWNER.public_key.hex()]
        (model,) = book.models()
        assert (model.sha256, model.input_shape, model.classes) == (plan.model_sha256, SHAPE, CLASSES)
        (entry,) = book.commitments()
        assert (entry.mark_id, entry.envelope) == (plan.mark_id, commitment.to_json())


def test_embed_writes_onnx_too(marked: Path) -> None:
    assert {path.name for path in marked.iterdir()} == WRITTEN | {"model.onnx"}
    one, other = (open_classifier(marked / name) for name in ("model.onnx", "model.safetensors"))
    torch.testing.assert_close(one.scores(TEST.images), other.scores(TEST.images), atol=1e-4, rtol=1e-4)


@needs_openssl
def test_embed_stamps_the_commitment(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tsa").mkdir()
    authority = Authority(tmp_path / "tsa")
    with serving_time(authority) as server:
        assert embed(given, tmp_path / "out", *HASTY, "-q", "--stamp", server.url) == ExitCode.CLEAN
        late, book = tmp_path / "late", ["--registry", str(tmp_path / "book.sqlite")]
        assert embed(given, late, *HASTY, "-q", *book, "--stamp", f"{server.url}/broken") == ExitCode.ERROR
        line = only_line(capsys)
        assert line.endswith("/broken: answers 500 Internal Server Error\n")
        assert f"marked, but the commitment has no time stamp, which `intaglio evidence stamp {late}" in line
        assert {path.name for path in late.iterdir()} == WRITTEN
        assert read_commitment(late / "commitment.json").time_stamp is None
        assert verify(given, late, late / "model.safetensors", "-q") in (ExitCode.CLEAN, ExitCode.FOUND)
        stamp = ["evidence", "stamp", str(late / "commitment.json"), "--authority", server.url, *book, "-q"]
        assert main(stamp) == ExitCode.CLEAN
    assert read_commitment(late / "commitment.json").verify(authority.root.read_bytes()) is not None
    roots = ["--roots", str(authority.root)]
    assert main(["evidence", "verify", str(tmp_path / "out" / "commitment.json"), *roots]) == ExitCode.CLEAN
    assert "(time stamp)" in capsys.readouterr().out


@needs_openssl
def test_a_commitment_is_stamped_at_once_or_later_and_the_registry_keeps_it(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tsa").mkdir()
    authority, book = Authority(tmp_path / "tsa"), ["--registry", str(tmp_path / "book.sqlite")]
    with serving_time(authority) as server:
        assert embed(given, tmp_path / "now", *HASTY, "-q", *book, "--stamp", server.url) == ExitCode.CLEAN
        assert embed(given, tmp_path / "later", *HASTY, "-q", *book) == ExitCode.CLEAN
        later = str(tmp_path / "later" / "commitment.json")
        before = Path(later).read_bytes()
        with Registry.open(tmp_path / "book.sqlite", create=False) as opened:
            assert [entry.stamp is not None for entry in opened.commitments()] == [True, False]
        assert main(["evidence", "stamp", later, "--authority", f"{server.url}/broken", *book]) == ExitCode.ERROR
        assert only_line(capsys).endswith("/broken: answers 500 Internal Server Error\n")
        assert Path(later).read_bytes() == before
        assert main(["evidence", "stamp", later, "--authority", server.url, *book]) == ExitCode.CLEAN
        assert capsys.readouterr().out == f"{later}: time-stamped by {server.url}\n"
        assert main(["evidence", "stamp", later, "--authority", server.url]) == ExitCode.ERROR
        assert only_line(capsys).endswith("has a time stamp already, and the earliest counts\n")
        stamped = Path(later).read_bytes()
        other = ["--registry", str(tmp_path / "other.sqlite")]
        assert main(["evidence", "stamp", later, "--authority", server.url, *other]) == ExitCode.ERROR
        assert "has no commitment in the registry" in only_line(capsys)
        assert main(["evidence", "stamp", later, "--authority", server.url, *book, "-q"]) == ExitCode.CLEAN
        assert Path(later).read_bytes() == stamped
    with Registry.open(tmp_path / "book.sqlite", create=False) as opened:
        stamps = [entry.stamp for entry in opened.commitments()]
    kept = [read_commitment(tmp_path / name / "commitment.json").time_stamp for name in ("now", "later")]
    assert stamps == kept
    assert main(["evidence", "verify", later, "--roots", str(authority.root)]) == ExitCode.CLEAN
    assert "(time stamp)" in capsys.readouterr().out


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_copy_is_verified(given: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suspect = tmp_path / "found.safetensors"
    for name in ("safetensors", "intaglio.json"):
        shutil.copy(marked / f"model.{name}", tmp_path / f"found.{name}")
    assert verify(given, marked, suspect) == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{suspect}: Verified: this is a copy of the marked model. ")
    assert printed.err == ""
    assert verify(given, marked, suspect, "--json", "-") == ExitCode.CLEAN
    printed = capsys.readouterr()
    claim = OwnershipClaim.from_json(printed.out)
    assert (claim.verified, claim.trials, claim.queries, claim.batch) == (True, TRIGGERS, TRIGGERS, 0)
    assert claim.suspect_sha256 == sha256_file(suspect)
    assert "Verified" in printed.err
    assert verify(given, marked, suspect, "--json", str(tmp_path / "c.json"), "--quiet") == ExitCode.CLEAN
    assert capsys.readouterr() == ("", "")
    again = OwnershipClaim.from_json((tmp_path / "c.json").read_text())
    assert again.answers == claim.answers


def test_a_stranger_is_not(given: Path, marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(given, marked, given / "other.safetensors") == ExitCode.FOUND
    printed = capsys.readouterr().out
    assert "other.safetensors: Not verified: " in printed
    assert printed.endswith("That does not show that the suspect is no copy.\n")
    assert verify(given, marked, given / "host.safetensors", "-q") == ExitCode.FOUND


def test_what_was_tried_is_remembered(given: Path, marked: Path, registry: Path, tmp_path: Path) -> None:
    """Every further suspect of a mark, and every further mark on a suspect, counts; the same again does not."""
    shown = tmp_path / "claim.json"

    def tried(suspect: Path, folder: Path = marked, *more: str) -> tuple[int, int]:
        assert verify(given, folder, suspect, "--json", str(shown), "-q", *more) in (ExitCode.CLEAN, ExitCode.FOUND)
        claim = OwnershipClaim.from_json(shown.read_text())
        return claim.suspects, claim.keys

    other, copied = given / "other.safetensors", marked / "model.safetensors"
    assert tried(other) == (1, 1)
    assert tried(copied) == (2, 1)
    assert tried(other) == (2, 1)
    assert embed(given, tmp_path / "second", *HASTY, "-q") == ExitCode.CLEAN
    assert tried(other, tmp_path / "second") == (1, 2)
    assert tried(copied, marked, "--suspects", "50", "--keys", "7") == (50, 7)
    elsewhere = tmp_path / "elsewhere.safetensors"
    for suffix in ("safetensors", "intaglio.json"):
        shutil.copy(other.with_suffix(f".{suffix}"), elsewhere.with_suffix(f".{suffix}"))
    assert tried(elsewhere) == (2, 2)  # another path, but the same file
    save_classifier(host(2), elsewhere, Sidecar(architecture=ARCHITECTURE))
    assert tried(elsewhere) == (3, 1)  # the same path, but another model
    with Registry.open(registry, create=False) as book:
        entries = book.verifications()
        assert [Path(entry.suspect).name for entry in entries] == [
            "other.safetensors", "model.safetensors", "other.safetensors", "other.safetensors", "model.safetensors",
            "elsewhere.safetensors", "elsewhere.safetensors",
        ]  # fmt: skip
        assert [entry.verified for entry in entries] == [False, True, False, False, True, False, False]
        assert book.spent_batches() == ()


def test_a_bundle_lays_its_batch_open(
    given: Path, marked: Path, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suspect, first, second = marked / "model.safetensors", tmp_path / "one.json", tmp_path / "two.json"
    assert verify(given, marked, suspect, "-q", "--bundle", str(first)) == ExitCode.CLEAN
    assert main(["evidence", "verify", str(first), "--suspect", str(suspect), "--json", "-", "-q"]) == ExitCode.CLEAN
    proof = Proof.from_json(capsys.readouterr().out)
    assert (proof.verified, proof.trials, proof.suspect_sha256) == (True, TRIGGERS, sha256_file(suspect))

    assert verify(given, marked, suspect, "--batch", "0") == ExitCode.ERROR
    assert only_line(capsys) == (
        "intaglio: batch 0 is spent: its triggers were laid open, so they prove nothing any more\n"
    )
    assert verify(given, marked, suspect, "--bundle", str(second), "--json", str(tmp_path / "c.json")) == ExitCode.CLEAN
    assert OwnershipClaim.from_json((tmp_path / "c.json").read_text()).batch == 1
    capsys.readouterr()
    assert verify(given, marked, suspect) == ExitCode.ERROR
    assert "all 2 batches of mark" in only_line(capsys)
    with Registry.open(registry, create=False) as book:
        assert [entry.batch for entry in book.spent_batches()] == [0, 1]
    assert verify(given, marked, suspect, "-q", "--registry", str(tmp_path / "elsewhere.sqlite")) == ExitCode.CLEAN


def test_a_batch_is_not_spent_on_a_bundle_that_cannot_be_made(
    given: Path, marked: Path, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A machine that draws another trigger than the committed one notices that before anybody is asked."""

    def other_root(_: object) -> bytes:
        return bytes(32)

    monkeypatch.setattr("intaglio.evidence.disclosure.merkle_root", other_root)
    suspect, bundle = marked / "model.safetensors", tmp_path / "claim.json"
    assert verify(given, marked, suspect, "-q", "--bundle", str(bundle)) == ExitCode.ERROR
    assert "are not those committed to" in only_line(capsys)
    assert not bundle.exists()
    with Registry.open(registry) as book:
        assert book.spent_batches() == ()
        assert book.verifications() == ()  # nobody was asked
    assert verify(given, marked, suspect, "-q") == ExitCode.CLEAN  # which lays nothing open


def test_no_batch_is_spent_on_a_stranger(
    given: Path, marked: Path, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "claim.json"
    assert verify(given, marked, given / "other.safetensors", "--bundle", str(bundle)) == ExitCode.FOUND
    claimed, kept = capsys.readouterr().out.splitlines()
    assert "other.safetensors: Not verified: " in claimed
    assert kept == f"{bundle}: not written; batch 0 is kept, as only a verified claim is worth laying it open"
    assert not bundle.exists()
    with Registry.open(registry, create=False) as book:
        assert book.spent_batches() == ()
        assert [entry.verified for entry in book.verifications()] == [False]


@pytest.mark.parametrize("option", ["--bundle", "--json"])
def test_verifying_never_writes_over_what_cannot_be_made_again(
    option: str, given: Path, marked: Path, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither an older claim, whose batch is spent, nor the key."""
    shutil.copy(given / "owner.key", tmp_path / "owner.key")
    (tmp_path / "claim.json").write_text("the first")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    key, claim_file = str(tmp_path / "owner.key"), str(tmp_path / "claim.json")
    suspect = marked / "model.safetensors"
    if option == "--bundle":
        for name in (key, claim_file):
            assert verify(given, marked, suspect, "--bundle", name, "--key", key) == ExitCode.ERROR
            assert f"{name} exists already, and a claim that is overwritten is lost" in only_line(capsys)
    else:
        new = str(tmp_path / "new.json")
        for name in (key, new):
            more = ["--key", key, "--bundle", new, "--json", name]
            assert verify(given, marked, suspect, *more) == ExitCode.USAGE
            assert "would be written over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not registry.exists()  # nobody was asked


def test_a_rule_that_convinces_its_owner_alone_is_told_so(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*LEARN, "--batch-size", "5", "--batches", "1", "--threshold", "0.5"]  # one hit of five is enough
    assert embed(given, tmp_path / "out", "-q", *few) == ExitCode.CLEAN
    bundle = tmp_path / "claim.json"
    more = ["--bundle", str(bundle)]
    found = verify(given, tmp_path / "out", tmp_path / "out" / "model.safetensors", *more)
    told = capsys.readouterr().out.splitlines()
    assert found == ExitCode.CLEAN
    assert (
        told[1] == f"{bundle}: verified by your own rule; others decide by 2^-64, which it misses, unless they choose"
    )
    assert main(["evidence", "verify", str(bundle), "-q"]) == ExitCode.FOUND


def test_a_remote_copy_is_proved_with_its_transcript(
    given: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an API of the thief's own that gives labels only, described in YAML."""
    thief = open_classifier(marked / "model.safetensors")

    def answer(asked: Asked) -> Any:
        pictures = torch.tensor(asked.json["pictures"], dtype=torch.float32)
        return {"classes": thief.predict(pictures.view(-1, *SHAPE)).tolist()}

    (tmp_path / "api.yaml").write_text(MAPPING)
    with serving(answer) as server:
        remote = ["--mapping", str(tmp_path / "api.yaml"), "--bundle", str(tmp_path / "claim.json")]
        assert verify(given, marked, server.url, *remote) == ExitCode.CLEAN
        assert sum(len(asked.json["pictures"]) for asked in server.asked) == TRIGGERS
    assert f"{server.url}: Verified" in capsys.readouterr().out
    proof = verify_bundle(tmp_path / "claim.json")
    assert proof.verified
    assert proof.suspect_source == server.url
    assert "the answers are those in the transcript that the claimant signed" in proof.checked


# --- what goes wrong -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def saved(path: Path, images: Any, labels: Any) -> list[str]:
    np.savez(path, allow_pickle=False, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return ["--data", str(path)]


def other_shape(folder: Path) -> list[str]:
    return saved(folder / "small.npz", np.zeros((20, 1, 9, 9), np.float32), np.arange(20) % 10)


def eleven(folder: Path) -> list[str]:
    return ["-q", *saved(folder / "eleven.npz", DATA.images.numpy(), (DATA.labels + 1).numpy())]


def wrong_passphrase(folder: Path) -> list[str]:
    (folder / "word").write_text("wrong\n")
    return ["--passphrase-file", str(folder / "word")]


def no_registry(folder: Path) -> list[str]:
    (folder / "no.sqlite").write_text("this is no database, but a text of some length" * 20)
    return ["--registry", str(folder / "no.sqlite")]


def a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("here first")
    return ["--out", str(folder / "file")]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (lambda _: ["--mode", "deep"], ExitCode.USAGE, "unknown mode 'deep'; there are ftal, ftll"),
        (lambda _: ["--scheme", "deep"], ExitCode.USAGE, "unknown scheme 'deep'; there are deep-fidelity"),
        (lambda _: ["--trigger", "melody"], ExitCode.USAGE, "'melody' is not one of 'noise-blocks'"),
        (lambda _: ["--learning-rate", "0"], ExitCode.USAGE, "a learning rate is above 0, got 0.0"),
        (lambda _: ["--learning-rate", "1e30", "--mode", "ftal"], ExitCode.ERROR, "training diverged"),
        (lambda _: ["--option", "temperature=-1"], ExitCode.USAGE, "a temperature is above 0, got -1"),
        (lambda _: ["--option", "pfl-weight=much"], ExitCode.USAGE, "option pfl_weight must be a number, got 'much'"),
        (lambda _: ["--option", "radius=1"], ExitCode.USAGE, "deep-fidelity has no option 'radius'; it has triggers"),
        (lambda _: ["--option", "radius"], ExitCode.USAGE, "'radius' is not of the form KEY=VALUE"),
        (lambda _: ["--data", "nothing"], ExitCode.ERROR, "nothing"),
        (lambda _: ["--key", "absent.key"], ExitCode.ERROR, "absent.key: can't be read: No such file"),
        (lambda _: ["--arch", "lenet"], ExitCode.ERROR, "for lenet, tensor '"),
        (other_shape, ExitCode.ERROR, "images are (1, 9, 9), but the model takes (1, 12, 12)"),
        (eleven, ExitCode.ERROR, "labels span 1..10, but the model has 10 classes"),
        (wrong_passphrase, ExitCode.ERROR, "owner.key: wrong passphrase, or the file was changed"),
        (no_registry, ExitCode.ERROR, "no.sqlite: "),
        (a_file, ExitCode.ERROR, "can't write "),
        (lambda _: ["--threshold", "2"], ExitCode.USAGE, "lies between 0 and 1"),
        (lambda _: ["--threshold", "nan"], ExitCode.USAGE, "lies between 0 and 1"),
        (lambda _: ["--epochs", "0"], ExitCode.USAGE, "--epochs"),
        (lambda _: ["--batches", "0"], ExitCode.USAGE, "--batches"),
        (lambda _: ["--input-shape", "12"], ExitCode.USAGE, "'12' is not a shape such as 3,224,224"),
        (lambda _: ["--input-shape", "12,a"], ExitCode.USAGE, "'12,a' is not a shape such as 3,224,224"),
        (lambda _: ["--preprocess", "{"], ExitCode.USAGE, "--preprocess"),
    ],
)
def test_when_embedding_fails_nothing_is_written(
    arguments: Callable[[Path], list[str]],
    code: ExitCode,
    message: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = arguments(tmp_path)
    before = {path: path.read_bytes() for path in contents(tmp_path)}
    assert embed(given, tmp_path / "out", *HASTY, "--onnx", *more) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    if code == ExitCode.ERROR:
        assert printed.err.startswith("intaglio: ")
        assert printed.err.count("\n") == 1
    assert {path: path.read_bytes() for path in contents(tmp_path)} == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (str(MODELS / "clean.onnx"), "the weights of a model opened as onnx can't be changed here"),
        ("absent.safetensors", "no such file: absent.safetensors"),
        ("mark_models:host", "could not be opened again without the name of its architecture"),
    ],
)
def test_models_that_cannot_be_marked(
    model: str, message: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--input-shape", "1,12,12", "--classes", "10"] if model == "mark_models:host" else []
    assert embed(given, tmp_path / "out", *HASTY, *shape, model=model) == ExitCode.ERROR
    assert message in only_line(capsys)
    assert contents(tmp_path) == []


def changed_commitment(folder: Path, marked: Path) -> list[str]:
    content = json.loads((marked / "commitment.json").read_text())
    payload = bytearray(base64.b64decode(content["envelope"]["payload"]))
    place = payload.index(b'"batch_size":60') + len(b'"batch_size":6')
    payload[place] = ord("1")
    content["envelope"]["payload"] = base64.b64encode(bytes(payload)).decode()
    (folder / "c.json").write_text(json.dumps(content))
    return ["--commitment", str(folder / "c.json")]


def small_model(folder: Path, _: Path) -> list[str]:
    onnx.save(onnx_linear(("n", 1, 9, 9), CLASSES, torch.zeros(81, CLASSES)), folder / "small.onnx")
    return [str(folder / "small.onnx")]


def three_classes(folder: Path, _: Path) -> list[str]:
    onnx.save(onnx_linear(("n", *SHAPE), 3, torch.zeros(144, 3)), folder / "three.onnx")
    return [str(folder / "three.onnx")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed_commitment, "the signature does not fit: the statement or its signature was changed"),
        (lambda *_: ["--commitment", "absent.json"], "absent.json: can't be read: No such file"),
        (lambda _, marked: ["--commitment", str(marked / "fidelity.json")], "fidelity.json: not a commitment"),
        (lambda *_: ["--key", "absent.key"], "absent.key: can't be read"),
        (lambda folder, _: wrong_passphrase(folder), "owner.key: wrong passphrase"),
        (lambda *_: ["--batch", "2"], "there is no batch 2: the mark has 2, counted from 0"),
        (lambda *_: ["--batch", "-1"], "there is no batch -1"),
        (lambda folder, _: no_registry(folder), "no.sqlite: "),
        (lambda folder, _: ["--bundle", str(folder)], "it is a folder"),
        (lambda *_: ["absent.onnx"], "no such file: absent.onnx"),
        (small_model, "small.onnx"),
        (three_classes, "three.onnx"),
        (lambda *_: ["http://127.0.0.1:9/v2/models/m"], "127.0.0.1:9"),
    ],
)
def test_what_goes_wrong_when_verifying(
    arguments: Callable[[Path, Path], list[str]],
    message: str,
    given: Path,
    marked: Path,
    tmp_path: Path,
    registry: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = arguments(tmp_path, marked)
    suspect = str(marked / "model.safetensors")
    if not more[0].startswith("--"):
        suspect, *more = more
    before = {path: path.read_bytes() for path in contents(tmp_path)}
    assert verify(given, marked, suspect, *more) == ExitCode.ERROR
    assert message in only_line(capsys)
    after = {path: path.read_bytes() for path in contents(tmp_path) if path != registry}
    assert after == before
    if registry.exists():
        with Registry.open(registry, create=False) as book:
            assert book.verifications() == ()
            assert book.spent_batches() == ()


def test_another_key_is_refused(given: Path, marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(given, marked, marked / "model.safetensors", key="stranger.key") == ExitCode.ERROR
    named = f"the mark belongs to key {OWNER.public_key.hex()[:16]}, not to {STRANGER.public_key.hex()[:16]}"
    assert only_line(capsys) == f"intaglio: {named}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mark", "--help"], "verify"),
        (["mark", "embed", "--help"], "--scheme"),
        (["mark", "verify", "--help"], "--bundle"),
    ],
)
def test_help(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.CLEAN
    assert expected in capsys.readouterr().out


def test_what_was_found_is_told_although_it_could_not_be_recorded(
    given: Path, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remote suspect has seen the batch by then: its answers must not be lost."""

    def locked(*_: Any, **__: Any) -> None:
        raise EvidenceError("the registry is locked by another program")

    monkeypatch.setattr(Registry, "record_verification", locked)
    wanted = ["--json", str(tmp_path / "found.json"), "--bundle", str(tmp_path / "claim.json")]
    assert verify(given, marked, marked / "model.onnx", *wanted) == ExitCode.ERROR
    printed = capsys.readouterr()
    assert "Verified: this is a copy of the marked model." in printed.out
    assert printed.err == "intaglio: the registry is locked by another program\n"
    assert OwnershipClaim.from_json((tmp_path / "found.json").read_text()).verified
    assert not (tmp_path / "claim.json").exists()


def test_who_makes_batches_too_small_for_others_is_told(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "batches of 19 are too small for others, who decide by 2^-64: that takes 20 (--batch-size)"
    for size, missing in ((19, True), (20, False)):
        assert embed(given, tmp_path / str(size), *HASTY, "--batch-size", str(size)) == ExitCode.CLEAN
        assert (told in capsys.readouterr().out) == missing


@pytest.mark.parametrize("option", ["--suspects", "--keys"])
def test_nobody_tried_that_many(option: str, given: Path, marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(given, marked, marked / "model.onnx", option, "1" + 400 * "0") == ExitCode.USAGE
    assert verify(given, marked, marked / "model.onnx", option, str(1 << 40)) in (ExitCode.CLEAN, ExitCode.FOUND)
