"""`intaglio lock`: every command on a lock that was trained for a few steps, and one line for each mistake."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intaglio.classifiers import Sidecar, open_classifier, save_classifier
from intaglio.cli.lock_training import train
from intaglio.cli.locked import show
from intaglio.cli.main import ExitCode, main
from intaglio.data.opening import open_data_for
from intaglio.errors import KeyFileError, ModelError, StorageError
from intaglio.lock import LeakTable, Lock, LockSettings, Trace
from intaglio.lock.lock_file import refine_file
from intaglio.lock.sealed_model import open_sealed
from intaglio.networks import Architecture
from lock_models import ARCHITECTURE, OWNER, STRANGER, tiny_model

DEFAULTS = {name: field.default for name, field in LockSettings.model_fields.items()}
PASSPHRASE = "open sesame"
STEPS = ("--steps", "2", "--refining-steps", "2", "--code-length", "16", "--batch-size", "16")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`owner.key`, `stranger.key`, and the passphrase of both."""
    folder = tmp_path_factory.mktemp("keys")
    OWNER.save(folder / "owner.key", passphrase=PASSPHRASE)
    STRANGER.save(folder / "stranger.key", passphrase=PASSPHRASE)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "host.safetensors"
    save_classifier(tiny_model(), path, Sidecar(architecture=ARCHITECTURE, classes=("top", "middle", "bottom")))
    return path


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    import intaglio.lock.settings as settings

    for name in ("width", "features"):
        monkeypatch.setattr(settings.LockSettings.model_fields[name], "default", 4)
    settings.LockSettings.model_rebuild(force=True)


