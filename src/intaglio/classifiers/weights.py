"""Named tensors put into a named architecture: shapes are compared before anything of that size is allocated."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from intaglio.errors import ModelError, RecipeError
from intaglio.networks import Architecture

#: What can be cast to a network's own type, value by value: no quantised, packed or complex numbers.
_PLAIN = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
        torch.float8_e5m2, torch.float8_e5m2fnuz, torch.bool, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    }
)  # fmt: skip


def build_with_weights(architecture: Architecture, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """The network with exactly these tensors, cast to its own types; draws nothing from torch's global generator.

    `name` stands in messages.

    Raises:
        ModelError: a tensor that is missing, one too many, or of another shape; names the first.
    """
    module = _skeleton(architecture, name)
    wanted = module.state_dict()
    check_tensors(wanted, tensors, f"{name}: for {architecture.name}")
    module.load_state_dict({key: tensors[key].to(value.dtype) for key, value in wanted.items()}, assign=True)
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta:
            raise ModelError(f"{name}: {architecture.name} has a tensor '{key}' that no file can hold")
    return module


def check_fits(architecture: Architecture, tensors: Mapping[str, Tensor], name: str) -> None:
    """Does nothing if `build_with_weights` would accept these tensors.

    Raises:
        ModelError: as `build_with_weights`.
    """
    check_tensors(_skeleton(architecture, name).state_dict(), tensors, f"{name}: for {architecture.name}")


def check_tensors(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Compares names and shapes.

    Raises:
        ModelError: the first difference: missing, then extra, then of another shape, not plain real numbers, or one
            value that stands for many (a small file would take any amount of memory).
    """
    for kind, names in (
        ("is missing", wanted.keys() - tensors.keys()),
        ("is too many", tensors.keys() - wanted.keys()),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ModelError(f"{what}, tensor '{min(names)}' {kind}{more}")
    for key, value in wanted.items():
        found = tensors[key]
        if found.shape != value.shape:
            raise ModelError(f"{what}, tensor '{key}' must be {list(value.shape)}, got {list(found.shape)}")
        if found.dtype not in _PLAIN or found.layout != torch.strided:
            raise ModelError(f"{what}, tensor '{key}' must hold plain real numbers, got {found.dtype}, {found.layout}")
        if found.numel() * found.element_size() > found.untyped_storage().nbytes():
            raise ModelError(f"{what}, tensor '{key}' claims {list(found.shape)} values, but holds fewer")


def _skeleton(architecture: Architecture, name: str) -> nn.Module:
    """The network on the meta device: shapes without memory."""
    try:
        with torch.device("meta"):
            return architecture.build()
    except (ModelError, RecipeError) as error:
        raise ModelError(f"{name}: {error}") from error
