"""Chosen frames of one video, from a file (PyAV) or from a folder of pictures, with limits on what it may claim."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intaglio.data.picture import MAX_PIXELS, read_picture
from intaglio.data.videos.framing import Fit, as_grey, covering, framed
from intaglio.errors import DataError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

#: Whatever a file's suffix says: never play lists, which name other files and addresses.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"

MAX_FRAMES = 2**20
#: Pixels of all the frames that are read at once: 16 of 4096 x 4096.
MAX_CLIP_PIXELS = 2**28
#: A container may count some frames that its decoder never gives: up to so many at the end are the last one again.
_MISSING = 0.1

#: From the number of frames that there are to the places of those that are wanted: any order, repeats allowed.
Choice = Callable[[int], Sequence[int]]


def load_av() -> ModuleType:
    """PyAV, imported when it is first needed.

    Raises:
        DataError: not installed, or not usable here.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(f"videos need PyAV: pip install 'intaglio[video]' ({error})") from error
    return av


def read_clip(
    path: Path,
    choose: Choice,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "squash",
    channels: int | None = None,
) -> Tensor:
    """The chosen frames of a video file or of a folder of pictures, uint8 `[len(choose(count)), C, H, W]`.

    Every frame up to the last one wanted is decoded from the nearest key frame before the first; only those wanted are
    converted. `size` is `(H, W)` by bilinear interpolation, `fit` as in `framed`. `channels` is 1 or 3; by default grey
    videos stay grey and all others become RGB. A rotation written in the file is not applied.

    Raises:
        DataError: not a video, damaged, empty, or with more frames or pixels than the limits.
    """
    if path.is_dir():
        return _read_folder(path, choose, size=size, fit=fit, channels=channels)
    with _opened(path) as (container, stream):
        index = _Index(path, container, stream)
        wanted = _checked(choose(index.count), index.count, path)
        found: dict[int, NDArray[np.uint8]] = {}
        for place, frame in index.frames_from(min(wanted), max(wanted)):
            if place in wanted:
                found[place] = _pixels(frame, size, fit, channels, path, len(set(wanted)))
        return _stacked(found, wanted, index.count, path)


def count_frames(path: Path) -> int:
    """How many frames the container of a video holds, without decoding them, or a folder of pictures.

    Raises:
        DataError: not a video, empty, or over the limit.
    """
    if path.is_dir():
        return len(_pictures(path))
    with _opened(path) as (container, stream):
        return _Index(path, container, stream).count


def is_frame_folder(path: Path) -> bool:
    """Whether a folder holds pictures, and nothing else that could be data."""
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(entry.suffix.lower() in PICTURES for entry in entries) and not any(entry.is_dir() for entry in entries)


