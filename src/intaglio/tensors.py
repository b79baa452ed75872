"""Named tensors with metadata as the bytes of a safetensors file, in memory."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class Packed(NamedTuple):
    """What was packed."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Tensors of any layout and device, and metadata, as bytes; what shares memory (tied weights) is each whole."""
    packed: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        packed[name] = value.clone() if memory in known else value
        known.add(memory)
    return save(packed, dict(metadata))


def unpack(content: bytes) -> Packed:
    """What `pack` was given, on the CPU.

    Raises:
        ValueError: something else, without metadata, or cut short.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        metadata: dict[str, str] = dict(json.loads(content[8 : 8 + size])["__metadata__"])
        return Packed(load(content), metadata)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
