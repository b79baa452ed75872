"""Float32 products in full precision, whatever this process is set to: a seal must see the weights, not TF32."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 and bfloat16 are off inside, in convolutions too, where PyTorch has TF32 on by default; then as before.

    TF32 keeps 10 bits of each factor, on GPUs from the Ampere generation on: that moves scores by a thousand noise
    floors. The settings are the process's, so other threads compute in full precision meanwhile as well.
    """
    with ExitStack() as stack:
        stack.enter_context(_by_flags())
        stack.enter_context(_by_operator())
        yield


@contextmanager
def _by_flags() -> Iterator[None]:
    """The settings that every version of PyTorch has; left alone where they can't be read (see `_by_operator`)."""
    try:
        convolutions, matrices = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # set operator by operator, which these can't express
        convolutions, matrices = False, "highest"
    try:
        if convolutions:
            torch.backends.cudnn.allow_tf32 = False
        if matrices != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if convolutions:
            torch.backends.cudnn.allow_tf32 = True
        if matrices != "highest":
            torch.set_float32_matmul_precision(matrices)


@contextmanager
def _by_operator() -> Iterator[None]:
    """The settings that PyTorch has since 2.9; they win over the flags."""
    before = [(operator, operator.fp32_precision) for operator in _operators()]
    try:
        for operator, _ in before:
            operator.fp32_precision = "ieee"
        yield
    finally:
        for operator, precision in before:
            operator.fp32_precision = precision


def _operators() -> list[Any]:
    places = [(torch.backends.cudnn, ("conv", "rnn")), (torch.backends.cuda, ("matmul",))]
    places.append((torch.backends.mkldnn, ("matmul", "conv", "rnn")))
    found = [getattr(place, name, None) for place, names in places for name in names]
    return [operator for operator in found if _readable(operator)]


def _readable(operator: Any) -> bool:
    try:
        return isinstance(operator.fp32_precision, str)
    except AttributeError:  # before 2.9
        return False
