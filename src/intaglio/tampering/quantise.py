"""Quantisation: weights rounded to few integers or to half precision, and stored as what these stand for."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from intaglio.errors import ModelError, RecipeError
from intaglio.tampering.tampering import Material, Tampering, weights_of

Number = Literal["integer", "fp16", "bf16"]
Scale = Literal["tensor", "channel"]

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_MOST_BITS = 24


class Quantise(Tampering):
    """Rounds weights w to q s, as a model converted for faster inference holds them.

    Integers are symmetric: s = max |w| / (2^(bits-1) - 1) and q = round(w / s), for matrices and kernels; biases and
    normalisation keep full precision, as int8 runtimes keep them. fp16 and bf16 round every parameter and buffer.

    Args:
        number: integers, or half-precision floating point.
        bits: of an integer, from 2 to 24 (default: 8).
        scale: one s per tensor, or one per output channel.
        activations: for fp16 and bf16, whether every layer's output is rounded too, as where the runtime computes in
            half; in Python alone, as no file of weights holds it.

    Raises:
        RecipeError: a value outside its range; `activations` where the result is to be a file.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Krishnamoorthi 2018 for scales per channel.
    """

    name = "quantise"

    def __init__(
        self,
        *,
        number: Number = "integer",
        bits: int | None = None,
        scale: Scale = "tensor",
        activations: bool = False,
    ) -> None:
        if number not in get_args(Number) or scale not in get_args(Scale):
            raise RecipeError(
                f"unknown number '{number}' or scale '{scale}'; known are {', '.join(get_args(Number))} and "
                f"{', '.join(get_args(Scale))}"
            )
        if bits is not None and not (number == "integer" and isinstance(bits, int) and 2 <= bits <= _MOST_BITS):
            raise RecipeError(f"integers have 2 to {_MOST_BITS} bits and {number} has its own, got bits={bits}")
        if activations and number == "integer":
            raise RecipeError("activations are rounded to fp16 or bf16 only: integers would need a calibration")
        self.number = number
        self.bits = (bits or 8) if number == "integer" else 16
        self.scale = scale
        self.activations = activations

    def check_storable(self) -> None:
        if self.activations:
            raise RecipeError(
                "quantise: a file holds weights alone, and can't round activations; leave that option out"
            )

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        if self.number == "integer":
            weights = [weight.detach() for _, weight in weights_of(module)]
            if not weights:
                raise ModelError("quantise: the module has no matrices or kernels")
            for weight in weights:
                weight.copy_(rounded(weight, self.bits, self.scale))
            return module
        half = _HALVES[self.number]
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.detach().copy_(tensor.detach().to(half))
        if self.activations:
            for part in module.modules():
                if next(part.children(), None) is None:
                    part.register_forward_hook(partial(_round_output, half=half))
        return module


def rounded(weight: Tensor, bits: int, scale: Scale) -> Tensor:
    """The weight `[out, ...]` rounded to symmetric integers and back; off by at most half a step."""
    dimensions = tuple(range(1 if scale == "channel" else 0, weight.ndim))
    most = 2 ** (bits - 1) - 1
    # In double precision: from 16 bits on, float32 itself would round too.
    precise = weight.double()
    step = precise.abs().amax(dimensions, keepdim=True) / most
    step = torch.where(step == 0, 1.0, step)
    return ((precise / step).round() * step).float()


def _round_output(_part: nn.Module, _inputs: Any, output: Any, *, half: torch.dtype) -> Any:
    if isinstance(output, Tensor) and output.is_floating_point():
        return output.to(half).to(output.dtype)
    return output
