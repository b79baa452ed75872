"""Test images under the labels of the training set: classes are the same if their names are, whatever their numbers."""

from dataclasses import replace

import torch

from intaglio.data.images import ImageData
from intaglio.errors import DataError

_NAMED = 5


def in_classes_of(training: ImageData, test: ImageData) -> ImageData:
    """`test` with the labels and class names that `training` has for the same names.

    Each source numbers its own classes: in a folder without images of class `b`, `c` has the number that `b` has
    elsewhere. Where one of the two has no names, its labels are taken as they are.

    Raises:
        DataError: classes that the training set doesn't have.
    """
    if not training.classes or not test.classes or training.classes == test.classes:
        return test
    if strange := [name for name in test.classes if name not in training.classes]:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise DataError(
            f"{test.name}: has classes that {training.name} has not: {', '.join(strange[:_NAMED])}{more}; the two must "
            "name their classes alike"
        )
    numbers = torch.tensor([training.classes.index(name) for name in test.classes])
    labels = torch.where(test.labels < 0, test.labels, numbers[test.labels])  # -1, not known, stays
    return replace(test, labels=labels, classes=training.classes)
