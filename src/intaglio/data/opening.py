"""`open_data`: one call for every kind of data."""

from pathlib import Path

from intaglio.data.folder import open_image_folder
from intaglio.data.idx import open_idx_folder
from intaglio.data.images import ImageData
from intaglio.data.npz import open_npz
from intaglio.data.tasks import TASKS, open_task
from intaglio.errors import DataError

SPLITS = ("train", "test")


def open_data(
    source: str | Path,
    split: str = "train",
    *,
    channels: int | None = None,
    resize: tuple[int, int] | None = None,
) -> ImageData:
    """Opens a bundled task by name, a folder of pictures or of IDX files, or an `.npz`.

    Args:
        source: task name or path. A path wins where both exist.
        split: "train" or "test".
        channels: for picture folders, 1 or 3: convert to grey or RGB.
        resize: for picture folders, `(H, W)` to resize to.

    Raises:
        DataError: missing, empty, damaged, or with pixels outside [0, 1].
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}', expected train or test")
    path = Path(source)
    try:
        if path.is_dir():
            if any(path.glob("*-idx3-ubyte*")):
                known = TASKS.get(path.name)
                return open_idx_folder(path, split, known.classes if known else ())
            return open_image_folder(path, split, channels=channels, resize=resize)
        if path.is_file():
            if path.suffix == ".npz":
                return open_npz(path, split)
            raise DataError(f"{path}: unknown kind of data; expected a folder or an .npz file")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise DataError(f"{path}: {error.strerror or error}") from error
    return open_task(str(source), split)