@pytest.fixture
def owner(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAGLIO_KEY", str(keys / "owner.key"))
    monkeypatch.setenv("INTAGLIO_PASSPHRASE", PASSPHRASE)


@pytest.fixture
def lock(tmp_path: Path, host: Path, toy_file: Path, owner: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lock"
    monkeypatch.setenv("INTAGLIO_LOCK", str(folder))
    main(["lock", "train", str(host), "--data", str(toy_file), "--out", str(folder), *STEPS, "-q"])
    return folder


def pictures(folder: Path, count: int = 2, side: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_training_writes_a_locked_model_and_its_lock(lock: Path, toy_file: Path, tmp_path: Path) -> None:
    names = {path.name for path in lock.iterdir()}
    assert names == {"model.safetensors", "model.intaglio.json", "key-network.sealed", "users.json", "leaks.json"}
    leaks = LeakTable.from_json((lock / "leaks.json").read_text())
    assert leaks.images == 60
    assert open_classifier(lock / "model.safetensors").classes == ("top", "middle", "bottom")
    assert Lock.open(lock, OWNER).facts.settings.steps == 2
    code = main(
        ["lock", "check", str(lock / "model.safetensors"), "--data", str(toy_file), "--json", str(tmp_path / "t"), "-q"]
    )
    found = LeakTable.from_json((tmp_path / "t").read_text())
    assert found.rows == leaks.rows
    assert code == (ExitCode.CLEAN if found.tight and found.opens else ExitCode.FOUND)


def test_what_keys_of_an_earlier_generation_open_is_measured(
    lock: Path, host: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later, data, asked = tmp_path / "later", ("--data", str(toy_file)), tmp_path / "table.json"
    main(["lock", "train", str(host), *data, "--out", str(later), "--earlier", str(lock), *STEPS, "-q"])
    facts = Lock.open(later, OWNER).facts
    assert (facts.generation, facts.earlier) == (1, (Lock.open(lock, OWNER).facts.lock_id,))
    trained = LeakTable.from_json((later / "leaks.json").read_text())
    assert not trained.row("another lock's key").authorised
    again = ["lock", "train", str(host), *data, "--out", str(tmp_path / "third"), "--earlier", str(later), *STEPS]
    assert main([*again, "--generation", "1"]) == ExitCode.ERROR
    assert f"earlier lock {facts.lock_id} refused {facts.earlier[0]}: name that one too" in capsys.readouterr().err
    assert main([*again, "--earlier", str(lock), "--generation", "1"]) == ExitCode.ERROR
    assert f"{facts.lock_id} has the very secrets of this one: lock with a generation" in capsys.readouterr().err
    check = ["lock", "check", str(later / "model.safetensors"), *data, "--lock", str(later)]
    assert main([*check, "--other", str(lock), "--other", str(later), "--json", str(asked)]) in (
        ExitCode.CLEAN,
        ExitCode.FOUND,
    )
    table = LeakTable.from_json(asked.read_text())
    assert not table.row("another lock's key").authorised
    shown = capsys.readouterr().out
    assert "another lock's key  " in shown
    assert "another lock's key (2)" in shown
    assert main([*check, "--other", str(tmp_path / "none")]) == ExitCode.ERROR
    assert "none" in capsys.readouterr().err


@pytest.mark.usefixtures("owner")
def test_an_encrypted_model_is_never_written_in_the_plain(
    tmp_path: Path, host: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "lock", ("--data", str(toy_file))
    code = main(["lock", "train", str(host), *data, "--out", str(out), *STEPS, "--encrypt", "--mislabel", "shift"])
    assert code in (ExitCode.CLEAN, ExitCode.FOUND)
    assert "keyed, PNG" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"model.sealed", "key-network.sealed", "users.json", "leaks.json"}
    assert main(["lock", "check", str(out / "model.sealed"), *data, "--lock", str(out), "-q"]) == code
    (out / "model.sealed").write_bytes((out / "model.sealed").read_bytes()[:-9])
    assert main(["lock", "check", str(out / "model.sealed"), *data, "--lock", str(out), "-q"]) == ExitCode.ERROR
    assert "wrong key, or the file was changed or cut short" in capsys.readouterr().err


@pytest.mark.usefixtures("owner")
def test_onnx_is_written_where_asked_for_or_nothing_else_will_do(tmp_path: Path, host: Path, toy_file: Path) -> None:
    data = ("--data", str(toy_file), *STEPS, "-q")
    main(["lock", "train", str(host), *data, "--out", str(tmp_path / "both"), "--onnx"])
    main(["lock", "train", "lock_models:tiny_classifier", *data, "--out", str(tmp_path / "alone")])
    for name, expected in (("both", {"model.onnx", "model.safetensors"}), ("alone", {"model.onnx"})):
        found = {path.name for path in (tmp_path / name).iterdir() if path.suffix in (".onnx", ".safetensors")}
        assert found == expected
        assert open_classifier(tmp_path / name / "model.onnx").num_classes == 3


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a few steps are refined again, though they know nothing and looking for keys takes more steps."""
    monkeypatch.setattr("intaglio.lock.mending._check_locked", lambda *given: None)
    monkeypatch.setattr("intaglio.lock.mining._LEFT", 1)


@pytest.mark.usefixtures("known")
def test_a_locked_model_is_refined_again(
    lock: Path, host: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, model = (lock / "model.safetensors").read_bytes(), str(lock / "model.safetensors")
    keys = (lock / "key-network.sealed").read_bytes()
    options = ("--unlocked", str(host), "--data", str(toy_file))
    plain, sealed, onnx, twice = (tmp_path / "out" / name for name in ("m.safetensors", "m.sealed", "n.onnx", "l.onnx"))
    for out, given in ((plain, model), (sealed, model), (onnx, str(sealed)), (twice, str(plain))):
        code = main(["lock", "refine", given, *options, "--out", str(out), "--json", str(tmp_path / "t.json")])
        assert f"{out}: refined" in capsys.readouterr().out
        leaks = LeakTable.from_json((tmp_path / "t.json").read_text())
        assert code == (ExitCode.CLEAN if leaks.tight and leaks.opens else ExitCode.FOUND)
        assert (leaks.subject, leaks.images) == (str(out), 60)
    opened, images = open_classifier(plain), torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    assert opened.classes == ("top", "middle", "bottom")
    answers = [classifier.log_probs(images) for classifier in (opened, open_sealed(sealed, OWNER))]
    assert torch.equal(*answers)  # of one model, one seed
    again, once_more = (open_classifier(path).log_probs(images) for path in (onnx, twice))
    assert torch.allclose(again, once_more, atol=1e-4)
    assert not torch.allclose(again, opened.log_probs(images), atol=1e-4)
    assert plain.read_bytes() != before
    assert (lock / "model.safetensors").read_bytes() == before
    assert (lock / "key-network.sealed").read_bytes() == keys
    assert not list((tmp_path / "out").glob("*.checkpoint"))
    five = tmp_path / "five.safetensors"
    other = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=5, width=2)
    save_classifier(other.build(), five, Sidecar(architecture=other))
    for given, unlocked, out, said in (
        (model, host, plain, "m.safetensors exists already"),
        (model, host, sealed, "m.sealed exists already"),
        (model, host, tmp_path / "m.pt", "m.pt: a locked model is written as .safetensors, .onnx or .sealed"),
        (model, five, tmp_path / "new.onnx", "know different numbers of classes"),
        (str(onnx), host, tmp_path / "new.onnx", "the weights of a model opened as onnx can't be changed here"),
        (str(tmp_path / "none.sealed"), host, tmp_path / "new.onnx", "none.sealed"),
    ):
        named = ("--unlocked", str(unlocked), "--data", str(toy_file), "--out", str(out))
        assert main(["lock", "refine", given, *named]) == ExitCode.ERROR
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
        assert not out.exists() or out in (plain, sealed)
    unnamed = ("--unlocked", "lock_models:tiny_classifier", "--data", str(toy_file))
    assert main(["lock", "refine", "lock_models:tiny_classifier", *unnamed, "--out", str(tmp_path / "m.sealed")]) == 2
    assert "the architecture isn't known, so that the model can be written as .onnx only" in capsys.readouterr().err


@pytest.mark.usefixtures("known")
def test_refining_again_goes_on_where_it_was_interrupted(
    lock: Path, host: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    data = open_data_for((1, 12, 12), str(toy_file), "train")
    given = (open_classifier(lock / "model.safetensors"), open_classifier(host), data, Lock.open(lock, OWNER))

    def cut(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ModelError, match=r"model\.safetensors: for lenet, tensor"):  # of another width
        refine_file(*given, OWNER, tmp_path / "out.sealed", test=data, architecture="lenet")
    with pytest.raises(KeyFileError, match="the lock was made with"):
        refine_file(*given, STRANGER, tmp_path / "out.sealed", test=data)
    with monkeypatch.context() as patched:
        patched.setattr("intaglio.lock.lock_file.check_lock", cut)
        with pytest.raises(KeyboardInterrupt):
            refine_file(*given, OWNER, out, test=data)
    assert {path.name for path in tmp_path.glob("out.*")} == {
        "out.safetensors", "out.intaglio.json", "out.safetensors.checkpoint"
    }  # fmt: skip
    weights, steps = out.read_bytes(), list[int]()
    written = refine_file(*given, OWNER, out, test=data, progress=lambda done, total: steps.append(done))
    assert steps == []  # nothing was left to do but to measure
    assert out.read_bytes() == weights
    assert written.leaks.images == len(data)
    assert not (tmp_path / "out.safetensors.checkpoint").exists()
    with pytest.raises(StorageError, match="exists already"):
        refine_file(*given, OWNER, out, test=data)


@pytest.mark.parametrize(("opening", "advised"), [(None, False), (0, False), (3, True)])
def test_where_wrong_keys_open_a_model_it_is_said_what_to_do(
    lock: Path, opening: int | None, advised: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    table = LeakTable.from_json((lock / "leaks.json").read_text()).model_copy(update={"wrong_keys": opening})
    assert show(table, None, False, "checked") == int(not (table.tight and table.opens))
    printed = capsys.readouterr().out
    assert printed.startswith("checked\n")
    assert ("intaglio lock refine MODEL" in printed.splitlines()[-1]) == advised


@pytest.mark.usefixtures("lock")
def test_keys_are_issued_applied_traced_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, keyed, own = pictures(tmp_path / "in"), tmp_path / "keyed", tmp_path / "own"
    assert main(["lock", "issue", "--user", "alice", "--json", "-", "-q"]) == ExitCode.CLEAN
    assert json.loads(capsys.readouterr().out).keys() == {"alice"}
    assert main(["lock", "issue", "--user", "bob", "--out", str(tmp_path / "bob.onnx")]) == ExitCode.CLEAN
    assert "bob: key issued" in capsys.readouterr().out
    assert (
        main(["lock", "apply", str(images), "--user", "bob", "--out", str(keyed), "--json", "-", "-q"])
        == ExitCode.CLEAN
    )
    assert json.loads(capsys.readouterr().out) == {"written": [str(keyed / "0.png"), str(keyed / "1.png")]}
    kept = (tmp_path / "bob.onnx").read_bytes()
    assert main(["lock", "issue", "--user", "alice", "--out", str(tmp_path / "bob.onnx")]) == ExitCode.ERROR
    assert "bob.onnx exists already" in capsys.readouterr().err
    assert (tmp_path / "bob.onnx").read_bytes() == kept
    network = ("--key-network", str(tmp_path / "bob.onnx"))
    assert main(["lock", "apply", str(images), *network, "--out", str(own)]) == ExitCode.CLEAN
    assert "2 files keyed" in capsys.readouterr().out
    for name in ("0.png", "1.png"):
        theirs, ours = (np.asarray(Image.open(folder / name)).astype(int) for folder in (keyed, own))
        assert np.abs(theirs - ours).max() <= 1
    code = main(["lock", "trace", str(keyed), "--json", str(tmp_path / "trace.json"), "--alpha", "0.5"])
    found = Trace.from_json((tmp_path / "trace.json").read_text())
    assert (found.users, found.alpha, len(found.images)) == (2, 0.5, 2)
    assert code == (ExitCode.CLEAN if found.user else ExitCode.FOUND)
    printed = capsys.readouterr().out
    assert f"{keyed / '1.png'}: " in printed
    assert "if one key made all: " in printed
    assert f"nobody: {2 - sum(found.named.values())} of 2 images" in printed
    assert main(["lock", "revoke", "--user", "bob"]) == ExitCode.CLEAN
    assert f"--earlier {tmp_path / 'lock'} --out ANOTHER" in capsys.readouterr().out
    assert main(["lock", "apply", str(images), "--user", "bob", "--out", str(keyed)]) == ExitCode.ERROR
    assert "the key of user 'bob' was revoked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "code", "lines"),
    [
        ("aaaa", ExitCode.CLEAN, ["alice: 4 of 4 images; nobody: 0 of 4 images", "if one key made all: alice (p = "]),
        ("aa--", ExitCode.CLEAN, ["alice: 2 of 4 images; nobody: 2 of 4 images", "if one key made all: alice (p = "]),
        (
            "aaab",
            ExitCode.FOUND,
            ["alice: 3 of 4 images, bob: 1 of 4 images; nobody: 0 of 4", "disagree: 1 of 4"],
        ),
        ("----", ExitCode.FOUND, ["nobody: 4 of 4 images", "if one key made all: nobody (p = 1.0e+00)"]),
    ],
)
def test_traces_end_with_whether_one_user_is_named(
    lock: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    made: str,
    code: ExitCode,
    lines: list[str],
) -> None:
    for user in ("alice", "bob"):
        main(["lock", "issue", "--user", user, "-q"])
    secrets = Lock.open(lock, OWNER).secrets
    felt = {"a": secrets.code("alice"), "b": secrets.code("bob"), "-": torch.zeros(16)}
    monkeypatch.setattr(Lock, "read", lambda self, images, users: torch.stack([felt[kind] for kind in made]))
    images, written = pictures(tmp_path / "in", 4), tmp_path / "trace.json"
    capsys.readouterr()
    assert main(["lock", "trace", str(images), "--json", str(written)]) == code
    printed = capsys.readouterr().out
    for line in lines:
        assert line in printed
    names = {"a": "alice", "b": "bob", "-": "nobody"}
    for number, kind in enumerate(made):
        assert f"{images / str(number)}.png: {names[kind]} (p = " in printed
    assert ("not that the user put it there" in printed) == ("a" in made)
    found = json.loads(written.read_text())
    assert found["named"] == {names[kind]: made.count(kind) for kind in sorted(set(made) - {"-"})}
    assert found["user"] == ("alice" if code == ExitCode.CLEAN else None)


@pytest.mark.usefixtures("lock")
def test_a_folder_is_keyed_into_itself_no_deeper_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(tmp_path / "photos")
    main(["lock", "issue", "--user", "alice", "-q"])
    apply = ["lock", "apply", str(images), "--user", "alice", "--out"]
    for _ in range(3):
        assert main([*apply, str(images / "keyed"), "-q"]) == ExitCode.CLEAN
        found = {str(path.relative_to(images)) for path in images.rglob("*") if path.is_file()}
        assert found == {"0.png", "1.png", "keyed/0.png", "keyed/1.png"}
    Image.open(images / "0.png").save(images / "0.bmp")
    (images / "1.png").unlink()
    before = (images / "0.png").read_bytes()
    assert main([*apply[:2], str(images / "0.bmp"), *apply[3:], str(images)]) == ExitCode.ERROR
    told = capsys.readouterr().err
    assert "0.png would be overwritten with the keyed copy of" in " ".join(told.split())
    assert len(told.strip().splitlines()) == 1
    assert (images / "0.png").read_bytes() == before


def test_a_picture_shows_the_lock_at_work(lock: Path, toy_file: Path, tmp_path: Path) -> None:
    main(["lock", "issue", "--user", "alice", "-q"])
    shown, data = tmp_path / "lock.png", ("--data", str(toy_file), "--user", "alice")
    model = str(lock / "model.safetensors")
    assert main(["lock", "picture", model, *data, "--out", str(shown), "--count", "3", "-q"]) == ExitCode.CLEAN
    with Image.open(shown) as picture:
        few = picture.size
    assert main(["lock", "picture", model, *data, "--out", str(shown), "--count", "6", "-q"]) == ExitCode.CLEAN
    with Image.open(shown) as picture:
        assert (picture.format, picture.height) == ("PNG", few[1])
        assert picture.width > 1.9 * few[0]
    for name, content in (("other.png", b"weights"), ("m.safetensors", b"")):
        (tmp_path / name).write_bytes(content)
        assert main(["lock", "picture", model, *data, "--out", str(tmp_path / name)]) == ExitCode.USAGE
        assert (tmp_path / name).read_bytes() == content


def test_defaults_are_those_of_python() -> None:
    parameters = inspect.signature(train).parameters
    for name in set(DEFAULTS) - {"epsilon", "width", "features", "stride", "learning_rate", "silence", "distillation"}:
        assert parameters[name].default == DEFAULTS[name], name


def spoiled(folder: Path, source: Path) -> dict[str, Path]:
    """Copies of a sealed file, each wrong in its own way, in folders of their own."""
    whole = source.read_bytes()
    middle = len(whole) // 2
    made = {
        "cut": whole[:-40],
        "header": whole[:20],
        "edited": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "salted": whole[:25] + bytes([whole[25] ^ 1]) + whole[26:],
        "other": b"{}",
    }
    for name, content in made.items():
        (folder / name).mkdir(parents=True)
        (folder / name / source.name).write_bytes(content)
    return {name: folder / name / source.name for name in made}


@pytest.mark.usefixtures("owner")
def test_a_container_that_was_touched_is_refused_in_one_line(
    tmp_path: Path, host: Path, toy_file: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, lock, images = ("--data", str(toy_file)), tmp_path / "lock", str(pictures(tmp_path / "in"))
    main(["lock", "train", str(host), *data, "--out", str(lock), "--encrypt", *STEPS, "-q"])
    models = spoiled(tmp_path / "models", lock / "model.sealed")
    networks = spoiled(tmp_path / "networks", lock / "key-network.sealed")
    changed = "wrong key, or the file was changed or cut short"
    messages = {
        "cut": changed,
        "edited": changed,
        "salted": changed,
        "header": "cut short",
        "other": "not a sealed file of intaglio",
    }
    capsys.readouterr()
    for name, message in messages.items():
        for arguments in (
            ["check", str(models[name]), *data, "--lock", str(lock)],
            ["trace", images, "--lock", str(networks[name].parent)],
            ["apply", images, "--user", "a", "--out", str(tmp_path / "out"), "--lock", str(networks[name].parent)],
        ):
            assert main(["lock", *arguments]) == ExitCode.ERROR, arguments
            printed = capsys.readouterr().err
            assert message in " ".join(printed.split()), arguments
            assert len(printed.strip().splitlines()) == 1
    wrong = ["check", str(lock / "model.sealed"), *data, "--lock", str(lock), "--key", str(keys / "stranger.key")]
    assert main(["lock", *wrong]) == ExitCode.ERROR
    assert changed in " ".join(capsys.readouterr().err.split())


def test_every_mistake_is_one_line(
    lock: Path, tmp_path: Path, keys: Path, host: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, large = str(pictures(tmp_path / "in")), str(pictures(tmp_path / "large", side=20))
    (tmp_path / "empty").mkdir()
    network, damaged = tmp_path / "alice.onnx", tmp_path / "damaged.onnx"
    main(["lock", "issue", "--user", "alice", "--out", str(network), "-q"])
    damaged.write_bytes(network.read_bytes()[:-100])
    (tmp_path / "no.key").write_text("not a key\n")
    main(["lock", "issue", "--user", "bob", "-q"])
    main(["lock", "revoke", "--user", "bob", "-q"])
    loud, nothing = str(tmp_path / "loud.npy"), str(tmp_path / "nothing.npy")
    np.save(loud, np.linspace(0, 200, 144, dtype=np.float32).reshape(1, 12, 12))
    np.save(nothing, np.full((1, 12, 12), np.nan, np.float32))
    out = ("--out", str(tmp_path / "out"))
    data = ("--data", str(toy_file), *out)
    pixels, before = (tmp_path / "in" / "0.png").read_bytes(), (lock / "users.json").read_bytes()
    cases: list[tuple[list[str], ExitCode, str]] = [
        (["issue", "--user", "alice"], ExitCode.ERROR, "user 'alice' has a key already"),
        (["issue", "--user", "al\nice"], ExitCode.ERROR, "a user's name"),
        (["revoke", "--user", "carol"], ExitCode.ERROR, "no key was issued to user 'carol'"),
        (["apply", images, "--user", "carol", *out], ExitCode.ERROR, "no key was issued to user 'carol'"),
        (["apply", large, "--user", "alice", *out], ExitCode.ERROR, "this lock is for images of 1x12x12"),
        (["apply", str(tmp_path / "empty"), "--user", "alice", *out], ExitCode.NOTHING, "no pictures in"),
        (["apply", images, "--key-network", str(tmp_path / "none.onnx"), *out], ExitCode.ERROR, "can't be read"),
        (["apply", images, "--key-network", str(damaged), *out], ExitCode.ERROR, "damaged.onnx: "),
        (["apply", large, "--key-network", str(network), *out], ExitCode.ERROR, "this lock is for images of 1x12x12"),
        (["apply", images, "--key-network", str(lock / "users.json"), *out], ExitCode.ERROR, "users.json: "),
        (["apply", images, *out], ExitCode.USAGE, "needed: --user, --lock and --key"),
        (["apply", images, "--user", "bob", "--key-network", str(network), *out], ExitCode.USAGE, "one user's already"),
        (["apply", loud, "--key-network", str(network), *out], ExitCode.ERROR, "pixel values span 0..200"),
        (["apply", images, nothing, "--user", "alice", *out], ExitCode.ERROR, "pixel values span nan"),
        (["apply", images, "--user", "alice", "--out", images], ExitCode.ERROR, "would be overwritten"),
        (["issue", "--user", "eve", "--out", images], ExitCode.ERROR, "key networks are written as .onnx"),
        (["issue", "--user", "eve", "--json", images], ExitCode.ERROR, "it is a folder"),
        (["revoke", "--user", "alice", "--json", images], ExitCode.ERROR, "it is a folder"),
        (["train", str(host), *data[:2], "--out", str(lock)], ExitCode.ERROR, "a lock that is overwritten is lost"),
        (["apply", images, "--user", "bob", *out], ExitCode.ERROR, "the key of user 'bob' was revoked on"),
        (
            ["issue", "--user", "bob", "--out", str(tmp_path / "b.onnx")],
            ExitCode.ERROR,
            "the key of user 'bob' was revoked on",
        ),
        (["trace", images, "--key", str(tmp_path / "no.key")], ExitCode.ERROR, "no.key"),
        (["trace", images, "--alpha", "2"], ExitCode.ERROR, "alpha lies between 0 and 1"),
        (["trace", images, "--key", str(keys / "stranger.key")], ExitCode.ERROR, "wrong key, or the file was changed"),
        (["trace", images, "--lock", str(tmp_path)], ExitCode.ERROR, "key-network.sealed: can't be read"),
        (["check", str(lock / "none.onnx"), "--data", str(toy_file)], ExitCode.ERROR, "no such file"),
        (["check", str(lock / "none.sealed"), "--data", str(toy_file)], ExitCode.ERROR, "can't be read"),
        (
            [
                "picture",
                str(lock / "model.safetensors"),
                "--data",
                str(toy_file),
                "--user",
                "carol",
                "--out",
                str(tmp_path / "p.png"),
            ],
            ExitCode.ERROR,
            "no key was issued to user 'carol'",
        ),
        (["train", str(host), *data, "--psnr", "500"], ExitCode.USAGE, "--psnr"),
        (["train", str(host), *data, "--code-weight", "0"], ExitCode.USAGE, "--code-weight"),
        (["train", str(host), *data, "--jpeg", "0.9"], ExitCode.USAGE, "--jpeg"),
        (["train", str(host), *data, "--grid", "96"], ExitCode.USAGE, "--grid"),
        (
            ["train", str(host), *data, "--residual", "atoms", "--grid", "75"],
            ExitCode.USAGE,
            "--grid: a residual of atoms",
        ),
        (["train", str(host), *data, "--grid", "10"], ExitCode.USAGE, "marks of users alone can come to 22.9 dB"),
        (["train", str(host), *data, "--distillation", "1.5"], ExitCode.USAGE, "--distillation"),
        (["train", str(host), *data, "--encrypt", "--onnx"], ExitCode.ERROR, "no plain copy as ONNX beside it"),
        (
            ["train", str(host), "--data", "fashion-mnist", *out],
            ExitCode.ERROR,
            "images are (1, 28, 28), but the model",
        ),
    ]
    capsys.readouterr()
    for arguments, code, message in cases:
        assert main(["lock", *arguments]) == code, arguments
        printed = capsys.readouterr()
        assert message in " ".join(printed.err.split()), arguments
        assert printed.out == ""
        assert code == ExitCode.USAGE or len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "in" / "0.png").read_bytes() == pixels
    assert (lock / "users.json").read_bytes() == before
