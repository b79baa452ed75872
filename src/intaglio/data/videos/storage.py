"""Clips kept without loss: uint8 arrays that are mapped into memory, and FFV1 videos; both written clip by clip."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from intaglio.data.images import UNLABELLED
from intaglio.data.npz import DAMAGED_ARCHIVE, DAMAGED_ARRAY
from intaglio.data.videos.decoding import load_av
from intaglio.data.videos.video_data import VideoData
from intaglio.errors import DataError, one_line
from intaglio.files import atomic_path, write_json

_CLASSES = "classes.json"
_CLASSES_LIMIT = 2**24


class Clip(NamedTuple):
    """One clip, uint8 `[T, C, H, W]`, its label, and the number of the video it is from."""

    pixels: Tensor
    label: int
    video: int


def to_bytes(clips: Tensor) -> Tensor:
    """Values in [0, 1] as uint8, rounded; exact for what came from 8 bits."""
    return (clips * 255).round().to(torch.uint8)


class ClipWriter:
    """Writes `{split}_clips.npy` (uint8 `[N, T, C, H, W]`) and `{split}_labels.npy` in constant memory.

    A context manager: the files appear, whole, when it is left; if that is by an exception, or before all `count`
    clips were added, they don't.

    Raises:
        DataError: a clip of another shape or type, or not `count` of them.
        StorageError: they can't be written.
    """

    def __init__(
        self, folder: Path | str, split: str, count: int, shape: tuple[int, ...], classes: tuple[str, ...] = ()
    ) -> None:
        if count < 1 or len(shape) != 4 or min(shape) < 1:
            raise DataError(f"{folder}: expected 1 or more clips (T, C, H, W), got {count} of {shape}")
        self._folder, self._split, self._classes = Path(folder), split, tuple(classes)
        self._shape, self._count = tuple(shape), count
        self._labels = np.full(count, UNLABELLED, np.int64)
        self._written = 0
        self._files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as files:
            self._clips_path = files.enter_context(atomic_path(self._folder / f"{self._split}_clips.npy"))
            self._labels_path = files.enter_context(atomic_path(self._folder / f"{self._split}_labels.npy"))
            self._clips: np.memmap[Any, Any] = npy.open_memmap(
                self._clips_path, mode="w+", dtype=np.uint8, shape=(self._count, *self._shape)
            )
            if hasattr(os, "posix_fallocate"):  # else a disk that gets full ends the process: the mapping has no error
                with self._clips_path.open("rb+") as stream:
                    os.posix_fallocate(stream.fileno(), 0, self._clips_path.stat().st_size)
            self._files = files.pop_all()
        return self

    def add(self, clip: Tensor, label: int) -> None:
        """The next clip: uint8, or float in [0, 1]."""
        pixels = to_bytes(clip) if clip.is_floating_point() else clip
        if tuple(pixels.shape) != self._shape or pixels.dtype != torch.uint8:
            raise DataError(f"{self._folder}: expected clips {self._shape}, got {pixels.dtype} {tuple(pixels.shape)}")
        if self._written == self._count:
            raise DataError(f"{self._folder}: more than the {self._count} clips that were announced")
        self._clips[self._written] = pixels.numpy()
        self._labels[self._written] = label
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._written != self._count:
            error = DataError(f"{self._folder}: {self._written} clips of the {self._count} that were announced")
            kind, trace = DataError, None
        if error is None:
            self._clips.flush()
            with self._labels_path.open("wb") as stream:
                np.save(stream, self._labels, allow_pickle=False)
            if self._classes:
                write_json(self._folder / _CLASSES, list(self._classes))
        del self._clips  # no mapping outlives the file's temporary name
        self._files.__exit__(kind, error, trace)
        if error is not None and kind is DataError and trace is None:
            raise error


class StoredClips:
    """Clips that `ClipWriter` wrote, read when they are asked for; the array stays on disk.

    Raises:
        DataError: no such split, damaged, or not what `ClipWriter` writes.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        self.name = str(folder)
        clips, labels = (Path(folder) / f"{split}_{part}.npy" for part in ("clips", "labels"))
        self.clips: NDArray[np.uint8] = _mapped(clips)
        if self.clips.dtype != np.uint8 or self.clips.ndim != 5 or 0 in self.clips.shape:
            raise DataError(f"{clips}: expected uint8 clips [N, T, C, H, W], got {self.clips.dtype} {self.clips.shape}")
        numbers = _mapped(labels)
        if numbers.dtype != np.int64 or numbers.shape != self.clips.shape[:1]:
            raise DataError(f"{labels}: expected {len(self.clips)} int64 labels, got {numbers.dtype} {numbers.shape}")
        self.labels = torch.from_numpy(np.array(numbers))
        self.classes = _read_classes(Path(folder) / _CLASSES)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(T, C, H, W)`."""
        return tuple(self.clips.shape[1:])

    def stream(self) -> Iterator[Clip]:
        """Every clip in turn."""
        for place, label in enumerate(self.labels.tolist()):
            yield Clip(torch.from_numpy(np.array(self.clips[place])), label, place)

    def load(self) -> VideoData:
        """All of them in memory."""
        pixels = torch.from_numpy(np.array(self.clips)).float() / 255
        return VideoData(pixels, self.labels, self.classes, self.name)


def holds_stored_clips(folder: Path) -> bool:
    """Whether `ClipWriter` wrote here."""
    return any(folder.glob("*_clips.npy"))


def write_ffv1(path: Path | str, clip: Tensor, *, rate: int = 25) -> None:
    """Writes a clip `[T, C, H, W]` (uint8, or float in [0, 1]; grey or RGB) to `.mkv` so that each bit comes back.

    Raises:
        DataError: another shape or suffix, or PyAV is not installed.
        StorageError: it can't be written.
    """
    av = load_av()
    pixels = to_bytes(clip) if clip.is_floating_point() else clip
    if Path(path).suffix != ".mkv":
        raise DataError(f"{path}: FFV1 is kept in .mkv")
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.numel() == 0 or pixels.dtype != torch.uint8:
        raise DataError(f"{path}: expected a clip [T, 1 or 3, H, W], got {pixels.dtype} {tuple(pixels.shape)}")
    grey = pixels.shape[1] == 1
    frames = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if grey else "bgr0"  # bgr0: the 8-bit RGB that FFV1 takes without converting to YUV
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame[..., 0] if grey else frame, format="gray" if grey else "rgb24")
            container.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())


def save_video_folder(folder: Path | str, split: str, clips: Iterable[Clip], classes: tuple[str, ...] = ()) -> int:
    """Writes clips as `folder/split/class/00000.mkv` (FFV1), one at a time, and returns how many.

    Raises:
        DataError: a label without a name.
        StorageError: they can't be written.
    """
    count = 0
    for clip in clips:
        if classes and not 0 <= clip.label < len(classes):
            raise DataError(f"{folder}: label {clip.label}, but there are {len(classes)} classes")
        name = classes[clip.label] if classes else str(clip.label)
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise DataError(f"{folder}: a class called '{name}' can't be the name of a folder")
        write_ffv1(Path(folder) / split / name / f"{count:05}.mkv", clip.pixels)
        count += 1
    return count


def _mapped(path: Path) -> NDArray[np.uint8]:
    """An `.npy` mapped read-only; its header is checked against the file's size by NumPy."""
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (*DAMAGED_ARRAY, *DAMAGED_ARCHIVE) as error:  # the latter: what begins as a zip archive is opened as one
        raise DataError(f"{path}: not an array of numbers, or damaged ({one_line(str(error))})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: not an array of numbers, or damaged")
    return array


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    if path.stat().st_size > _CLASSES_LIMIT:
        raise DataError(f"{path}: over {_CLASSES_LIMIT} bytes")
    try:
        names = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of names")
    return tuple(names)
