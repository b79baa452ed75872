"""What an attack is given, opened: images in memory, and videos that are read when they are needed."""

from pathlib import Path

from intaglio.data import ImageData, Sampling, VideoDataset, open_data, open_videos
from intaglio.data.videos import StoredClips, holds_videos
from intaglio.data.videos.decoding import SUFFIXES
from intaglio.data.videos.layouts import is_video_list
from intaglio.data.videos.storage import holds_stored_clips


def open_source(
    source: str | Path,
    split: str = "train",
    *,
    sampling: Sampling | None = None,
    resize: tuple[int, int] | None = None,
) -> ImageData | VideoDataset | StoredClips:
    """Opens images as `open_data` does, and videos or stored clips without reading them.

    Raises:
        DataError: as `open_data`.
    """
    path = Path(source)
    if _is_video(path):
        return open_videos(path, split, sampling=sampling, size=resize)
    return open_data(source, split, resize=resize)


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return not any(path.glob("*-idx3-ubyte*")) and (holds_stored_clips(path) or holds_videos(path))
    return path.is_file() and (path.suffix.lower() in SUFFIXES or is_video_list(path))
