"""Training and test images of one source, and the word of warning where it has no test images of its own."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intaglio.data import ImageData


def train_and_test(
    opening: "Callable[[str, str], ImageData]", data: str, test: str | None
) -> "tuple[ImageData, ImageData]":
    """What is trained on, and what is measured on: `test`, or else the test images of `data`.

    A folder or archive without splits gives the same images for both, and figures on those flatter: that is said.

    Args:
        opening: opens a split of a source.
    """
    import torch

    trained = opening(data, "train")
    if test is not None:
        return trained, opening(test, "test")
    measured = opening(data, "test")
    if torch.equal(trained.images, measured.images):
        warnings.warn(
            f"{data}: has no test images of its own, so the figures are those of images that were trained on; "
            "name others with --test",
            stacklevel=2,
        )
    return trained, measured
