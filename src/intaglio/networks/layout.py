"""When a network may compute with its channels last in memory, which CPUs do 1.5 to 2 times faster."""

from collections.abc import Sequence

from torch import nn

#: Sides of images up to which nothing happens; the smallest seen to fail is 46.
_SAFE_SIDE = 32
_VECTOR = 16


def narrow_shortcuts(module: nn.Module) -> list[nn.Conv2d]:
    """The strided 1 x 1 convolutions over fewer than 16 channels: the shortcuts of narrow residual networks.

    With channels last the gradient to their weights writes beyond its memory on CPUs (oneDNN, as in torch 2.13): the
    process crashes, or goes on with other values overwritten. It was seen from 46 pixels a side on, and on two threads
    with batches of hundreds at 28 pixels too. With channels first, and in three dimensions, all is well.
    """
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.stride != (1, 1)
        and part.in_channels // part.groups < _VECTOR
    ]  # fmt: skip


def channels_last_is_safe(module: nn.Module, shape: Sequence[int]) -> bool:
    """False for inputs `[..., H, W]` of a `shape` that is large for a module with narrow shortcuts.

    Training gives such shortcuts their channels first at any size.
    """
    return max(shape[-2:]) <= _SAFE_SIDE or not narrow_shortcuts(module)
