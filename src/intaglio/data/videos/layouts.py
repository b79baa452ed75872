"""How sets of videos lie on disk: UCF-101, HMDB-51, lists, class folders; videos as files or as folders of pictures."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from intaglio.data.folder import SPLITS
from intaglio.data.images import UNLABELLED
from intaglio.data.videos.decoding import SUFFIXES, is_frame_folder
from intaglio.data.videos.lists import Entry, Row, VideoList, inside, is_whole, number_labels, read_lines, read_rows
from intaglio.errors import DataError

LISTS = (".csv", ".txt")

#: UCF-101: the 25 groups of a class show the same people and places, so no group is ever on both sides.
_GROUP = re.compile(r"v_(?P<class>.+)_g(?P<group>\d+)_c\d+$", re.IGNORECASE)
_UCF_TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
_HMDB_SPLITS = {"1": "train", "2": "test", "0": "unused"}


def list_videos(source: Path, split: str, *, fold: int = 1) -> VideoList:
    """The videos of one split, in a fixed order. Nothing is decoded, and a listed file need not be there.

    `source` is one of:
        a video;
        a list: `.csv` with path, label and perhaps split, or lines of `path label`; paths are relative to its folder;
        a folder with `train.csv` / `test.csv` (or `val`, or `.txt`);
        a folder with UCF-101's `trainlist01.txt`, `testlist01.txt`, `classInd.txt`, or HMDB-51's
        `CLASS_test_split1.txt`, here or one folder below; `fold` is 1, 2 or 3;
        `[train|test/]class/video`, where a video is a file or a folder of pictures. Without folders for the splits,
        videos named as in UCF-101 are split by their groups, and others are in both.

    Raises:
        DataError: none found, a list that is damaged or names a path outside its folder, or no such split.
    """
    if not source.is_dir():
        if source.suffix.lower() in SUFFIXES:
            return VideoList((Entry(source, UNLABELLED),), (), str(source))
        return _from_lists([source], split, str(source))
    name = str(source)
    if folder := _folder_with(source, f"trainlist{fold:02}.txt"):
        found = _ucf101(source, folder, split, fold)
    elif folder := _folder_with(source, f"*_test_split{fold}.txt"):
        found = _hmdb51(source, folder, split, fold)
    elif lists := _split_lists(source):
        if split not in lists:
            raise DataError(f"{source}: has lists of {', '.join(lists)}, but none of {split}")
        found = _from_lists([lists[split], *(path for key, path in lists.items() if key != split)], split, name)
    else:
        found = _class_folders(source, split, fold)
    if not found.entries:
        raise DataError(f"{source}: no videos in it ({', '.join(sorted(SUFFIXES))}, or folders of pictures)")
    return found


def is_video_list(path: Path) -> bool:
    """Whether a text file lists videos: a suffix of theirs, or a folder that is there.

    Raises:
        DataError: a list that can't be read.
    """
    if path.suffix.lower() not in LISTS:
        return False
    rows = read_rows(path)
    return any(Path(row.path).suffix.lower() in SUFFIXES or (path.parent / row.path).is_dir() for row in rows)


def holds_videos(folder: Path) -> bool:
    """Whether a folder is a set of videos, and not one of pictures."""
    if _folder_with(folder, "trainlist0?.txt") or _folder_with(folder, "*_test_split?.txt"):
        return True
    tops = _tops(folder)
    videos = any(_is_video(entry) for top in tops for part in (top, *_folders(top)) for entry in part.iterdir())
    return videos or any(_frame_folders(part) for top in tops for part in _folders(top))


def _folder_with(root: Path, pattern: str) -> Path | None:
    """`root` or the first folder in it that holds such a file."""
    return next((folder for folder in (root, *_folders(root)) if any(folder.glob(pattern))), None)


def _ucf101(root: Path, lists: Path, split: str, fold: int) -> VideoList:
    names = {key: lists / f"{key}list{fold:02}.txt" for key in ("train", "test")}
    rows = {key: [_ucf_row(line) for line in read_lines(path)] for key, path in names.items() if path.is_file()}
    if split not in rows:
        raise DataError(f"{names[split]}: no such list")
    index = lists / "classInd.txt"
    if index.is_file():
        pairs = [line.split(maxsplit=1) for line in read_lines(index)]
        if any(len(pair) < 2 for pair in pairs):
            raise DataError(f"{index}: expected lines of a number and a class")
        classes = tuple(pair[1] for pair in pairs)
    else:
        folders = {row.path.split("/")[0].lower(): row.path.split("/")[0] for part in rows.values() for row in part}
        classes = tuple(folders[key] for key in sorted(folders))
    # One class is written both HandStandPushups and HandstandPushups, in folders, file names and lists.
    numbers = {name.lower(): number for number, name in enumerate(classes)}
    _warn_of_shared_groups(rows, lists)
    base, places = _located(root, [row.path for row in rows[split]])
    entries = []
    for row in rows[split]:
        label = numbers.get(row.path.split("/")[0].lower())
        if label is None or (row.label and index.is_file() and int(row.label) != label + 1):
            raise DataError(f"{names[split]}: the class of '{row.path}' is not that of {index.name}")
        path = inside(base, row.path, names[split])
        entries.append(Entry(places.get(_key(row.path), path), label))
    return VideoList(tuple(entries), classes, str(root))


def _ucf_row(line: str) -> Row:
    name, *number = line.rsplit(maxsplit=1)
    number = number if number and is_whole(number[0]) else []
    return Row((name if number else line).replace("\\", "/"), number[0] if number else "", "")


def _warn_of_shared_groups(rows: dict[str, list[Row]], lists: Path) -> None:
    groups = [{_group(row.path) for row in part} - {None} for part in rows.values()]
    if len(groups) == 2 and (shared := groups[0] & groups[1]):
        warnings.warn(f"{lists}: {len(shared)} groups of videos are on both sides of the split; the same people and "
                      "places in training and test make accuracies too good", stacklevel=5)  # fmt: skip


def _group(name: str) -> tuple[str, int] | None:
    found = _GROUP.search(name.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return (found["class"].lower(), int(found["group"])) if found else None


def _hmdb51(root: Path, lists: Path, split: str, fold: int) -> VideoList:
    suffix = f"_test_split{fold}.txt"
    files = sorted(lists.glob(f"*{suffix}"))
    classes = tuple(path.name.removesuffix(suffix) for path in files)
    listed: list[tuple[str, int, Path]] = []
    for label, path in enumerate(files):
        for line in read_lines(path):
            name, _, side = line.rpartition(" ")
            if side not in _HMDB_SPLITS:
                raise DataError(f"{path}: '{line}' does not end with 0, 1 or 2")
            if _HMDB_SPLITS[side] == split:
                listed.append((f"{classes[label]}/{name.strip()}", label, path))
    base, places = _located(root, [name for name, _, _ in listed])
    return VideoList(
        tuple(Entry(places.get(_key(name), inside(base, name, path)), label) for name, label, path in listed),
        classes,
        str(root),
    )


def _located(root: Path, names: list[str]) -> tuple[Path, dict[str, Path]]:
    """The folder, `root` or one in it, below which most of these lie, and its videos by lower-case name."""
    best: tuple[Path, dict[str, Path]] = (root, {})
    most = 0
    for base in (root, *_folders(root)):
        places = {_key(f"{part.name}/{entry.name}"): entry for part in _folders(base) for entry in _videos(part)}
        hits = sum(_key(name) in places for name in names)
        if hits > most:
            best, most = (base, places), hits
    return best


def _key(name: str) -> str:
    """What a video is found by: neither case nor suffix, for a list of files serves folders of frames as well."""
    stem, dot, suffix = name.rpartition(".")
    return (stem if dot and f".{suffix.lower()}" in SUFFIXES else name).lower()


def _from_lists(paths: list[Path], split: str, name: str) -> VideoList:
    """The first list's videos; the others only have a say in which classes there are."""
    rows = [read_rows(path) for path in paths]
    labels, classes = number_labels([row for part in rows for row in part], paths[0])
    chosen = SPLITS[split]
    sided = any(row.split for row in rows[0])
    entries = tuple(
        Entry(inside(paths[0].parent, row.path, paths[0]), label)
        for row, label in zip(rows[0], labels, strict=False)
        if not sided or row.split in chosen
    )
    if not entries:
        raise DataError(f"{paths[0]}: no videos of the split {split} in this list")
    return VideoList(entries, classes, name)


