"""`open_data`: one call for every kind of data; `open_data_for`: the same in the shape that a model takes."""

from dataclasses import replace
from pathlib import Path

from intaglio.data.folder import open_image_folder
from intaglio.data.idx import open_idx_folder
from intaglio.data.images import ImageData, classes_in_turn
from intaglio.data.npz import open_npz
from intaglio.data.tasks import TASKS, open_task
from intaglio.data.videos.dataset import MAX_BAD, VideoDataset, open_videos
from intaglio.data.videos.decoding import SUFFIXES
from intaglio.data.videos.layouts import holds_videos, is_video_list
from intaglio.data.videos.lists import VideoList
from intaglio.data.videos.sampling import Sampling
from intaglio.data.videos.storage import holds_stored_clips
from intaglio.errors import DataError

SPLITS = ("train", "test")


def open_data(
    source: str | Path,
    split: str = "train",
    *,
    channels: int | None = None,
    resize: tuple[int, int] | None = None,
    sampling: Sampling | None = None,
    max_bad: int = MAX_BAD,
) -> ImageData:
    """Opens a bundled task by name, a folder of pictures, of IDX files or of videos, an `.npz`, a video or a list.

    What is larger than memory is read with `intaglio.data.videos.open_videos`.

    Args:
        source: task name or path. A path wins where both exist.
        split: "train" or "test".
        channels: for pictures and videos, 1 or 3: convert to grey or RGB.
        resize: for pictures and videos, `(H, W)` to resize to.
        sampling: for videos, which frames make a clip (default: 16 consecutive ones).
        max_bad: so many damaged or empty videos are skipped with a warning.

    Raises:
        DataError: missing, empty, damaged, or with pixels outside [0, 1].
    """
    return _opened(source, split, channels, resize, sampling, max_bad, None)


def open_data_for(
    input_shape: tuple[int, ...],
    source: str | Path,
    split: str = "train",
    *,
    sampling: Sampling | None = None,
    most: int | None = None,
    max_bad: int = MAX_BAD,
) -> ImageData:
    """`open_data`, in the shape `(C, H, W)` or `(T, C, H, W)` that a model takes.

    Pictures and videos are made grey or RGB; videos become clips of T frames (T consecutive ones, if `sampling` says
    nothing else) of H x W. Everything else, a picture's size too, must be right already.

    Args:
        most: of a folder of pictures or a set of videos, decode so many at most, all classes in turn.

    Raises:
        DataError: as `open_data`; or of another shape.
    """
    *frames, channels, height, width = input_shape
    data = _opened(
        source,
        split,
        channels if channels in (1, 3) else None,
        (height, width) if frames else None,
        sampling or (Sampling(frames=frames[0]) if frames else None),
        max_bad,
        most,
    )
    if data.input_shape != tuple(input_shape):
        raise DataError(f"{source}: images are {data.input_shape}, but the model takes {tuple(input_shape)}")
    return data


def _opened(
    source: str | Path,
    split: str,
    channels: int | None,
    resize: tuple[int, int] | None,
    sampling: Sampling | None,
    max_bad: int,
    most: int | None,
) -> ImageData:
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}', expected train or test")
    path = Path(source)
    try:
        if path.is_dir():
            if any(path.glob("*-idx3-ubyte*")):
                known = TASKS.get(path.name)
                return open_idx_folder(path, split, known.classes if known else ())
            if not (holds_stored_clips(path) or holds_videos(path)):
                return open_image_folder(path, split, channels=channels, resize=resize, most=most)
            return _load_videos(path, split, channels, resize, sampling, max_bad, most)
        if path.is_file():
            if path.suffix == ".npz":
                return open_npz(path, split)
            if path.suffix.lower() in SUFFIXES or is_video_list(path):
                return _load_videos(path, split, channels, resize, sampling, max_bad, most)
            raise DataError(f"{path}: unknown kind of data; expected a folder, an .npz file, a video or a list of them")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise DataError(f"{path}: {error.strerror or error}") from error
    return open_task(str(source), split)


def _load_videos(
    path: Path,
    split: str,
    channels: int | None,
    resize: tuple[int, int] | None,
    sampling: Sampling | None,
    max_bad: int,
    most: int | None,
) -> ImageData:
    videos = open_videos(path, split, sampling=sampling, size=resize, channels=channels)
    if not isinstance(videos, VideoDataset):
        return videos.load()
    if most is not None:
        entries = [videos.videos.entries[place] for place in classes_in_turn(videos.labels)[:most].tolist()]
        videos = replace(videos, videos=VideoList(tuple(entries), videos.classes, videos.videos.name))
    return videos.load(max_bad=max_bad)
