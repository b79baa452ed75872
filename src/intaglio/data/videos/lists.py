"""Lists of videos in text files: CSV, and the lines of `path label` that many data sets come with."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from intaglio.data.images import UNLABELLED
from intaglio.errors import DataError

MAX_LIST_BYTES = 64 * 2**20
MAX_LABEL = 100_000

_PATH_NAMES = ("path", "video", "video_path", "file", "filename", "name")
_LABEL_NAMES = ("label", "class", "category", "class_name", "label_name")
_SPLIT_NAMES = ("split", "subset", "set", "partition")


class Entry(NamedTuple):
    """One video: a file or a folder of pictures, and the number of its class (-1: not known)."""

    path: Path
    label: int


class VideoList(NamedTuple):
    """Which videos there are, the names of the classes (none: they have numbers only), and where it was read."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    name: str


class Row(NamedTuple):
    """One line of a list, as it stands there."""

    path: str
    label: str
    split: str


def read_lines(path: Path) -> list[str]:
    """The lines that are not blank, without their ends (LF or CRLF), of UTF-8 with or without a byte order mark.

    Raises:
        DataError: can't be read, over 64 MiB, or not text.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_LIST_BYTES:
        raise DataError(f"{path}: a list of over {MAX_LIST_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a list in UTF-8 ({error.reason})") from error
    if "\0" in text:
        raise DataError(f"{path}: not a list, but binary")
    return [line.strip() for line in text.splitlines() if line.strip()]


def inside(base: Path, name: str, source: Path) -> Path:
    """The path `name`, as a list names it, below `base`.

    Raises:
        DataError: it is `base` itself, or leads out of it: absolute, with "..", or through a link.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    path = base / relative
    if not relative.parts:
        raise DataError(f"{source}: names '{name}', which is no video but its own folder")
    if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0] or not _contains(base, path):
        raise DataError(f"{source}: names '{name}', which is outside its own folder")
    return path


def _contains(base: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError):  # a name that is too long, a link to itself
        return False


def read_rows(path: Path) -> list[Row]:
    """The rows of a `.csv` (comma, semicolon or tab; with a header, or path, label, split) or of a list of lines.

    Lines are `path`, `path label`, or `path frames label`, as lists of extracted frames have them.

    Raises:
        DataError: not a list, empty, or a header without a path.
    """
    lines = read_lines(path)
    rows = list(_csv_rows(lines, path) if path.suffix.lower() == ".csv" else _plain_rows(lines))
    if not rows:
        raise DataError(f"{path}: no videos in this list")
    return rows


def _csv_rows(lines: list[str], path: Path) -> Iterator[Row]:
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise DataError(f"{path}: damaged list ({error})") from error
    columns = (0, 1, 2)
    head = [cell.lower() for cell in table[0]] if table else []
    if set(head) & {*_PATH_NAMES, *_LABEL_NAMES, *_SPLIT_NAMES}:
        found = [next((head.index(name) for name in names if name in head), len(head))
                 for names in (_PATH_NAMES, _LABEL_NAMES, _SPLIT_NAMES)]  # fmt: skip
        if found[0] == len(head):
            raise DataError(f"{path}: no column with the path of a video; call it one of {', '.join(_PATH_NAMES)}")
        columns, table = (found[0], found[1], found[2]), table[1:]
    for row in table:
        path_cell, label, split = (row[column] if column < len(row) else "" for column in columns)
        if path_cell:
            yield Row(path_cell, label, split.lower())


def _plain_rows(lines: list[str]) -> Iterator[Row]:
    for line in lines:
        name, *numbers = line.rsplit(maxsplit=1)
        if numbers and is_whole(numbers[0]):
            *words, last = name.rsplit(maxsplit=1)
            name = words[0] if words and is_whole(last) else name  # `path frames label`
        else:
            name, numbers = line, []
        yield Row(name, numbers[0] if numbers else "", "")


def is_whole(text: str) -> bool:
    """Whether it is a whole number in the digits 0 to 9: `isdigit` takes a superscript for one."""
    return re.fullmatch("[0-9]+", text) is not None


def number_labels(rows: list[Row], path: Path) -> tuple[list[int], tuple[str, ...]]:
    """The label of each row and the names of the classes: sorted names, or numbers as they stand (and no names).

    Raises:
        DataError: a number that is no label, or names mixed with gaps.
    """
    if all(not row.label or is_whole(row.label.removeprefix("-")) for row in rows):
        labels = [int(row.label) if row.label else UNLABELLED for row in rows]
        if min(labels) < UNLABELLED or max(labels) > MAX_LABEL:
            raise DataError(f"{path}: labels span {min(labels)}..{max(labels)}, expected 0..{MAX_LABEL}")
        return labels, ()
    names = tuple(sorted({row.label for row in rows if row.label}))
    return [names.index(row.label) if row.label else UNLABELLED for row in rows], names
