"""When a network may compute with its channels last in memory, which CPUs do 1.5 to 2 times faster.

Two things don't go well with it in torch 2.13 on CPUs (oneDNN): either ends the process, or overwrites other values.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

#: Sides of images up to which nothing happens to other modules' narrow shortcuts; the smallest seen to fail is 46.
_SAFE_SIDE = 32
_VECTOR = 16


def narrow_shortcuts(module: nn.Module) -> list[nn.Conv2d]:
    """The strided 1 x 1 convolutions over fewer than 16 channels: the shortcuts of narrow residual networks.

    With channels last the gradient to their weights writes beyond its memory: seen from 46 pixels a side on, on two
    threads with batches of hundreds at 28 pixels too, and on CPUs without AVX-512 at 8. With channels first, in three
    dimensions, and where the weights get no gradient, all is well.
    """
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.stride != (1, 1)
        and part.in_channels // part.groups < _VECTOR
    ]  # fmt: skip


def skips_inputs(stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether a convolution (numbers or pairs, as torch takes them) is dilated, strided and padded at once.

    With channels last the answer to narrow images crashes, where places of the output see nothing but padding.
    """
    return _any_above(dilation, 1) and _any_above(stride, 1) and (isinstance(padding, str) or _any_above(padding, 0))


def channels_last_is_safe(module: nn.Module, shape: Sequence[int]) -> bool:
    """False for a module with convolutions that `skips_inputs`, or with weights that may be narrow shortcuts of its
    own making; and for inputs `[..., H, W]` of a `shape` that is large for one with narrow shortcuts.

    Training gives such shortcuts their channels first at any size.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if any(skips_inputs(part.stride, part.padding, part.dilation) for part in convolutions):
        return False
    owned = {id(part.weight) for part in convolutions}
    for weight in module.parameters():
        if weight.ndim == 4 and weight.shape[2:] == (1, 1) and weight.shape[1] < _VECTOR and id(weight) not in owned:
            return False
    return max(shape[-2:]) <= _SAFE_SIDE or not narrow_shortcuts(module)


def _any_above(value: Any, least: int) -> bool:
    return any(one > least for one in (value if isinstance(value, Sequence) else (value,)))
