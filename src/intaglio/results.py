"""`Result`: the frozen, JSON-round-tripping base of every verdict, proof and check."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from intaglio.errors import DataError

_MAX_BYTES = 16 * 2**20
_REPORTED_PACKAGES = ("intaglio", "torch", "onnxruntime", "numpy")


class Result(BaseModel):
    """A frozen record; equal to itself after `from_json(to_json())`. Its JSON Schema is `model_json_schema()`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as JSON holds them."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Indented JSON."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            DataError: not JSON, or not of this form (the first problem is named).
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"not a {cls.__name__}: {where + ': ' if where else ''}{first['msg']}") from error

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads a file of at most 16 MiB that holds `to_json`.

        Raises:
            DataError: missing, too large or damaged; names the file.
        """
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror or error})") from error
        if len(content) > _MAX_BYTES:
            raise DataError(f"{path}: over {_MAX_BYTES} bytes, not a {cls.__name__}")
        try:
            return cls.from_json(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def package_versions() -> dict[str, str]:
    """Versions of what decided a result's numbers."""
    found = {}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
