"""Keying goes frame by frame: an image is one frame, a clip `[T, C, H, W]` is T of them, under one and the same key.

So a clip may be of any length, and may be cut and sampled after it was keyed. What is drawn for an image (a key, a
code) is repeated for every frame of a clip.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from intaglio.data.images import check_images
from intaglio.errors import DataError
from intaglio.triggers.sample_specific import SampleSpecificEncoder

#: `(C, H, W)` of an image, or of one frame of a clip.
Frame = tuple[int, int, int]


def wrong_size(frame: Frame, found: Sequence[int], *, by: str = "this lock") -> str:
    """What is said of images that are not of the size of those that something is for."""
    wanted, other = ("x".join(map(str, shape)) for shape in (frame, found))
    return f"{by} is for images of {wanted} (channels x height x width), got {other}"


def check_keyable(images: Tensor, frame: Frame, *, by: str = "this lock") -> None:
    """Refuses what is not a batch of images, or of clips, of this size.

    Raises:
        DataError: with what is wrong.
    """
    check_images(images, "images to key")
    if tuple(images.shape[-3:]) != frame:
        raise DataError(wrong_size(frame, images.shape[-3:], by=by))


def frames(images: Tensor) -> Tensor:
    """The frames `[N T, C, H, W]` of clips `[N, T, C, H, W]`; images are their own frames."""
    return images.flatten(0, -4)


def frame_count(images: Tensor) -> int:
    """Frames of each of `[N, ..., C, H, W]`."""
    return math.prod(images.shape[1:-3])


def for_frames(values: Tensor, images: Tensor) -> Tensor:
    """What belongs to each image `[N, ...]`, for each of its frames; a leading 1 is shared by all and stays."""
    count = frame_count(images)
    return values if len(values) == 1 or count == 1 else values.repeat_interleave(count, dim=0)


def keyed(encoder: SampleSpecificEncoder, images: Tensor, plane: Tensor, mixing: Tensor) -> Tensor:
    """Keyed images or clips of the shape given, for a plane and a mixing `[1 or N, ...]`."""
    out: Tensor = encoder(frames(images), for_frames(plane, images), for_frames(mixing, images))
    return out.view_as(images)
