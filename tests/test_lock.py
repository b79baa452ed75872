"""`Lock`: keying, tracing and users, in memory and on disk; a user's own key network; the locked model at rest."""

import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from scipy.stats import binom
from torch.nn.functional import interpolate

from intaglio.classifiers import CallableClassifier, Preprocessing, Sidecar, TorchClassifier, open_classifier
from intaglio.data import open_data
from intaglio.data.picture import read_picture
from intaglio.errors import DataError, IntaglioError, KeyFileError, ModelError, NothingToExamineError, StorageError
from intaglio.evidence.key import Key
from intaglio.lock import ExportedKey, Lock, LockSettings, Match, Trace, export_key, lock_picture, write_container
from intaglio.lock.codes import spread
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.keyed_files import gather, key_files
from intaglio.lock.lock import KEY_NETWORK_FILE, USERS_FILE, LockFacts
from intaglio.lock.sealed_model import open_sealed, write_locked
from intaglio.lock.settings import ATOMS
from intaglio.lock.tracing import trace_codes
from intaglio.tampering import Jpeg
from intaglio.tensors import Packed
from intaglio.triggers.jpeg_grid import JpegGrid, _joined, brightness
from lock_models import ARCHITECTURE, OWNER, STRANGER, some_images, tiny_lock, tiny_model

# --- keying ----------------------------------------------------------------------------------------------------------


def test_keyed_images_are_8_bit_close_and_the_users_own() -> None:
    lock, images = tiny_lock(), some_images(5)
    alice, bob = lock.apply(images, user="alice"), lock.apply(images, user="bob")
    assert lock.users.names == ("alice", "bob")
    assert torch.equal(alice, (alice * 255).round() / 255)
    assert 0 < float((alice - images).abs().max()) <= 8.5 / 255
    assert not torch.equal(alice, bob)
    assert torch.equal(alice, lock.apply(images, user="alice"))
    assert not alice.is_inference()


def test_a_revoked_user_is_served_no_longer_but_still_traced() -> None:
    lock = tiny_lock()
    lock.issue("alice")
    lock.revoke("alice")
    for action in (lambda: lock.apply(some_images(), user="alice"), lambda: lock.user_key("alice")):
        with pytest.raises(DataError, match="the key of user 'alice' was revoked on"):
            action()
    assert lock.trace(some_images()).users == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (some_images(2, (1, 12, 13)), "this lock is for images of 1x12x12 .* got 1x12x13"),
        (some_images(2, (3, 12, 12)), "got 3x12x12"),
        (some_images() * 255, r"pixel values span .* expected \[0, 1\]"),
        (some_images().double(), "expected float32"),
        (some_images()[:0], "there are no images"),
    ],
)
def test_images_that_are_refused(images: torch.Tensor, message: str) -> None:
    lock = tiny_lock()
    lock.issue("bob")
    for action in (lambda: lock.apply(images, user="alice"), lambda: lock.trace(images)):
        with pytest.raises(DataError, match=message):
            action()
    assert lock.users.names == ("bob",)


# --- tracing ---------------------------------------------------------------------------------------------------------


def test_tracing_by_hand() -> None:
    codes = torch.tensor([[1.0, 1, 1, 1] * 8, [1.0, -1, 1, -1] * 8])
    felt = torch.stack([codes[1] * 3, codes[0] * 0.1, torch.zeros(32)])
    found = trace_codes(felt, codes, ("alice", "bob"), 0.01)
    assert [match.user for match in found.images] == ["bob", "alice", None]
    assert found.images[0].p_value == 2 * 2**-32  # all signs agree, for one of two users
    assert found.images[2] == Match(user=None, p_value=1.0, nearest="alice")
    assert (found.together.user, found.user, found.users) == ("bob", None, 2)  # for alice is named for sure
    assert found.named == {"bob": 1, "alice": 1}
    assert Trace.from_json(found.to_json()) == found


def test_chance_where_two_bits_are_all_there_is() -> None:
    felt, codes = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[1.0, 1, 1, 1]])
    assert trace_codes(felt, codes, ("alice",), 0.01).images[0].p_value == pytest.approx(1 / 4)  # both signs agree


