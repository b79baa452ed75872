"""Stored clips: what is written comes back bit for bit, clip by clip, or not at all."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

from intaglio.data import VideoData, open_data, open_videos
from intaglio.data.videos import Clip, ClipWriter, Sampling, StoredClips, save_video_folder, to_bytes, write_ffv1
from intaglio.errors import DataError, StorageError
from video_files import noise

SHAPE = (4, 3, 32, 48)
CLASSES = ("run", "walk")


def store(folder: Path, split: str = "train", count: int = 3) -> list[torch.Tensor]:
    clips = [noise(4, seed=seed) for seed in range(count)]
    with ClipWriter(folder, split, count, SHAPE, CLASSES) as writer:
        for number, clip in enumerate(clips):
            writer.add(clip if number % 2 else clip.float() / 255, number % 2)
    return clips


def test_arrays_come_back(tmp_path: Path) -> None:
    clips = store(tmp_path)
    stored = open_videos(tmp_path)
    assert isinstance(stored, StoredClips)
    assert isinstance(stored.clips, np.memmap)
    assert stored.input_shape == SHAPE
    assert len(stored) == 3
    assert stored.labels.tolist() == [0, 1, 0]
    assert stored.classes == CLASSES
    for clip, (pixels, label, video) in zip(clips, stored.stream(), strict=True):
        assert torch.equal(pixels, clip)
        assert label == video % 2
    data = open_data(tmp_path)
    assert isinstance(data, VideoData)
    assert torch.equal(to_bytes(data.images), torch.stack(clips))
    assert data.labels.tolist() == [0, 1, 0]
    store(tmp_path, "test", 1)
    assert len(open_data(tmp_path, "test")) == 1


def store_all(folder: Path, count: int, clips: list[torch.Tensor]) -> None:
    with ClipWriter(folder, "train", count, SHAPE) as writer:
        for clip in clips:
            writer.add(clip, 0)


def test_half_written_clips_are_not_there(tmp_path: Path) -> None:
    for count, added, message in (
        (2, [noise(4)], "1 clips of the 2 that were announced"),
        (1, [noise(4), noise(4)], "more than the 1 clips"),
        (1, [noise(5)], "expected clips"),
        (1, [noise(4).long()], "expected clips"),
    ):
        with pytest.raises(DataError, match=message):
            store_all(tmp_path, count, added)
    with pytest.raises(AttributeError):
        store_all(tmp_path, 1, [None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_old_clips_survive_a_failed_writing(tmp_path: Path) -> None:
    clips = store(tmp_path)
    with pytest.raises(DataError, match="0 clips of the 9"), ClipWriter(tmp_path, "train", 9, SHAPE):
        pass
    assert torch.equal(next(StoredClips(tmp_path, "train").stream()).pixels, clips[0])


@pytest.mark.parametrize(("count", "shape"), [(0, SHAPE), (1, (3, 32, 48)), (1, (0, 3, 2, 2))])
def test_clips_that_make_no_sense(tmp_path: Path, count: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected 1 or more clips"):
        ClipWriter(tmp_path, "train", count, shape)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't write"), ClipWriter(tmp_path / "file", "train", 1, SHAPE):
        pass
    with pytest.raises(StorageError, match="can't write"):
        write_ffv1(tmp_path / "file" / "v.mkv", noise(1))


def array(values: object, kind: str) -> np.ndarray:
    return np.asarray(values, kind)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_clips.npy", array([1], "u1"), r"expected uint8 clips \[N, T, C, H, W\], got uint8 \(1,\)"),
        ("train_clips.npy", np.zeros((3, *SHAPE), np.float32), "expected uint8 clips"),
        ("train_clips.npy", b"nonsense", "not an array of numbers, or damaged"),
        ("train_clips.npy", b"", "not an array of numbers, or damaged"),
        ("train_clips.npy", b"PK\x03\x04" + bytes(60), "not an array of numbers, or damaged"),
        ("train_clips.npy", b"\x93NUMPY\x01\x00\x40\x00{'descr': '|u1', 'shape': (1,".ljust(74), "or damaged"),
        ("train_labels.npy", array([1, 2], "i8"), "expected 3 int64 labels"),
        ("train_labels.npy", array([0.0, 1, 2], "f8"), "expected 3 int64 labels"),
        ("train_labels.npy", array([0, 1, 9], "i8"), r"labels span 0\.\.9, but there are 2 classes"),
        ("train_labels.npy", None, "No such file"),
        ("classes.json", b"{}", "expected a list of names"),
        ("classes.json", b"[1]", "expected a list of names"),
        ("classes.json", b"[", "damaged"),
    ],
)
def test_damaged_clips(tmp_path: Path, name: str, content: np.ndarray | bytes | None, message: str) -> None:
    store(tmp_path)
    (tmp_path / name).unlink()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_other_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path)
    with pytest.raises(DataError, match=r"test_clips\.npy: No such file"):
        open_data(tmp_path, "test")
    whole = (tmp_path / "train_clips.npy").read_bytes()
    (tmp_path / "train_clips.npy").write_bytes(whole[:-1])  # the header claims more than there is
    with pytest.raises(DataError, match="damaged"):
        open_data(tmp_path)
    (tmp_path / "train_clips.npy").write_bytes(whole)
    np.save(tmp_path / "train_labels.npy", np.array([None] * 3, object))
    with pytest.raises(DataError, match="damaged"):
        open_data(tmp_path)
    np.save(tmp_path / "train_labels.npy", np.zeros(3, np.int64))
    monkeypatch.setattr("intaglio.data.videos.storage._CLASSES_LIMIT", 3)
    with pytest.raises(DataError, match=r"classes\.json: over 3 bytes"):
        open_data(tmp_path)


@settings(max_examples=20)
@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=3, max_dims=3)))
def test_bytes_survive_floats(pixels: np.ndarray) -> None:
    assert np.array_equal(to_bytes(torch.from_numpy(pixels).float() / 255).numpy(), pixels)


def test_a_folder_of_ffv1_videos_comes_back(tmp_path: Path) -> None:
    clips = [noise(4, seed=seed) for seed in range(3)]
    made = (Clip(clip, label, number) for number, (clip, label) in enumerate(zip(clips, (1, 0, 1), strict=True)))
    assert save_video_folder(tmp_path, "train", made, CLASSES) == 3
    data = open_data(tmp_path, "train", sampling=Sampling(frames=4))
    assert data.classes == CLASSES
    assert data.labels.tolist() == [0, 1, 1]
    assert torch.equal(to_bytes(data.images), torch.stack([clips[1], clips[0], clips[2]]))


def test_folders_without_class_names(tmp_path: Path) -> None:
    assert save_video_folder(tmp_path, "test", [Clip(noise(1, 1), 7, 0)]) == 1
    assert (tmp_path / "test" / "7" / "00000.mkv").is_file()


@pytest.mark.parametrize(
    ("label", "classes", "message"), [(2, CLASSES, "label 2, but"), (-1, CLASSES, "label -1"), (0, ("a/b",), "'a/b'"),
                                      (0, ("..",), r"'\.\.'")]
)  # fmt: skip
def test_folders_that_can_not_be_named(tmp_path: Path, label: int, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        save_video_folder(tmp_path, "train", [Clip(noise(1), label, 0)], classes)


@pytest.mark.parametrize(
    ("name", "clip", "message"),
    [
        ("v.mp4", noise(1), "FFV1 is kept in .mkv"),
        ("v.mkv", noise(1)[0], "expected a clip"),
        ("v.mkv", noise(1, 2), "expected a clip"),
        ("v.mkv", noise(1).long(), "expected a clip"),
        ("v.mkv", noise(1)[:0], "expected a clip"),
    ],
)
def test_clips_that_ffv1_can_not_hold(tmp_path: Path, name: str, clip: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_ffv1(tmp_path / name, clip)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axes", ["NTCHW", "NTHWC"])
def test_npz(tmp_path: Path, axes: str) -> None:
    clips = torch.stack([noise(4, seed=seed) for seed in range(2)])
    pixels = clips.numpy() if axes == "NTCHW" else np.moveaxis(clips.numpy(), 2, -1)
    np.savez(tmp_path / "v.npz", x_train=pixels, y_train=np.array([0, 1]), classes=np.array(CLASSES))
    data = open_data(tmp_path / "v.npz")
    assert data.input_shape == SHAPE
    assert torch.equal(to_bytes(data.images), clips)
    assert json.loads(json.dumps(data.classes)) == list(CLASSES)


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written through a mapping of a sparse file would end the process instead."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left on device"), ClipWriter(tmp_path, "train", 1, SHAPE):
        pass
    assert list(tmp_path.iterdir()) == []
