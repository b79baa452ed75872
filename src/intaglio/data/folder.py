"""Image folders: `root/[split/]class/picture`, or a flat folder of unlabelled pictures."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from intaglio.data.images import UNLABELLED, ImageData, classes_in_turn
from intaglio.data.picture import read_picture
from intaglio.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {None: None, 1: "L", 3: "RGB"}
_NAMED = 10
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


def open_image_folder(
    root: Path,
    split: str,
    *,
    channels: int | None = None,
    resize: tuple[int, int] | None = None,
    most: int | None = None,
) -> ImageData:
    """Reads every picture below `root`, in sorted order; classes are the sorted names of folders that hold pictures.

    A folder `train` / `test` (or `val`) inside is used for its split, and the splits share one list of classes. (Beside
    other folders that hold pictures, such a name is a class like any other.) Pictures of different sizes need `resize`;
    `channels` (1 or 3) converts to grey or RGB. A folder beside the classes without pictures in any split is told of in
    a warning. Of more than `most` pictures only so many are read, of all classes in
    turn.

    Raises:
        DataError: no picture, a damaged one, sizes that differ, or no folder for the split beside that of another.
    """
    if channels not in MODES or (resize and min(resize) < 1):
        raise DataError(f"{root}: pictures can be read with 1 or 3 channels and a size of 1 or more")
    base, classes, others = _layout(root, split)
    labelled = [(index, path) for index, name in enumerate(classes) for path in _pictures(base / name)]
    if not labelled:
        classes, labelled = (), [(UNLABELLED, path) for path in _pictures(base)]
    if not labelled:
        raise DataError(f"{root}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    if classes and others:
        warnings.warn(
            f"{root}: taken for no classes, for there are no pictures in them: {_listed(others)}", stacklevel=2
        )
    if most is not None and len(labelled) > most:
        turns = classes_in_turn(torch.tensor([label for label, _ in labelled]))
        labelled = [labelled[place] for place in sorted(turns[:most].tolist())]
    pictures = [read_picture(path, mode=MODES[channels], resize=resize) for _, path in labelled]
    for picture, (_, path) in zip(pictures, labelled, strict=True):
        if picture.shape != pictures[0].shape:
            raise DataError(
                f"{path}: is {tuple(picture.shape)}, but {labelled[0][1].name} is {tuple(pictures[0].shape)}; "
                f"give {_remedy(picture.shape, pictures[0].shape)}"
            )
    labels = torch.tensor([label for label, _ in labelled])
    return ImageData(torch.stack(pictures).float() / 255, labels, classes, str(root))


def _remedy(shape: Sequence[int], first: Sequence[int]) -> str:
    """What makes pictures `[C, H, W]` of both shapes alike."""
    remedies = []
    if tuple(shape[1:]) != tuple(first[1:]):
        remedies.append("one size to resize all to")
    if shape[0] != first[0]:
        remedies.append("channels, 1 for all in grey or 3 for all in RGB")
    return ", and ".join(remedies)


def _layout(root: Path, split: str) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """The folder that holds the split, the names of all classes, and those of folders that are none."""
    names = {name for known in SPLITS.values() for name in known}
    folders = list(_folders(root))
    splits = [folder for folder in folders if folder.name in names]
    if not splits or any(_holds_pictures(folder) for folder in folders if folder not in splits):
        return root, *_classes(folders)
    base = next((root / name for name in SPLITS[split] if root / name in splits), None)
    if base is None:
        raise DataError(f"{root}: has {', '.join(folder.name for folder in splits)}, but no folder {SPLITS[split][0]}")
    return base, *_classes([folder for part in splits for folder in _folders(part)])


def _classes(folders: list[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sorted names of folders that hold pictures, and of those that never do."""
    classes = {folder.name for folder in folders if _holds_pictures(folder)}
    return tuple(sorted(classes)), tuple(sorted({folder.name for folder in folders} - classes))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(_found(folder)) if folder.is_dir() else []


def _holds_pictures(folder: Path) -> bool:
    return next(_found(folder), None) is not None


def _found(folder: Path) -> Iterator[Path]:
    """Not those that a Mac puts beside each file when it packs them (`._1.png`)."""
    return (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
