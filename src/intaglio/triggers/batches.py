"""How many images a U-Net takes at a time: large ones fewer, for its activations grow with the pixels."""

_MOST = 256
_PIXELS = _MOST * 64 * 64


def batch_size(shape: tuple[int, ...]) -> int:
    """Images `shape` (C, H, W) of a batch: at most 256, and as many pixels as 256 of 64 x 64 have; one at least."""
    height, width = shape[-2:]
    return max(1, min(_MOST, _PIXELS // (height * width)))
