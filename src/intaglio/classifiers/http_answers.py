"""What servers answer, made into labels or scores; whatever else they send is refused in one line."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import RemoteError, one_line

_SHOWN = 60
_READ = 1 << 10


def parse_answer(body: bytes) -> Any:
    """The value of a JSON text; NaN and infinities, which some servers write, are read as such.

    Raises:
        RemoteError: not JSON, or nested without end.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the answer is not JSON: {shown(body[:_READ].decode(errors='replace'))}") from error


def steps(path: str) -> tuple[str, ...]:
    """A dotted path (`result.0.label`), or a JSON pointer (`/result/0/label`, RFC 6901), as its steps."""
    if path.startswith("/"):
        return tuple(step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/"))
    return tuple(path.split(".")) if path else ()


def follow(value: Any, path: Sequence[str]) -> Any:
    """What lies at the end of a path: names lead into objects, numbers into lists.

    Raises:
        RemoteError: the path leads nowhere; says how far it goes.
    """
    for index, step in enumerate(path):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step[:9]) < len(value):
            value = value[int(step[:9])]
        else:
            there = f"names {', '.join(value)}" if isinstance(value, dict) else shown(value)
            at = ".".join(path[:index]) or "its top"
            raise RemoteError(f"the answer has no '{'.'.join(path)}': at {at} there is {shown(there)}")
    return value


def expect_list(value: Any, count: int, what: str) -> list[Any]:
    """A list of one entry for each of `count` images.

    Raises:
        RemoteError: it is no list, or of another length.
    """
    if not isinstance(value, list):
        raise RemoteError(f"expected a list of {count} {what}, got {shown(value)}")
    if len(value) != count:
        raise RemoteError(f"expected {count} {what}, got {len(value)}")
    return value


def to_scores(rows: Sequence[Any], num_classes: int, names: Mapping[str, int] | None = None) -> Tensor:
    """Scores float32 `[n, num_classes]` from lists of numbers, or from objects of numbers by class name.

    Raises:
        RemoteError: another class count, what is no number, or not finite (`null` is how some servers write NaN).
    """
    numbers = []
    for row in rows:
        values = _by_name(row, names) if isinstance(row, dict) else row
        if not isinstance(values, list):
            raise RemoteError(f"expected the scores of one image, got {shown(values)}")
        if len(values) != num_classes:
            raise RemoteError(f"answers with {len(values)} classes, but {num_classes} were expected")
        numbers.append([_number(value) for value in values])
    scores = torch.tensor(numbers, dtype=torch.float64).to(torch.float32)
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).any(dim=1).sum())
        raise RemoteError(f"scores of {bad} of {len(scores)} images are not finite")
    return scores


def to_labels(values: Sequence[Any], num_classes: int, names: Mapping[str, int] | None = None) -> Tensor:
    """Labels int64 `[n]` from class numbers, or, where `names` are given, from what they are called.

    Raises:
        RemoteError: an unknown name, what is no whole number, or a class that doesn't exist.
    """
    labels = [_label(value, names) for value in values]
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise RemoteError(f"answers with class {shown(outside[0])}, but there are {num_classes} (0..{num_classes - 1})")
    return torch.tensor(labels, dtype=torch.int64)


def shown(value: object) -> str:
    """A piece of what a server sent, short and on one line; dots say where it was cut, for secrets are sought there."""
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    text = value if isinstance(value, str) else repr(value)
    line = one_line(text[:_READ])
    return line if len(line) <= _SHOWN and len(text) < _READ else f"{line[:_SHOWN]}..."


def _label(value: Any, names: Mapping[str, int] | None) -> int:
    if names is not None:
        name = value if isinstance(value, str) else shown(value)
        if name not in names:
            raise RemoteError(f"answers with the label '{shown(value)}', which the mapping does not know")
        return names[name]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RemoteError(f"expected the number of a class, got {shown(value)}")
    return value


def _by_name(row: dict[str, Any], names: Mapping[str, int] | None) -> list[Any]:
    if names is None:
        raise RemoteError("answers with scores by name: give the labels in the mapping")
    values: dict[int, Any] = {}
    for name, value in row.items():
        index = _label(name, names)
        if index in values:
            raise RemoteError(f"answers with two scores for class {index}")
        values[index] = value
    return [values[index] for index in sorted(values)]


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RemoteError(f"expected a number for a score, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