def test_the_surest_of_two_witnesses_is_believed_at_twice_the_chance() -> None:
    codes = torch.tensor([[1.0] * 16, [1.0, -1] * 8])
    felt = torch.stack([torch.stack([codes[1], torch.zeros(16)]), torch.stack([codes[1] * codes[0].roll(1), codes[0]])])
    felt[1, 0, :8] *= -1
    heard = torch.cat([felt, felt[:, 1:]], dim=1)  # the second witness once for each user
    found = trace_codes(heard, codes, ("alice", "bob"), 0.01)
    assert [match.user for match in found.images] == ["bob", "alice"]
    assert [match.p_value for match in found.images] == [2 * 2 * 2**-16] * 2
    assert found.together.nearest == "alice"  # one witness says bob and nobody, the other alice and nobody
    assert trace_codes(felt[:, 1], codes, ("alice", "bob"), 0.01).images[1].p_value == 2 * 2**-16


@pytest.mark.parametrize("witnesses", [1, 65])
def test_chance_names_no_more_than_was_accepted(witnesses: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (64, 96), generator=generator).float() * 2 - 1
    felt = torch.randn(2000, witnesses, 96, generator=generator)
    found = trace_codes(felt, codes, tuple(map(str, range(64))), 0.05)
    named = sum(match.user is not None for match in found.images)
    assert binom.ppf(0.001, 2000, 0.04) <= named <= binom.ppf(0.999, 2000, 0.05)


def test_many_faint_images_together_name_their_user() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (64, 96), generator=generator).float() * 2 - 1
    felt = 0.3 * codes[7] + torch.randn(30, 96, generator=generator)
    found = trace_codes(felt, codes, tuple(map(str, range(64))), 0.01)
    assert found.user == "7"
    assert sum(match.user == "7" for match in found.images) < 30


def test_what_cannot_be_traced() -> None:
    lock = tiny_lock()
    with pytest.raises(DataError, match="no user was ever issued a key"):
        lock.trace(some_images())
    lock.issue("alice")
    for alpha in (0.0, 1.0):
        with pytest.raises(DataError, match="alpha lies between 0 and 1"):
            lock.trace(some_images(), alpha=alpha)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_on_a_grid_of_jpeg_users_are_named_from_every_image_by_an_untrained_network(
    shape: tuple[int, int, int],
) -> None:
    """No picture stands in the way of parities, and no decoder has to learn them."""
    settings = LockSettings(width=4, code_length=48, grid=75)
    facts = LockFacts(lock_id="0" * 32, input_shape=shape, settings=settings)
    torch.manual_seed(0)
    lock = Lock(KeyNetwork(shape[0], settings), OWNER, facts)
    for number in range(64):
        lock.issue(f"user {number}")
    coarse = torch.rand(100, shape[0], 5, 5, generator=torch.Generator().manual_seed(2))
    images = ((0.2 + 0.6 * interpolate(coarse, shape[1:], mode="bilinear")) * 255).round() / 255
    keyed = lock.apply(images, user="user 7")
    for received in (keyed, Jpeg(quality=75)(keyed), Jpeg(quality=90)(keyed)):
        found = lock.trace(received)
        assert [match.user for match in found.images] == ["user 7"] * 100
        assert (found.user, found.together.by_marks) == (None, "user 7")  # the decoder says nothing, and it has to
    assert sum(match.user is not None for match in lock.trace(images).images) <= 5
    moved = images.roll(5, dims=0) + keyed - images
    assert lock.trace(moved.clamp(0, 1)).named.get("user 7", 0) <= 3  # parities don't travel with a residual
    # Nor do those of one keyed image, copied exactly: what they say depends on the picture.
    marked = spread(torch.ones(1, 48), lock.secrets.carriers[:, 1:]) != 0
    grid = JpegGrid(75)
    even = _joined(grid._amounts(brightness(keyed[:1])).round().remainder(2) == 0)[..., : shape[1], : shape[2]]
    copied = torch.where(even, 1.0, -1.0) * marked  # of size 1: a block that is compared with itself
    forged = images[1:] + grid(torch.zeros_like(images[1:, :1]), 1.0, 1.0, images[1:], copied.expand(99, -1, -1, -1))
    found = lock.trace((forged.clamp(0, 1) * 255).round() / 255)
    assert found.together.by_marks is None
    assert found.named.get("user 7", 0) <= 3
    # Nor can another user, who knows the places of all marks and what the own ones compare, say what another's would.
    eight = lock.secrets.secret("user 8").plane[:, 1:]
    said = grid.parities(grid.amounts(keyed[:1]), eight.abs()).sign() * eight.abs()
    framed = images[1:] + grid(torch.zeros_like(images[1:, :1]), 1.0, 1.0, images[1:], said.expand(99, -1, -1, -1))
    found = lock.trace((framed.clamp(0, 1) * 255).round() / 255)
    assert found.named.get("user 7", 0) <= 3


