"""The zip archive that `torch.export.save` writes, read without torch: JSON and raw bytes, nothing pickled."""

import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.classifiers.stored_zip import stored_members
from intaglio.errors import ModelError, UnsafeFileError

#: Numbers of types in torch's export schema (torch/_export/serde/schema.py, ScalarType).
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip

_SCHEMA_MAJOR = 8
_JSON_LIMIT = 256 << 20
#: What torch.export.load would unpickle, or load as a shared library.
_EXECUTABLE = ("data/aotinductor/", "data/executorch/", "data/constants/custom_obj_", "data/constants/opaque_obj_")


@dataclass(frozen=True)
class ExportedArchive:
    """The graph as JSON, its schema checked, and the tensors by name."""

    graph_module: dict[str, Any]
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]


def read_archive(path: Path) -> ExportedArchive:
    """Reads `models/model.json` and the raw tensors that its graph takes; other members are not opened.

    Raises:
        UnsafeFileError: pickled tensors, custom objects, compiled code, or an archive that isn't torch's own.
        ModelError: another version, truncated, or damaged.
    """
    members = stored_members(path)
    root = next(iter(members), "").split("/")[0]
    for member in members:
        if member.removeprefix(f"{root}/").startswith(_EXECUTABLE):
            raise UnsafeFileError(f"{path}: holds '{member}', which is code; export with torch.export.save alone")
    if f"{root}/models/model.json" not in members:
        raise ModelError(
            f"{path}: has no models/model.json: export again, with torch.export.save of torch 2.9 or later"
        )
    with zipfile.ZipFile(path) as archive:
        reader = _Reader(path, archive, root)
        if reader.bytes("byteorder") != b"little":
            raise ModelError(f"{path}: written in another byte order than little-endian")
        program = reader.json("models/model.json")
        version = program["schema_version"]["major"]
        if version != _SCHEMA_MAJOR:
            raise ModelError(f"{path}: export schema {version}, expected {_SCHEMA_MAJOR}: export again")
        wanted = _wanted(program["graph_module"])
        return ExportedArchive(
            graph_module=program["graph_module"],
            weights=reader.tensors("weights", "weight_", wanted),
            constants=reader.tensors("constants", "tensor_", wanted),
        )


def _wanted(graph_module: dict[str, Any]) -> set[str]:
    """The names of all tensors that the graph takes."""
    specs = [item for spec in graph_module["signature"]["input_specs"] for item in spec.items()]
    return {content[f"{kind}_name"] for kind, content in specs if f"{kind}_name" in content}


class _Reader:
    """Members of one open archive, by their path below its root folder."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self._path, self._archive, self._root = path, archive, root
        self._storages: dict[str, bytearray] = {}  # many names may be of one member: it is read once
        self._copied = 0

    def bytes(self, member: str) -> bytes:
        try:
            return self._archive.read(f"{self._root}/{member}")
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ModelError(f"{self._path}: member '{member}' is missing or damaged") from error

    def json(self, member: str) -> Any:
        content = self.bytes(member)
        if len(content) > _JSON_LIMIT:
            raise ModelError(f"{self._path}: member '{member}' is larger than {_JSON_LIMIT} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self._path}: member '{member}' is not JSON") from error

    def tensors(self, folder: str, prefix: str, wanted: set[str]) -> dict[str, Tensor]:
        """Those of the `wanted` tensors that `<folder>/model_<folder>_config.json` lists."""
        config = self.json(f"data/{folder}/model_{folder}_config.json")["config"]
        return {name: self._tensor(name, entry, folder, prefix) for name, entry in config.items() if name in wanted}

    def _tensor(self, name: str, entry: dict[str, Any], folder: str, prefix: str) -> Tensor:
        file, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or not re.fullmatch(rf"{prefix}\d+", file):
            raise UnsafeFileError(f"{self._path}: '{name}' is pickled, which would execute code when loaded")
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            raise ModelError(f"{self._path}: '{name}' has a type that isn't supported ({meta['dtype']})")
        sizes = [_integer(size) for size in meta["sizes"]]
        content = self._storage(f"data/{folder}/{file}")
        if math.prod(sizes) * dtype.itemsize > len(content):
            raise ModelError(f"{self._path}: '{name}' claims {sizes} values, but only {len(content)} bytes are there")
        if not content:
            return torch.empty(sizes, dtype=dtype)
        strides = [_integer(stride) for stride in meta["strides"]]
        stored = torch.frombuffer(content, dtype=dtype).as_strided(sizes, strides, _integer(meta["storage_offset"]))
        if not stored.is_contiguous():
            self._copied += stored.nbytes
            if self._copied > self._path.stat().st_size:
                raise ModelError(f"{self._path}: its tensors claim more bytes than the file has")
        return stored.contiguous()

    def _storage(self, member: str) -> bytearray:
        if member not in self._storages:
            self._storages[member] = bytearray(self.bytes(member))
        return self._storages[member]


def _integer(value: dict[str, Any]) -> int:
    number = value["as_int"]
    if type(number) is not int or number < 0:
        raise ValueError(f"expected a size, got {number!r}")
    return number
