"""Locks on video networks: one key in every frame, users traced over frames, files of clips, and the commands."""

import zipfile
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import intaglio.evidence.key as key_module
from intaglio.classifiers import CallableClassifier
from intaglio.cli.main import ExitCode, main
from intaglio.data.picture import read_picture
from intaglio.errors import DataError
from intaglio.lock import ExportedKey, Lock, LockSettings, check_lock, lock_picture, train_lock
from intaglio.lock.attacks import SurrogateEncoder
from intaglio.lock.channel import distort
from intaglio.lock.codes import random_codes, spread
from intaglio.lock.frames import for_frames, frame_count, frames, keyed
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.keyed_arrays import ImageArrays
from intaglio.lock.keyed_files import key_files
from intaglio.lock.lock import LockFacts
from intaglio.lock.negatives import Authorised, Negatives
from intaglio.lock.quality import psnr, ssim
from intaglio.lock.traced_files import trace_files
from protected_clips import OWNER, SHAPE, classifier_of, host, known_network, moving_bars, written

TINY = LockSettings(width=4, features=4, code_length=16, steps=2, refining_steps=2, batch_size=16)
FRAME = (1, 12, 12)


def tiny_lock(shape: Any = SHAPE) -> Lock:
    torch.manual_seed(0)
    facts = LockFacts(lock_id="0" * 32, input_shape=shape, settings=TINY)
    return Lock(KeyNetwork(shape[-3], TINY), OWNER, facts)


def clips(count: int = 3, length: int = 3, channels: int = 1) -> torch.Tensor:
    drawn = torch.randint(0, 256, (count, length, channels, 12, 12), generator=torch.Generator().manual_seed(4))
    return drawn.float() / 255


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


# --- frame by frame --------------------------------------------------------------------------------------------------


def test_a_clip_is_keyed_as_its_frames_are() -> None:
    lock, given = tiny_lock(), clips()
    found = lock.apply(given, user="alice")
    alone = lock.apply(given.flatten(0, 1), user="alice")
    assert torch.equal(found.flatten(0, 1), alone)
    assert float((found - given).abs().max()) > 0
    longer = clips(1, 7)
    assert torch.equal(lock.apply(longer, user="alice")[:, :5], lock.apply(longer[:, :5], user="alice"))


def test_frames_of_images_are_the_images_themselves() -> None:
    images, values = clips()[:, 0], torch.arange(3.0)[:, None]
    assert frames(images) is images
    assert (frame_count(images), frame_count(clips(2, 5))) == (1, 5)
    assert for_frames(values, images) is values
    assert for_frames(values, clips()).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(for_frames(values[:1], clips())) == 1


def test_each_clip_has_a_key_of_its_own_in_training_and_all_its_frames_share_it() -> None:
    lock, given = tiny_lock(), clips(2, 4)
    planes = spread(random_codes(2, 16, generator()), lock.secrets.carriers)
    mixing = lock.network.encoder.draw_mixing(2, generator())
    with torch.no_grad():
        together = keyed(lock.network.encoder, given, planes, mixing)
        for index in range(2):
            alone = lock.network.encoder(given[index], planes[index : index + 1], mixing[index : index + 1])
            assert torch.allclose(together[index], alone, atol=1e-6)


def test_the_channel_and_the_negatives_keep_the_shape_of_clips() -> None:
    lock, given = tiny_lock(), clips(8, 2)
    altered = distort(given, generator())
    assert altered.shape == given.shape
    assert torch.equal(altered, ((altered * 255).round() / 255))
    untouched = (altered - given).abs().flatten(1).amax(dim=1) == 0
    assert 1 <= int(untouched.sum()) < 8
    with torch.no_grad():
        planes = spread(random_codes(8, 16, generator()), lock.secrets.carriers)
        with_key = keyed(lock.network.encoder, given, planes, lock.secrets.mixing)
        drawer = Negatives(lock.network.encoder, lock.secrets.rivals, generator())
        drawn = drawer.draw(Authorised(given, with_key, planes, torch.arange(8) % 3))
        rival = keyed(lock.network.encoder, given, planes, lock.secrets.rivals[drawn.rivals[:1]])[drawn.origins[0]]
    assert drawn.images.shape == (len(drawn.origins), *given.shape[1:])
    assert 0 <= float(drawn.images.min()) <= float(drawn.images.max()) <= 1
    assert torch.allclose(drawn.images[0], rival, atol=1e-6)


def test_quality_is_that_of_every_frame() -> None:
    given = clips(2, 3)
    other = (given + 0.1 * (torch.arange(3) == 1)[:, None, None, None]).clamp(0, 1)
    assert torch.equal(psnr(given, other), psnr(given.flatten(0, 1), other.flatten(0, 1)))
    assert (psnr(given, other) > 100).tolist() == [True, False, True] * 2
    assert ssim(given, given).shape == (6,)


def test_a_surrogate_forges_clips() -> None:
    assert SurrogateEncoder(1, width=4)(clips()).shape == clips().shape


# --- tracing ---------------------------------------------------------------------------------------------------------