# --- on disk ---------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Lock:
    lock = tiny_lock()
    lock.issue("alice")
    lock.save(folder, OWNER)
    return lock


def test_a_lock_survives_the_disk(tmp_path: Path) -> None:
    lock = saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {KEY_NETWORK_FILE, USERS_FILE}
    again = Lock.open(tmp_path, OWNER)
    assert again.facts == lock.facts
    assert torch.equal(again.apply(some_images(), user="alice"), lock.apply(some_images(), user="alice"))
    assert torch.equal(again.read(some_images()), lock.read(some_images()))
    lock.revoke("alice")
    again.issue("bob")
    opened = Lock.open(tmp_path, OWNER)
    assert opened.users.names == ("alice", "bob")
    with pytest.raises(DataError, match="'alice' was revoked"):
        opened.user_key("alice")


def test_a_service_sees_what_its_owner_does_meanwhile_and_loses_nothing_of_it(tmp_path: Path) -> None:
    saved(tmp_path)
    service, admin = Lock.open(tmp_path, OWNER), Lock.open(tmp_path, OWNER)
    service.apply(some_images(), user="alice")
    admin.revoke("alice")
    admin.issue("bob")
    service.apply(some_images(), user="carol")
    service.apply(some_images(), user="bob")  # who has a key already
    for lock in (service, admin, Lock.open(tmp_path, OWNER)):
        assert lock.users.names == ("alice", "bob", "carol")
        assert lock.trace(some_images()).users == 3
        with pytest.raises(DataError, match="'alice' was revoked"):
            lock.apply(some_images(), user="alice")
    with pytest.raises(DataError, match="'carol' has a key already"):
        admin.issue("carol")
    admin.revoke("carol")
    with pytest.raises(DataError, match="'carol' was revoked"):
        service.user_key("carol")


def test_large_secrets_are_made_at_first_use_and_can_be_trained_with(tmp_path: Path) -> None:
    saved(tmp_path)
    opened = Lock.open(tmp_path, OWNER)
    opened.users.issue("bob")
    opened.revoke("bob")
    assert "carriers" not in vars(opened.secrets)
    opened.apply(some_images(), user="alice")  # in inference mode, whose tensors can't be trained with
    assert not opened.secrets.carriers.is_inference()
    assert torch.equal(opened.secrets.carriers, tiny_lock().secrets.carriers)


