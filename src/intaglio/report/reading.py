"""Verdicts from a folder of JSON files, checked before anybody relies on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import DataError, NothingToExamineError
from intaglio.scan.verdict import EncodedMaps, Place, Verdict

_SIZE_LIMIT = 64 * 2**20
#: Nothing that a detector measures is larger, and the difference of two must be a number.
_LARGEST = 1e100
_KIND = Verdict.model_fields["kind"].default


def read_verdicts(folder: Path) -> list[Verdict]:
    """All verdicts in the `*.json` files of `folder`, by file name; a file may hold one verdict or a list of them.

    JSON of any other kind is passed over. A file that is not JSON is an error all the same: it may be a verdict cut
    short, and a report must not silently leave a model out.
    A verdict that is there twice, the same to the last digit, is given once: `intaglio report DIR --json DIR/all.json`
    leaves a second copy of each in the folder.

    Raises:
        DataError: no such folder; or a file that is damaged, unreadable or over 64 MiB (it is named).
        NothingToExamineError: no verdict in the folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.glob("*.json") if path.is_file())
    verdicts = list({verdict.to_json(): verdict for path in paths for verdict in _read_file(path)}.values())
    if not verdicts:
        raise NothingToExamineError(f"{folder}: no verdict in it; write some with: intaglio scan MODEL --json FILE")
    return verdicts


def check_verdict(verdict: Verdict) -> None:
    """Refuses a verdict whose parts contradict one another.

    Raises:
        DataError: maps that can't be decoded or don't fit the input, a class or a place that doesn't exist; a p-value
            that is none, or that the flag doesn't follow from.
    """
    _check_decision(verdict)
    subject, maps = verdict.subject, verdict.maps
    if len(subject.input_shape) < 2 or min(subject.input_shape) < 1:
        raise DataError(f"input shape {subject.input_shape} is not that of a picture")
    if len(subject.classes) not in (0, subject.num_classes):
        raise DataError(f"{len(subject.classes)} class names for {subject.num_classes} classes")
    target = () if verdict.target_class is None else (verdict.target_class,)
    for index in (*target, *maps.classes, *(entry.index for entry in verdict.evidence)):
        if not 0 <= index < subject.num_classes:
            raise DataError(f"class {index} is none of the model's {subject.num_classes}")
    frames, (height, width) = subject.input_shape[:-3], subject.input_shape[-2:]
    for entry in verdict.evidence:
        if not _fits(entry.place, height, width):
            raise DataError(f"class {entry.index}: its suspicious place is outside the {height} x {width} input")
        if entry.place.frame is not None and not 0 <= entry.place.frame < (frames[0] if frames else 0):
            raise DataError(f"class {entry.index}: its suspicious place is in frame {entry.place.frame}, which is none")
    _check_maps(maps, (len(maps.classes), *(verdict.grid or (height, width))))
    if (each := verdict.frame_maps) is not None:
        rows, columns = each.shape[-2:]
        if each.classes != maps.classes or not (0 < rows <= height and 0 < columns <= width):
            raise DataError(f"maps of frames of shape {each.shape} for classes {each.classes}, not those of the others")
        _check_maps(each, (len(each.classes), *frames, rows, columns))


def _check_decision(verdict: Verdict) -> None:
    if not 0 < verdict.p_value <= 1 or not 0 < verdict.alpha < 1:
        raise DataError(f"a p-value of {verdict.p_value} at alpha {verdict.alpha}")
    if verdict.flagged != (verdict.p_value <= verdict.alpha):
        said = "flagged" if verdict.flagged else "not flagged"
        raise DataError(f"{said} with a p-value of {verdict.p_value} at alpha {verdict.alpha}")
    if verdict.target_class is not None and not verdict.flagged:
        raise DataError(f"target class {verdict.target_class} of a model that is not flagged")
    for score in (verdict.score, *verdict.calibration.clean_scores):
        if not abs(score) <= _LARGEST:
            raise DataError(f"a score of {score}")


def _check_maps(maps: EncodedMaps, expected: tuple[int, ...]) -> None:
    if maps.shape != expected:
        raise DataError(f"maps of shape {maps.shape}, expected {expected}")
    try:
        finite = bool(np.isfinite(maps.decode()).all())
    except ValueError as error:
        raise DataError(f"maps that can't be decoded ({error})") from error
    if not finite:
        raise DataError("maps that hold NaN or infinity")


def _fits(place: Place, height: int, width: int) -> bool:
    """Whether a place has pixels, and all of them within the input."""
    return (
        place.row >= 0 < place.height <= height - place.row and place.column >= 0 < place.width <= width - place.column
    )


def _read_file(path: Path) -> list[Verdict]:
    """The verdicts in one JSON file, perhaps none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > _SIZE_LIMIT:
        raise DataError(f"{path}: larger than {_SIZE_LIMIT // 2**20} MiB")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, perhaps cut short ({error}); scan the model again") from error
    entries = document if isinstance(document, list) else [document]
    return [_parse(path, entry) for entry in entries if isinstance(entry, dict) and entry.get("kind") == _KIND]


def _parse(path: Path, entry: dict[str, Any]) -> Verdict:
    try:
        verdict = Verdict.from_json(json.dumps(entry))
        check_verdict(verdict)
    except DataError as error:
        raise DataError(f"{path}: damaged verdict: {error}") from error
    return verdict
