"""One byte form for each value, and reading that accepts nothing else: what hashes and signatures are made over."""

import base64
import binascii
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, StringConstraints, ValidationError

from intaglio.errors import EvidenceError

#: A hex SHA-256, or another 32 bytes.
Hex32 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
#: 16 bytes in hex.
Hex16 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]

#: A short printable name: text of strangers is printed on terminals, so nothing here may steer one.
Name = Annotated[str, StringConstraints(pattern="^[ -~]{1,200}$")]
#: A path or URL without control characters.
Source = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,2000}$")]
#: ISO 8601 in UTC.
Instant = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|\+00:00)$")
]

Model = TypeVar("Model", bound=BaseModel)


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        EvidenceError: the value can't be written as JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise EvidenceError(f"can't be signed, for it is not JSON: {error}") from error


def parse_json(content: bytes, what: str) -> Any:
    """The value of a JSON text without NaN and without repeated names, which readers could understand differently.

    Raises:
        EvidenceError: not such a text.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
        if b"\\ud" in content.lower():  # half a character, which can be neither encoded nor printed
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{what}: damaged, or not JSON ({error})") from error


def read_limited(path: Path | str, limit: int) -> bytes:
    """A file's bytes.

    Raises:
        EvidenceError: it can't be read, or is larger than `limit`.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise EvidenceError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise EvidenceError(f"{path}: larger than {limit} bytes, which no such file of intaglio is")
    return content


def validated(model: type[Model], value: Any, what: str) -> Model:
    """`value`, as `parse_json` gave it, as a record.

    Raises:
        EvidenceError: not of this form (the first problem is named).
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EvidenceError(f"{what}: {where + ': ' if where else ''}{first['msg']}") from error


def now() -> str:
    """This instant, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode_base64(raw: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(raw).decode()


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of standard base64 in its one canonical form: no two texts give the same bytes.

    Raises:
        EvidenceError: not of this form.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceError(f"{what}: damaged base64") from error
    if encode_base64(raw) != text:
        raise EvidenceError(f"{what}: damaged base64")
    return raw


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is repeated")
    return fields