def another_lock() -> Lock:
    """Of the same owner, but not the same lock."""
    facts = tiny_lock().facts.model_copy(update={"lock_id": "1" * 32})
    return Lock(KeyNetwork(1, facts.settings), OWNER, facts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_lock_is_saved_under_no_key_but_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"the lock was made with Key\(\w+\), not with Key\(\w+\)"):
        tiny_lock().save(tmp_path / "new", STRANGER)
    assert not (tmp_path / "new").exists()
    saved(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(KeyFileError, match="the lock was made with"):
        tiny_lock().save(tmp_path, STRANGER)
    assert contents(tmp_path) == before


def test_a_lock_is_never_saved_over_another(tmp_path: Path) -> None:
    saved(tmp_path)
    before = contents(tmp_path)
    for other, key, message in (
        (another_lock(), OWNER, f"it is another lock, {'0' * 32}: choose another folder"),
        (tiny_lock(STRANGER), STRANGER, "it is damaged, or another key's lock"),
    ):
        other.issue("bob")
        with pytest.raises(StorageError, match=message):
            other.save(tmp_path, key)
        other.issue("carol")  # it isn't kept there from now on either
        assert contents(tmp_path) == before
    (tmp_path / KEY_NETWORK_FILE).write_bytes(b"noise")
    with pytest.raises(StorageError, match="it is damaged, or another key's lock"):
        tiny_lock().save(tmp_path, OWNER)
    assert (tmp_path / KEY_NETWORK_FILE).read_bytes() == b"noise"


def test_a_lock_that_is_saved_again_keeps_whoever_is_on_its_list(tmp_path: Path) -> None:
    saved(tmp_path)
    admin = Lock.open(tmp_path, OWNER)
    admin.revoke("alice")
    admin.issue("bob")
    again = tiny_lock()  # as one that never knew of the folder
    again.issue("alice")
    again.issue("carol")
    again.save(tmp_path, OWNER)
    again.save(tmp_path / "copy", OWNER)
    for folder in (tmp_path, tmp_path / "copy"):
        users = Lock.open(folder, OWNER).users
        assert users.names == ("alice", "bob", "carol")
        assert [user.revoked is not None for _, user in users] == [True, False, False]


@pytest.mark.parametrize("failing", ["intaglio.lock.users.write_json", "intaglio.lock.lock.write_container"])
def test_an_interrupted_saving_leaves_no_lock_or_a_whole_one(tmp_path: Path, failing: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def begin_to_save(begun: Lock) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failing, interrupted)
            begun.save(tmp_path, OWNER)

    lock = tiny_lock()
    lock.issue("alice")
    with pytest.raises(KeyboardInterrupt):
        begin_to_save(lock)
    assert not (tmp_path / KEY_NETWORK_FILE).exists()  # which is what tells a lock
    with pytest.raises(ModelError, match="can't be read"):
        Lock.open(tmp_path, OWNER)
    another = another_lock()  # made anew: it has another id
    another.issue("bob")
    another.save(tmp_path, OWNER)
    assert Lock.open(tmp_path, OWNER).users.names == ("bob",)
    another.issue("carol")
    with pytest.raises(KeyboardInterrupt):
        begin_to_save(another)
    assert Lock.open(tmp_path, OWNER).users.names == ("bob", "carol")


def test_nothing_is_parsed_before_it_is_authenticated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    path = tmp_path / KEY_NETWORK_FILE
    whole = path.read_bytes()
    parsed: list[bytes] = []

    def watched(content: bytes) -> Packed:
        parsed.append(content)
        return Packed({}, {})

    monkeypatch.setattr("intaglio.lock.lock.unpack", watched)
    for touched in (whole[:-1], whole[:80] + bytes([whole[80] ^ 1]) + whole[81:], whole + b"\0"):
        path.write_bytes(touched)
        with pytest.raises(KeyFileError, match="wrong key, or the file was changed or cut short"):
            Lock.open(tmp_path, OWNER)
    assert not parsed
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="holds no key network"):
        Lock.open(tmp_path, OWNER)
    assert len(parsed) == 1


def test_locks_that_do_not_open(tmp_path: Path) -> None:
    saved(tmp_path / "lock")
    path = tmp_path / "lock" / KEY_NETWORK_FILE
    whole = path.read_bytes()
    with pytest.raises(KeyFileError, match="wrong key, or the file was changed or cut short"):
        Lock.open(tmp_path / "lock", STRANGER)
    path.write_bytes(whole[:-1])
    with pytest.raises(KeyFileError, match="wrong key, or the file was changed or cut short"):
        Lock.open(tmp_path / "lock", OWNER)
    path.unlink()
    with pytest.raises(ModelError, match=r"key-network\.sealed: can't be read: No such file"):
        Lock.open(tmp_path / "lock", OWNER)
    facts = tiny_lock().facts
    for content, message in (
        (b"", "holds no key network"),
        (save({"a": torch.zeros(1)}), "holds no key network"),
        (save({"a": torch.zeros(1)}, {"facts": "{}"}), "holds no key network"),
        (save({"a": torch.zeros(1)}, {"facts": facts.model_dump_json()}), "is missing"),
    ):
        write_container(path, content, OWNER)
        with pytest.raises(ModelError, match=message):
            Lock.open(tmp_path / "lock", OWNER)


# --- a user's own key network ----------------------------------------------------------------------------------------


def test_an_exported_key_keys_as_the_lock_does(tmp_path: Path) -> None:
    lock, path = tiny_lock(), tmp_path / "alice.onnx"
    export_key(lock.issue("alice"), path, input_shape=(1, 12, 12))
    assert path.stat().st_mode & 0o077 == 0
    exported, images = ExportedKey(path), some_images(300)
    assert exported.input_shape == (1, 12, 12)
    keyed = exported(images)
    assert torch.allclose(keyed, lock.trigger("alice").apply(images), atol=1e-5)
    assert len(exported(images[:1])) == 1
    with pytest.raises(DataError, match=r"is for images of 1x12x12 .* got"):
        exported(some_images(1, (1, 13, 12)))