@contextmanager
def _opened(path: Path) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """The container and its first video stream; whatever FFmpeg says of damage is one `DataError`."""
    av = load_av()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
        # With a scheme, so that no part of a file's name is taken for one.
        with av.open(f"file:{path.absolute()}", options=options) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: its video is in a format that is not known")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # before anything of that size is allocated
            _check_size(stream.codec_context.width, stream.codec_context.height, path)
            yield container, stream
    except (av.error.FFmpegError, ValueError, IndexError, OverflowError, MemoryError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: not a video that can be read, or damaged ({reason})") from error


class _Index:
    """Where the frames of an open container are: counted by walking through it once, without decoding."""

    def __init__(self, path: Path, container: "InputContainer", stream: "VideoStream") -> None:
        self._path, self._container, self._stream = path, container, stream
        times: list[int | None] = []
        keys: list[int] = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
            if len(times) > MAX_FRAMES:
                raise DataError(f"{path}: has over {MAX_FRAMES} frames")
        if not times:
            raise DataError(f"{path}: an empty video, without a single frame")
        self.count = len(times)
        known = sorted(time for time in times if time is not None)
        # AVI knows the order in which frames are stored, not that in which they are shown.
        sound = len(set(known)) == self.count and container.format.name != "avi"
        #: Presentation time -> place, where the container says it of every frame.
        self._places: Mapping[int, int] = {time: place for place, time in enumerate(known)} if sound else {}
        self._keys = sorted(keys)

    def frames_from(self, first: int, last: int) -> "Iterator[tuple[int, VideoFrame]]":
        """`(place, frame)` from `first` or before, to `last`."""
        earlier = [key for key in self._keys if self._places.get(key, self.count) <= first]
        if earlier and self._places[earlier[-1]] > 0:
            self._container.seek(earlier[-1], stream=self._stream)
            for place, frame in self._placed():
                if place is None or place > first:  # the container's index led elsewhere
                    break
                if place == first:
                    yield place, frame
                    yield from self._onwards(place + 1, last)
                    return
        self._container.seek(0)
        yield from self._onwards(0, last)

    def _placed(self) -> "Iterator[tuple[int | None, VideoFrame]]":
        for frame in self._container.decode(self._stream):
            yield self._places.get(-1 if frame.pts is None else frame.pts), frame

    def _onwards(self, start: int, last: int) -> "Iterator[tuple[int, VideoFrame]]":
        if start > last:
            return
        for place, frame in enumerate(self._container.decode(self._stream), start):
            yield place, frame
            if place >= last:
                return


def _pixels(
    frame: "VideoFrame", size: tuple[int, int] | None, fit: Fit, channels: int | None, path: Path, count: int
) -> NDArray[np.uint8]:
    """One frame as uint8 `[H, W, C]`."""
    _check_size(frame.width, frame.height, path)
    height, width = (frame.height, frame.width) if size is None else covering((frame.height, frame.width), size, fit)
    if height * width * count > MAX_CLIP_PIXELS:
        raise DataError(f"{path}: {count} frames of {width} x {height} are over {MAX_CLIP_PIXELS} pixels; "
                        "take fewer, or resize them")  # fmt: skip
    grey = frame.format.name.startswith("gray") and channels != 3
    # One thread: for frames of this size starting more costs more than it saves.
    decoded = frame.to_ndarray(format="gray" if grey else "rgb24", width=width, height=height, threads=1)
    pixels = decoded.astype(np.uint8, copy=False).reshape(height, width, -1)
    pixels = pixels if size is None else framed(pixels, size)
    return as_grey(pixels) if channels == 1 and not grey else pixels


def _checked(places: Sequence[int], count: int, path: Path) -> list[int]:
    wanted = [int(place) for place in places]
    if not wanted or min(wanted) < 0 or max(wanted) >= count:
        raise DataError(f"{path}: frames {wanted[:1]}..{wanted[-1:]} were asked for, but it has {count}")
    return wanted


def _stacked(found: dict[int, NDArray[np.uint8]], wanted: list[int], count: int, path: Path) -> Tensor:
    missing = set(wanted) - found.keys()
    if missing and (not found or min(missing) < count * (1 - _MISSING) - 2):
        raise DataError(f"{path}: damaged; the last of its {count} frames can't be decoded")
    last = found[max(found)]
    clip = [found.get(place, last) for place in wanted]
    if len({frame.shape for frame in clip}) > 1:
        raise DataError(f"{path}: the size of its frames changes; give one size to resize all to")
    return torch.from_numpy(np.ascontiguousarray(np.stack(clip).transpose(0, 3, 1, 2)))


def _check_size(width: int, height: int, path: Path) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise DataError(f"{path}: frames of no size, or of over {MAX_PIXELS} pixels ({width} x {height})")


def _pictures(folder: Path) -> list[Path]:
    """Its pictures by the numbers in their names: 2 before 10, whether or not they are padded with zeros."""
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file()]
    if not pictures:
        raise DataError(f"{folder}: an empty video, without a single picture")
    if len(pictures) > MAX_FRAMES:
        raise DataError(f"{folder}: has over {MAX_FRAMES} frames")
    return sorted(pictures, key=_natural)


def _natural(path: Path) -> list[Any]:
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _read_folder(
    folder: Path, choose: Choice, *, size: tuple[int, int] | None, fit: Fit, channels: int | None
) -> Tensor:
    pictures = _pictures(folder)
    wanted = _checked(choose(len(pictures)), len(pictures), folder)
    mode: str | None = {1: "L", 3: "RGB"}.get(channels or 0)
    found = {}
    for place in set(wanted):
        scaled = size
        if size is not None and fit == "crop":
            height, width = read_picture(pictures[place], mode=mode).shape[1:]
            scaled = covering((height, width), size, fit)
        pixels = read_picture(pictures[place], mode=mode, resize=scaled).numpy().transpose(1, 2, 0)
        found[place] = pixels if size is None else framed(pixels, size)
    return _stacked(found, wanted, len(pictures), folder)