def test_tracing_averages_over_frames() -> None:
    lock, given = tiny_lock(), clips(2, 5)
    lock.issue("alice")
    felt = lock.read(given)
    alone = lock.read(given.flatten(0, 1))
    assert torch.allclose(felt, alone.view(2, 5, *felt.shape[1:]).mean(dim=1), atol=1e-6)
    assert len(lock.trace(given).images) == 2
    assert len(lock.trace(given.flatten(0, 1)).images) == 10
    with pytest.raises(DataError, match=r"this lock is for images of 1x12x12 .* got 3x12x12"):
        lock.trace(clips(1, 2, 3))


def test_frames_that_each_say_little_name_their_user_together() -> None:
    lock = tiny_lock()
    for name in ("alice", "bob", "carol"):
        lock.issue(name)
    code = lock.secrets.code("bob")
    noise = torch.randn(60, 16, generator=generator())
    lock.network.decoder.forward = lambda images, carriers, mixing: 0.7 * code + noise[: len(images)]  # type: ignore[method-assign]
    found = lock.trace(clips(1, 60))
    assert (found.user, found.images[0].user) == ("bob", "bob")


# --- training and keeping --------------------------------------------------------------------------------------------


def test_a_lock_on_clips_is_trained_saved_and_checked(tmp_path: Path) -> None:
    data, test = moving_bars(32, 1), moving_bars(12, 2)
    locked, lock = train_lock(host(), data, OWNER, settings=TINY)
    assert (lock.input_shape, lock.frame_shape) == (SHAPE, FRAME)
    lock.issue("alice")
    lock.save(tmp_path, OWNER)
    again = Lock.open(tmp_path, OWNER)
    given = test.images
    assert torch.equal(again.apply(given, user="alice"), lock.apply(given, user="alice"))
    table = check_lock(classifier_of(locked), lock, test, other=tiny_lock())
    assert {"keyed, PNG", "keyed, JPEG 75", "no key", "another lock's key"} <= {row.inputs for row in table.rows}
    assert table.worst_psnr >= TINY.psnr - 0.5  # rounded to 8 bits
    once_more, same = train_lock(host(), data, OWNER, settings=TINY, lock=lock)
    assert same is lock
    assert classifier_of(once_more).predict(given).shape == (12,)


# --- files -----------------------------------------------------------------------------------------------------------


def darker(images: torch.Tensor) -> torch.Tensor:
    return (images - 10 / 255).clamp(0, 1)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(20, 256, shape, np.uint8)