def _split_lists(root: Path) -> dict[str, Path]:
    """Lists named after splits."""
    found = {}
    for split, names in SPLITS.items():
        candidates = (root / f"{name}{suffix}" for name in names for suffix in LISTS)
        if path := next((path for path in candidates if path.is_file()), None):
            found[split] = path
    return found


def _class_folders(root: Path, split: str, fold: int) -> VideoList:
    tops = _tops(root)
    chosen = [top for top in tops if top.name in SPLITS[split]][:1]
    if tops == [root]:
        chosen = tops
    elif not chosen:
        raise DataError(f"{root}: has {', '.join(top.name for top in tops)}, but no folder {SPLITS[split][0]}")
    classes = tuple(sorted({folder.name for top in tops for folder in _folders(top) if _videos(folder)}))
    entries = [Entry(path, label) for label, name in enumerate(classes) for path in _videos(chosen[0] / name)]
    if not entries:
        classes, entries = (), [Entry(path, UNLABELLED) for path in _videos(chosen[0])]
    groups = [_group(entry.path.name) for entry in entries]
    if tops == [root] and classes and all(groups):
        test = _UCF_TEST_GROUPS.get(fold, range(0))
        entries = [
            entry
            for entry, group in zip(entries, groups, strict=True)
            if group and (group[1] in test) == (split == "test")
        ]
    return VideoList(tuple(entries), classes, str(root))


def _tops(root: Path) -> list[Path]:
    """The folders of the splits; `root`, where there are none, or they are classes like the folders beside them."""
    names = {name for known in SPLITS.values() for name in known}
    folders = list(_folders(root))
    splits = [folder for folder in folders if folder.name in names]
    classes = any(_videos(folder) or is_frame_folder(folder) for folder in folders if folder not in splits)
    return splits if splits and not classes else [root]


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _frame_folders(folder: Path) -> list[Path]:
    return [entry for entry in _folders(folder) if is_frame_folder(entry)]


def _videos(folder: Path) -> list[Path]:
    """Files and folders of pictures, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted([*filter(_is_video, folder.iterdir()), *_frame_folders(folder)])
