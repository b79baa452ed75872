"""Weights in `.pt` and `.pth` files: read by torch's restricted unpickler, which builds tensors and calls nothing."""

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from intaglio.classifiers.stored_zip import stored_members
from intaglio.errors import ModelError, UnsafeFileError

#: Under which training scripts keep the weights, beside the epoch and the like.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")
#: What torch.load was seen to raise for files with random bytes changed.
_DAMAGE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError, MemoryError,
    struct.error,
)  # fmt: skip


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a state dict, bare or nested in a checkpoint; `module.` of data parallelism is cut off.

    Raises:
        UnsafeFileError: anything but tensors and plain containers, TorchScript, or an archive that isn't torch's own.
        ModelError: not written by torch, truncated, or without named tensors.
    """
    if _is_zip(path):
        stored_members(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except _DAMAGE as error:
        raise ModelError(f"{path}: not a torch file, or truncated ({_line(error)})") from error
    return _tensors(content, path)


def _is_zip(path: Path) -> bool:
    """Decided as torch.load decides it: no file must be a zip archive for the one and a pickle for the other."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _refusal(path: Path, message: str) -> ModelError:
    found = re.search(r"(?:GLOBAL|function|class) ([A-Za-z_][\w.]*)", message.replace("`", ""))
    if found is not None:
        return UnsafeFileError(
            f"{path} holds a pickled {found.group(1).rstrip('.')} that would execute code when loaded; "
            "save a state dict or safetensors"
        )
    return ModelError(f"{path}: not a torch file, or truncated")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not _is_state_dict(content):
        content = next((content[key] for key in _NESTS if _is_state_dict(content.get(key))), content)
    if not _is_state_dict(content):
        raise ModelError(f"{path}: expected named tensors, got {type(content).__name__}; save module.state_dict()")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
