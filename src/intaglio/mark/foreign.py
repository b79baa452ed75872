"""Images that belong to no task: the photographs of `data.photos`, for any input shape."""

from torch import Tensor

from intaglio.data.photos import public_photos

DEFAULT_COUNT = 256


def photos(input_shape: tuple[int, ...], count: int = DEFAULT_COUNT, *, seed: int = 0) -> Tensor:
    """Pieces of two photographs `[count, *input_shape]`, multiples of 1/255; clips show one for their whole length.

    Raises:
        DataError: a shape that is neither grey nor RGB.
    """
    still = public_photos(input_shape[-3:], count, seed=seed)
    time = [1] * (len(input_shape) - 3)
    return still.view(count, *time, *input_shape[-3:]).expand(count, *input_shape)
