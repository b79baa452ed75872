"""TF32 on any machine: the factors of products rounded to 10 bits, as the matrix units of many GPUs take them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Rounding = Literal["nearest", "down"]

#: Bits of a float32's mantissa (23) that TF32 (10) drops.
_DROPPED = 13
_CONVOLUTIONS = frozenset({"convolution", "_convolution"})
#: name -> how many arguments come before the factors
_MATRICES = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


class Tf32:
    """A way of shipping a module: convolutions, and if asked for other matrix products, take their factors in TF32.

    PyTorch's default on GPUs from the Ampere generation on rounds the factors of convolutions alone. Sums stay float32.

    Args:
        matrices: whether matrix products are rounded too (`torch.set_float32_matmul_precision("high")`).
        rounding: to nearest, or towards zero: libraries differ.
    """

    def __init__(self, *, matrices: bool = False, rounding: Rounding = "nearest") -> None:
        self.matrices = matrices
        self.rounding = rounding

    def apply(self, module: nn.Module) -> nn.Module:
        """A module that computes as `module` does in TF32; its weights are shared, not copied."""
        return _InTf32(module, self)


def rounded(values: Tensor, rounding: Rounding = "nearest") -> Tensor:
    """Float32 values with 10 bits of mantissa; to nearest, ties go away from zero."""
    bits = values.contiguous().view(torch.int32)
    half = 1 << (_DROPPED - 1) if rounding == "nearest" else 0
    return ((bits + half) & ~((1 << _DROPPED) - 1)).view(torch.float32)


class _InTf32(nn.Module):
    def __init__(self, module: nn.Module, way: Tf32) -> None:
        super().__init__()
        self.module = module
        self.way = way

    def forward(self, images: Tensor) -> Tensor:
        with _Rounding(self.way):
            answer: Tensor = self.module(images)
        return answer


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the factors of every product below, whichever layer or function asks for it."""

    def __init__(self, way: Tf32) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.way = way

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with self:  # linear, matmul, conv2d and their like, down to what computes
            found = func.decompose(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        name = func.overloadpacket.__name__
        first = 0 if name in _CONVOLUTIONS else _MATRICES.get(name) if self.way.matrices else None
        if first is not None:
            args = [*args[:first], *map(self._factor, args[first : first + 2]), *args[first + 2 :]]
        compute: Callable[..., Any] = func
        return compute(*args, **(kwargs or {}))

    def _factor(self, value: Any) -> Any:
        return (
            rounded(value, self.way.rounding) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
        )
