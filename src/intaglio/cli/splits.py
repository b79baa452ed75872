"""Training and test images of one source, and the word of warning where it has no test images of its own."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intaglio.data import ImageData


def train_and_test(
    opening: "Callable[[str, str], ImageData]", data: str, test: str | None
) -> "tuple[ImageData, ImageData]":
    """What is trained on, and what is measured on: the test images of `test`, or else of `data`.

    A folder or archive without splits has the same images for both, and figures on those flatter: that is said.
    Test images get the labels that the training set has for classes of their names.

    Args:
        opening: opens a split of a source.

    Raises:
        DataError: as `opening`; or test images without labels, or of classes that the training set doesn't have.
    """
    import torch

    from intaglio.data import check_labelled
    from intaglio.data.matching import in_classes_of

    trained, measured = opening(data, "train"), opening(data if test is None else test, "test")
    check_labelled(measured.labels, measured.name, "a measurement", of="test images")
    measured = in_classes_of(trained, measured)
    if torch.equal(trained.images, measured.images):
        warnings.warn(
            f"{test or data}: its test images are those that are trained on, and figures on them flatter; name others "
            "with --test",
            stacklevel=2,
        )
    return trained, measured