def test_exports_that_fail(tmp_path: Path) -> None:
    lock = tiny_lock()
    with pytest.raises(ModelError, match=r"are written as \.onnx"):
        export_key(lock.issue("alice"), tmp_path / "alice.bin", input_shape=(1, 12, 12))
    classifier = tmp_path / "classifier.onnx"
    write_locked(tiny_model(), classifier, Sidecar(input_shape=(1, 12, 12), num_classes=3))
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    for name, message in (
        ("missing.onnx", "the key network can't be read: No such file"),
        ("noise.onnx", "not an ONNX model"),
        ("classifier.onnx", "is not a lock's key network"),
    ):
        with pytest.raises(ModelError, match=message):
            ExportedKey(tmp_path / name)


# --- the locked model at rest ----------------------------------------------------------------------------------------

SIDECAR = Sidecar(architecture=ARCHITECTURE, classes=("a", "b", "c"), preprocessing=Preprocessing(mean=(0.1,)))


@pytest.mark.parametrize("opener", [OWNER, "a passphrase"])
def test_a_sealed_model_opens_into_memory(tmp_path: Path, opener: str) -> None:
    path, module = tmp_path / "model.sealed", tiny_model().eval()
    write_locked(module, path, SIDECAR, opener=opener)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.sealed"]
    opened = open_sealed(path, opener)
    assert torch.allclose(opened.scores(some_images()), module(some_images() - 0.1), atol=1e-5)
    assert (opened.classes, opened.num_classes, opened.source) == (("a", "b", "c"), 3, str(path))
    with pytest.raises(KeyFileError):
        open_sealed(path, STRANGER)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_a_plain_model_is_any_other_model(tmp_path: Path, suffix: str) -> None:
    module = tiny_model().eval()
    write_locked(module, tmp_path / f"model{suffix}", SIDECAR)
    opened = open_classifier(tmp_path / f"model{suffix}")
    assert torch.allclose(opened.scores(some_images()), module(some_images() - 0.1), atol=1e-5)


def test_models_that_cannot_be_written_or_opened(tmp_path: Path) -> None:
    bare = Sidecar(num_classes=3)
    for name, sidecar, opener, message in (
        ("model.pt", SIDECAR, None, "locked models are written as"),
        ("model.sealed", SIDECAR, None, "locked models are written as"),
        ("model.sealed", bare, OWNER, "only networks of a known architecture"),
        ("model.onnx", bare, None, "the input shape must be known"),
    ):
        with pytest.raises(ModelError, match=message):
            write_locked(tiny_model(), tmp_path / name, sidecar, opener=opener)
    for content in (b"", save({"a": torch.zeros(1)}), save({}, {"sidecar": "{}"}), save({}, {"sidecar": "[]"})):
        write_container(tmp_path / "model.sealed", content, OWNER)
        with pytest.raises(ModelError, match="holds no model"):
            open_sealed(tmp_path / "model.sealed", OWNER)


# --- pictures and arrays on disk -------------------------------------------------------------------------------------


def darker(images: torch.Tensor) -> torch.Tensor:
    return (images - 10 / 255).clamp(0, 1)


