"""Sets of videos that are decoded when they are asked for, and what becomes of those that can't be."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intaglio.data.folder import SPLITS
from intaglio.data.videos.decoding import read_clip
from intaglio.data.videos.framing import Fit
from intaglio.data.videos.layouts import list_videos
from intaglio.data.videos.lists import VideoList
from intaglio.data.videos.sampling import Sampling
from intaglio.data.videos.storage import Clip, StoredClips, holds_stored_clips
from intaglio.data.videos.video_data import VideoData
from intaglio.errors import DataError
from intaglio.seeds import torch_generator

MAX_BAD = 10
#: Of the float32 tensor that `load` makes.
MAX_BYTES = 16 * 2**30


class Skips:
    """Videos that could not be read: each is warned of and counted, until there are more than `max_bad`."""

    def __init__(self, max_bad: int = MAX_BAD) -> None:
        self.max_bad = max_bad
        self.paths: list[str] = []

    def note(self, path: Path, error: DataError) -> None:
        """Counts one.

        Raises:
            DataError: one too many.
        """
        self.paths.append(str(path))
        if len(self.paths) > self.max_bad:
            raise DataError(
                f"{len(self.paths)} videos can't be read, and {self.max_bad} may be (max_bad); the last: {error}"
            ) from error
        warnings.warn(f"skipped: {error}", stacklevel=3)


@dataclass(frozen=True)
class VideoDataset:
    """A list of videos and how clips are taken out of them; nothing is decoded until it is asked for.

    In training, clips are drawn from `(seed, epoch, video)`: the same seed and epoch give the same clips, in whatever
    order they are read; in testing they are always the same. `size`, `fit` and `channels` are as in `read_clip`.
    """

    videos: VideoList
    sampling: Sampling
    training: bool
    size: tuple[int, int] | None = None
    fit: Fit = "squash"
    channels: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3) or (self.size and min(self.size) < 1):
            raise DataError(f"{self.videos.name}: videos can be read with 1 or 3 channels and a size of 1 or more")

    def __len__(self) -> int:
        return len(self.videos.entries)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.videos.classes

    @property
    def labels(self) -> Tensor:
        """The labels of the videos, int64 `[len(self)]`."""
        return torch.tensor([entry.label for entry in self.videos.entries])

    def read(self, index: int, epoch: int = 0) -> Tensor:
        """The clips of one video, uint8 `[clips, T, C, H, W]` (in training one).

        Raises:
            DataError: it can't be read.
        """
        places: list[Tensor] = []

        def choose(count: int) -> Sequence[int]:
            generator = torch_generator(self.seed, "clip", epoch, index)
            places.append(self.sampling.training(count, generator) if self.training else self.sampling.testing(count))
            return [int(place) for place in places[0].flatten()]

        path = self.videos.entries[index].path
        frames = read_clip(path, choose, size=self.size, fit=self.fit, channels=self.channels)
        return frames.view(*places[0].shape, *frames.shape[1:])

    def stream(
        self, epoch: int = 0, *, skips: Skips | None = None, order: Sequence[int] | None = None
    ) -> Iterator[Clip]:
        """Every clip of every video in turn (or in `order`), one video in memory at a time.

        Raises:
            DataError: more videos can't be read than `skips` allows, or none can.
        """
        skips = skips or Skips()
        read = 0
        for index in range(len(self)) if order is None else order:
            entry = self.videos.entries[index]
            try:
                clips = self.read(index, epoch)
            except DataError as error:
                skips.note(entry.path, error)
                continue
            read += 1
            for clip in clips:
                yield Clip(clip, entry.label, index)
        if not read:
            raise DataError(f"{self.videos.name}: none of its {len(self)} videos can be read")

    def batches(self, size: int, epoch: int = 0, *, skips: Skips | None = None) -> Iterator[VideoData]:
        """`stream`, as float32 batches of `size` clips; the last may be smaller.

        Raises:
            DataError: as `stream`, or clips of different sizes.
        """
        waiting: list[Clip] = []
        for clip in self.stream(epoch, skips=skips):
            waiting.append(clip)
            if len(waiting) >= size:
                yield self._gathered(waiting, ())
                waiting = []
        if waiting:
            yield self._gathered(waiting, ())

    def load(self, *, max_bad: int = MAX_BAD, epoch: int = 0) -> VideoData:
        """All clips in memory.

        Raises:
            DataError: as `stream`; clips of different sizes; or over 16 GiB.
        """
        skips = Skips(max_bad)
        clips: list[Clip] = []
        for clip in self.stream(epoch, skips=skips):
            clips.append(clip)
            total = 4 * math.prod(clip.pixels.shape) * len(self) * (1 if self.training else self.sampling.clips)
            if len(clips) == 1 and total > MAX_BYTES:
                raise DataError(
                    f"{self.videos.name}: {len(self)} videos as clips {tuple(clip.pixels.shape)} take {total} bytes, "
                    f"over the limit of {MAX_BYTES}: read it with open_videos, in batches"
                )
        return self._gathered(clips, tuple(skips.paths))

    def _gathered(self, clips: list[Clip], skipped: tuple[str, ...]) -> VideoData:
        first = clips[0]
        for clip in clips:
            if clip.pixels.shape != first.pixels.shape:
                raise DataError(
                    f"{self.videos.entries[clip.video].path}: is {tuple(clip.pixels.shape)}, but "
                    f"{self.videos.entries[first.video].path.name} is {tuple(first.pixels.shape)}; "
                    "give one size to resize all to"
                )
        pixels = torch.empty(len(clips), *first.pixels.shape)
        for place, clip in enumerate(clips):
            torch.div(clip.pixels, 255, out=pixels[place])
        labels = torch.tensor([clip.label for clip in clips])
        videos = torch.tensor([clip.video for clip in clips])
        return VideoData(pixels, labels, self.classes, self.videos.name, videos, skipped)


def open_videos(
    source: str | Path,
    split: str = "train",
    *,
    sampling: Sampling | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "squash",
    channels: int | None = None,
    fold: int = 1,
    seed: int = 0,
) -> VideoDataset | StoredClips:
    """Opens a set of videos (as `list_videos` finds them) or of stored clips, without reading it.

    The split "train" draws clips at random, "test" takes them evenly.

    Raises:
        DataError: nothing there, or a list that can't be used.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}', expected train or test")
    path = Path(source)
    try:
        if path.is_dir() and holds_stored_clips(path):
            return StoredClips(path, split)
        videos = list_videos(path, split, fold=fold)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return VideoDataset(videos, sampling or Sampling(), split == "train", size, fit, channels, seed)