def test_archives_come_back_with_their_images_keyed_and_all_else_as_it_was(tmp_path: Path) -> None:
    first, last = pixels(4, 3, 3, 12, 12), pixels(2, 12, 12, 3)
    floats = (pixels(3, 12, 12) / np.float32(255)).astype(np.float32)
    labels, names = np.arange(4), np.array(["a", "b"])
    arrays = {"x_train": first, "x_test": last, "y_train": labels, "classes": names, "file": labels}
    save_arrays(tmp_path / "clips.npz", arrays)
    np.savez(tmp_path / "grey.npz", allow_pickle=False, images=floats)
    written_to = key_files([tmp_path / "clips.npz"], tmp_path / "out", (3, 12, 12), darker)
    with np.load(written_to[0], allow_pickle=False) as found:
        assert set(found.files) == {"x_train", "x_test", "y_train", "classes", "file"}
        assert np.array_equal(found["x_train"], first - 10)
        assert np.array_equal(found["x_test"], last - 10)
        assert np.array_equal(found["y_train"], labels)
        assert found["classes"].tolist() == ["a", "b"]
    key_files([tmp_path / "grey.npz"], tmp_path / "out", FRAME, darker)
    with np.load(tmp_path / "out" / "grey.npz", allow_pickle=False) as found:
        assert (found["images"].dtype, found["images"].shape) == (np.float32, floats.shape)
        assert np.abs(found["images"] - np.clip(floats - 10 / 255, 0, 1)).max() < 0.51 / 255


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`np.savez` takes no array called `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def test_clips_in_npy_files_and_frames_in_folders(tmp_path: Path) -> None:
    stack = pixels(2, 3, 1, 12, 12)
    np.save(tmp_path / "clips.npy", stack)
    for index, frame in enumerate(stack[0, :, 0]):
        (tmp_path / "clip").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index}.png")
    key_files([tmp_path / "clips.npy", tmp_path / "clip"], tmp_path / "out", FRAME, darker)
    assert np.array_equal(np.load(tmp_path / "out" / "clips.npy", allow_pickle=False), stack - 10)
    shown = [read_picture(tmp_path / "out" / f"{index}.png").numpy() for index in range(3)]
    assert np.array_equal(np.stack(shown), stack[0] - 10)
    lock = tiny_lock()
    lock.issue("alice")
    found, places = trace_files([tmp_path / "clips.npy"], lock)
    assert found == lock.trace(torch.from_numpy(stack).float() / 255)
    assert places == [tmp_path / "clips.npy"] * 2
    found, places = trace_files([tmp_path / "clips.npy", tmp_path / "clip" / "0.png"], lock)
    alone = torch.from_numpy(np.concatenate([stack.reshape(-1, 1, 12, 12), stack[0, :1]])).float() / 255
    assert [match.p_value for match in found.images] == pytest.approx(
        [match.p_value for match in lock.trace(alone).images], rel=1e-4
    )
    assert places == [tmp_path / "clips.npy"] * 6 + [tmp_path / "clip" / "0.png"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(3)}, "no images in it; it holds labels"),
        ({"images": pixels(2, 3, 1, 12, 13)}, "this lock is for images of 1x12x12 .* got 1x12x13"),
        ({"images": np.zeros((2, 1, 12, 12))}, "expected uint8 or float32 images"),
        ({"images": pixels(1, 2, 3, 1, 12, 12)}, r"or clips \[N, T, C, H, W\]"),
        ({"images": np.array([None])}, "can't be read|not an array"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        ImageArrays(tmp_path / "bad.npz", FRAME)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match="not an array that can be read without executing it"):
        ImageArrays(tmp_path / "bad.npz", FRAME)


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.lock.keyed_arrays.MAX_BYTES", 100)
    np.savez(tmp_path / "big.npz", allow_pickle=False, images=pixels(2, 1, 12, 12))
    with pytest.raises(DataError, match="over the limit of 100"):
        ImageArrays(tmp_path / "big.npz", FRAME)


# --- the picture and the commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_picture_shows_frames(length: int) -> None:
    lock = tiny_lock((length, 1, 12, 12))
    classifier = CallableClassifier(
        lambda x: torch.eye(3)[:1].expand(len(x), -1), input_shape=(length, 1, 12, 12), num_classes=3
    )
    given = torch.zeros(1, length, 1, 12, 12)
    given[:, -1] = 1
    png = lock_picture(classifier, lock, given, torch.zeros(1).long(), user="alice")
    shown = np.asarray(Image.open(BytesIO(png)).convert("L"))[24:136, 8:120].astype(int)
    lit = [shown[:50, :50].mean() > 100, shown[:50, 62:].mean() > 100, shown[62:, :50].mean() > 100]
    assert lit == {1: [True, True, True], 3: [False, False, True], 9: [False, False, False]}[length]
    assert (shown[62:, 62:].mean() > 100) == (length != 3)


@pytest.fixture
def _small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("width", "features"):
            patch.setattr(LockSettings.model_fields[name], "default", getattr(TINY, name))
        LockSettings.model_rebuild(force=True)
        yield
    LockSettings.model_rebuild(force=True)


@pytest.mark.usefixtures("_small_networks")
def test_clips_are_locked_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_module, "_COST", {"n": 4, "r": 8, "p": 1})
    monkeypatch.setattr("sys.stdin", StringIO())
    with known_network():
        given = written(tmp_path)
        secret = ["--key", str(given / "owner.key"), "--passphrase-file", str(given / "passphrase"), "-q"]
        owned = ["--lock", str(given / "lock"), *secret]
        data, model = ["--data", str(given / "clips.npz")], str(given / "lock" / "model.safetensors")
        sizes = ["--code-length", "16", "--batch-size", "16", "--steps", "2", "--refining-steps", "2"]
        train = ["lock", "train", str(given / "host.safetensors"), *data, "--out", str(given / "lock"), *sizes]
        assert main([*train, *secret]) in (ExitCode.CLEAN, ExitCode.FOUND)
        assert main(["lock", "issue", "--user", "alice", "--out", str(given / "a.onnx"), *owned]) == ExitCode.CLEAN
        exported, some = ExportedKey(given / "a.onnx"), clips(2, 4)
        assert exported.input_shape == FRAME
        opened = Lock.open(given / "lock", OWNER)
        assert torch.allclose(exported(some), opened.trigger("alice").apply(some), atol=1e-5)
        assert torch.allclose(exported(some[:, 0]), exported(some)[:, 0], atol=1e-6)
        with pytest.raises(DataError, match="is for images of"):
            exported(clips(1, 2, 3))
        apply = ["lock", "apply", str(given / "clips.npz"), "-q", "--out"]
        assert main([*apply, str(given / "user"), "--key-network", str(given / "a.onnx")]) == ExitCode.CLEAN
        assert main([*apply[:-2], "--out", str(given / "owner"), "--user", "alice", *owned]) == ExitCode.CLEAN
        with np.load(given / "user" / "clips.npz") as user, np.load(given / "owner" / "clips.npz") as owner:
            assert user["x_test"].shape == (30, 3, 12, 12, 1)
            assert np.abs(user["x_test"].astype(int) - owner["x_test"]).max() <= 1
        assert main(["lock", "trace", str(given / "owner" / "clips.npz"), *owned]) in (ExitCode.CLEAN, ExitCode.FOUND)
        assert main(["lock", "check", model, *data, *owned]) in (ExitCode.CLEAN, ExitCode.FOUND)
        shown = ["--user", "alice", "--count", "2", "--out", str(given / "lock.png")]
        assert main(["lock", "picture", model, *data, *shown, *owned]) == ExitCode.CLEAN
        assert Image.open(given / "lock.png").height > 300
