"""Float32 products in full precision, whatever this process is set to: a seal must see the weights, not TF32."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class _Process:
    """Who is inside: the first turns the process's settings off, the last puts them back."""

    lock = threading.Lock()
    inside = 0
    settings = ExitStack()


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 and bfloat16 are off inside, in convolutions too, where PyTorch has TF32 on by default; then as before.

    TF32 keeps 10 bits of each factor, on GPUs from the Ampere generation on: that moves scores by a thousand noise
    floors. The settings are the process's, so other threads compute in full precision meanwhile as well; several may be
    inside at once.
    """
    with _Process.lock:
        if not _Process.inside:
            _Process.settings = ExitStack()
            _Process.settings.enter_context(_settings_off())
        _Process.inside += 1
    try:
        yield
    finally:
        with _Process.lock:
            _Process.inside -= 1
            if not _Process.inside:
                _Process.settings.close()


@contextmanager
def _settings_off() -> Iterator[None]:
    """The flags, and the settings operator by operator that PyTorch has since 2.9, which win over the flags.

    The latter are read first and put back last, for putting a flag back sets some of them.
    """
    before = [(operator, operator.fp32_precision) for operator in _operators()]
    try:
        with _by_flags():
            for operator, _ in before:
                operator.fp32_precision = "ieee"
            yield
    finally:
        for operator, precision in before:
            operator.fp32_precision = precision


@contextmanager
def _by_flags() -> Iterator[None]:
    """The settings that every version of PyTorch has; left alone where they can't be read (see `_settings_off`)."""
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