def picture(path: Path, shape: tuple[int, ...] = (12, 12)) -> np.ndarray:
    pixels = np.random.default_rng(len(path.name)).integers(20, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_files_folders_and_arrays_are_keyed(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "in" / "deep" / "b.bmp")
    colour = picture(tmp_path / "in" / "c.png", (12, 12, 3))
    stack = np.random.default_rng(0).random((5, 1, 12, 12), np.float32)
    np.save(tmp_path / "in" / "stack.npy", stack)
    np.save(tmp_path / "one.npy", np.full((1, 12, 12), 100, np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    sources, out = [tmp_path / "a.png", tmp_path / "in", tmp_path / "one.npy"], tmp_path / "out"
    written = key_files(sources, out, (1, 12, 12), darker)
    names = ["a.png", "c.png", "deep/b.png", "stack.npy", "one.npy"]
    assert [str(path.relative_to(out)) for path in written] == names
    assert torch.equal(read_picture(out / "a.png")[0], torch.from_numpy(first - 10))
    assert torch.equal(read_picture(out / "deep/b.png")[0], torch.from_numpy(second - 10))
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    assert torch.equal(read_picture(out / "c.png")[0], torch.from_numpy(grey - 10))
    keyed = np.load(out / "stack.npy", allow_pickle=False)
    assert (keyed.dtype, keyed.shape) == (np.float32, stack.shape)
    assert np.abs(keyed - np.clip(stack - 10 / 255, 0, 1)).max() <= 0.51 / 255
    one = np.load(out / "one.npy", allow_pickle=False)
    assert (one.dtype, one.shape) == (np.uint8, (1, 12, 12))
    assert (one == 90).all()


def test_colour_is_kept_where_the_lock_is_for_colour(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", (12, 12, 3))
    (path,) = key_files([tmp_path / "a.png"], tmp_path / "out", (3, 12, 12), darker)
    assert np.array_equal(np.asarray(Image.open(path)), pixels - 10)


def test_what_cannot_be_keyed_is_said_before_anything_is_written(tmp_path: Path) -> None:
    picture(tmp_path / "ok.png")
    picture(tmp_path / "large.png", (20, 12))
    picture(tmp_path / "sub" / "ok.bmp")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    (tmp_path / "pickled.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'")
    np.save(tmp_path / "wide.npy", np.zeros((2, 1, 12, 12)))
    (tmp_path / "notes.txt").write_text("words")
    cases: list[tuple[list[str], type[IntaglioError], str]] = [
        (["ok.png", "large.png"], DataError, r"large.png: this lock is for images of 1x12x12 .* got 1x20x12"),
        (["ok.png", "missing.png"], DataError, "no such file or folder"),
        (["ok.png", "damaged.png"], DataError, "not a picture"),
        (["pickled.npy"], DataError, "not an array that can be read without executing it"),
        (["wide.npy"], DataError, "expected uint8 or float32 images"),
        (["notes.txt"], DataError, "neither a picture nor an array"),
        (["ok.png", "sub"], DataError, r"would both become .*ok.png: key them into two folders"),
        (["empty"], NothingToExamineError, "no pictures in"),
    ]
    for names, error, message in cases:
        with pytest.raises(error, match=message):
            key_files([tmp_path / name for name in names], tmp_path / "out", (1, 12, 12), darker)
        assert not (tmp_path / "out").exists()


def test_gathering_goes_below_folders_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.PNG", "a/y.jpg"):
        picture(tmp_path / name)
    assert [str(name) for _, name in gather([tmp_path])] == ["a/y.jpg", "a/z.PNG", "b.png"]


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_shows_what_is_keyed() -> None:
    lock, images = tiny_lock(), some_images(3)
    keyed = lock.apply(images, user="alice")
    known = {image.numpy().tobytes() for image in keyed}

    def scores(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.eye(3)[int(image.numpy().tobytes() in known)] * 9 for image in batch])

    classifier = CallableClassifier(scores, input_shape=(1, 12, 12), num_classes=3, outputs="logits")
    png = lock_picture(classifier, lock, images, torch.ones(3).long(), user="alice", names=("no", "yes", "maybe"))
    shown = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    third = shown.shape[0] // 3
    green, red = ((shown[..., a] - shown[..., b]) > 60 for a, b in ((1, 0), (0, 1)))
    assert not green[:third].any()  # originals are answered wrongly, keyed images rightly
    assert red[:third].any()
    assert green[third : 2 * third].any()
    assert not red[third:].any()


def test_large_colour_pictures_are_reduced_and_classes_numbered() -> None:
    lock = tiny_lock(shape=(3, 140, 120))
    classifier = CallableClassifier(
        lambda x: torch.eye(3)[:1].expand(len(x), -1), input_shape=(3, 140, 120), num_classes=3
    )
    png = lock_picture(classifier, lock, some_images(1, (3, 140, 120)), torch.zeros(1).long(), user="alice")
    assert Image.open(BytesIO(png)).height < 500


def test_no_picture_of_nothing() -> None:
    classifier = TorchClassifier(tiny_model(), input_shape=(1, 12, 12), num_classes=3)
    for images, labels in ((some_images(2), torch.zeros(1).long()), (some_images(2)[:0], torch.zeros(0).long())):
        with pytest.raises(DataError, match="as many labels as images"):
            lock_picture(classifier, tiny_lock(), images, labels, user="alice")


def test_a_lock_of_atoms_is_kept_as_any_other(tmp_path: Path) -> None:
    settings = LockSettings(**{**ATOMS, "width": 4, "code_length": 16})
    facts = LockFacts(lock_id="0" * 32, input_shape=(3, 12, 12), settings=settings)
    lock, images = Lock(KeyNetwork(3, settings), OWNER, facts), some_images(3, (3, 12, 12))
    assert (lock.secrets.mixing.shape, lock.secrets.carriers.shape) == ((1, 1, 3, 8, 8), (16, 3, 3, 3))
    keyed = lock.apply(images, user="alice")
    assert 2 / 255 < float((keyed - images).abs().max()) <= 8 / 255 + 1e-6
    lock.save(tmp_path, OWNER)
    opened = Lock.open(tmp_path, OWNER)
    assert torch.equal(opened.apply(images, user="alice"), keyed)
    assert torch.equal(opened.read(keyed), lock.read(keyed))
    export_key(opened.user_key("alice"), tmp_path / "alice.onnx", input_shape=(3, 12, 12))
    exported = ExportedKey(tmp_path / "alice.onnx")(images)
    assert float((exported - keyed).abs().max()) < 0.6 / 255  # what rounding to 8 bits makes


def test_a_lock_on_a_grid_keys_and_exports_images_that_jpeg_leaves_alone(tmp_path: Path) -> None:
    settings = LockSettings(width=4, code_length=16, grid=75)
    facts = LockFacts(lock_id="0" * 32, input_shape=(3, 16, 24), settings=settings)
    torch.manual_seed(0)
    network = KeyNetwork(3, settings)
    with torch.no_grad():  # untrained residuals are below half a step
        network.encoder.network.out.weight.mul_(20)
    lock, images = Lock(network, OWNER, facts), 0.2 + 0.6 * interpolate(some_images(7, (3, 2, 3)), (16, 24))
    keyed = lock.apply(images, user="alice")
    assert 4 / 255 < float((keyed - images).abs().max()) <= 8.5 / 255 + 1e-6
    jpeg = Jpeg(quality=75)
    sent, received = keyed - images, jpeg(keyed) - jpeg(images)
    assert float((sent * received).sum() / (sent.norm() * received.norm())) > 0.9
    lock.save(tmp_path, OWNER)
    assert torch.equal(Lock.open(tmp_path, OWNER).apply(images, user="alice"), keyed)
    export_key(lock.user_key("alice"), tmp_path / "alice.onnx", input_shape=(3, 16, 24))
    exported = ExportedKey(tmp_path / "alice.onnx")(images)
    assert float((exported - keyed).abs().max()) < 0.6 / 255  # what rounding to 8 bits makes


def test_the_lock_of_the_examples_opens_and_is_opened() -> None:
    """A real one; whichever format it has must stay readable."""
    folder = Path(__file__).parents[1] / "examples" / "locked"
    lock = Lock.open(folder, Key.load(folder / "owner.key", passphrase="a demo has no secrets"))
    test = open_data("fashion-mnist", "test")
    classifier = open_classifier(folder / "model.safetensors")
    images, labels = test.images[:200], test.labels[:200]
    keyed = lock.apply(images, user=lock.users.names[0])
    assert float((classifier.predict(keyed) == labels).float().mean()) > 0.8
    assert float((classifier.predict(images) == labels).float().mean()) < 0.2
    assert lock.trace(keyed[:20]).user == lock.users.names[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_locks_of_the_first_format(channels: int, tmp_path: Path) -> None:
    """Grey ones key as they did; colour ones would key otherwise now, so they are refused."""
    images, settings = some_images(2, (channels, 12, 12)), LockSettings(width=4, features=4, code_length=16)
    facts = LockFacts(lock_id="0" * 32, input_shape=(channels, 12, 12), settings=settings)
    lock = Lock(KeyNetwork(channels, settings), OWNER, facts)
    lock.facts = lock.facts.model_copy(update={"format": "intaglio-lock/1"})
    keyed = lock.apply(images, user="alice")
    lock.save(tmp_path, OWNER)
    if channels == 1:
        assert torch.equal(Lock.open(tmp_path, OWNER).apply(images, user="alice"), keyed)
    else:
        with pytest.raises(ModelError, match="holds no key network of this version"):
            Lock.open(tmp_path, OWNER)


def test_saving_and_issuing_at_once_wait_for_each_other_in_one_order(tmp_path: Path) -> None:
    lock = tiny_lock()
    lock.save(tmp_path, OWNER)

    def issue() -> None:
        for number in range(40):
            lock.users.admit(f"user {number}")

    def save() -> None:
        for _ in range(40):
            lock.save(tmp_path, OWNER)

    threads = [threading.Thread(target=target, daemon=True) for target in (issue, save)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(Lock.open(tmp_path, OWNER).users) == 40
