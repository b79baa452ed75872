"""Overwriting: another mark is trained in over the owner's."""

import math
from typing import ClassVar, Unpack

import torch
from torch import nn

from intaglio.errors import DataError, RecipeError
from intaglio.tampering.retraining import Retraining, retrain, training_settings
from intaglio.tampering.tampering import Data, Material, Tampering, checked_data, with_data

#: So often the clean data are repeated at most: they are copied.
_MOST = 100
#: 5.999... is 6.
_ROUNDING = 1e-9


class Overwrite(Tampering):
    """Trains the model on the thief's own trigger images and labels, among clean data if there are some.

    With clean data, the triggers are repeated until they are at least `share` of all samples; where they are more even
    once, the clean data are repeated as often as leaves them that share, 100 times at most. Without clean data, the
    triggers are all.

    Args:
        triggers: the other mark: raw images and labels.
        share: of the triggers among the samples, the least, in (0, 1).

    Raises:
        RecipeError: a value outside its range.
        DataError: triggers that are not images with labels.

    Source: Wang & Kerschbaum 2019, "Attacks on Digital Watermarks for Deep Neural Networks".
    """

    name = "overwrite"
    needs_labels = True
    training_defaults: ClassVar[Retraining] = {"epochs": 5, "learning_rate": 1e-3, "schedule": "constant"}

    def __init__(self, *, triggers: Data, share: float = 0.1, **training: Unpack[Retraining]) -> None:
        if not 0 < share < 1:
            raise RecipeError(f"the triggers' share of the samples lies in (0, 1), got {share}")
        self.triggers = checked_data(triggers, "triggers")
        self.share = share
        self.training = training_settings(self.training_defaults, training)

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        mark = with_data(material, module, self.triggers, "triggers", labelled=True)
        images, labels = mark.images, mark.labels
        if material.data is not None:
            clean = material.images
            if clean.shape[1:] != images.shape[1:]:
                raise DataError(f"triggers are {list(images.shape[1:])}, but the data are {list(clean.shape[1:])}")
            repeats = self._repeats(len(clean), len(images))
            images = torch.cat([*[clean] * repeats[0], *[images] * repeats[1]])
            labels = torch.cat([*[material.labels] * repeats[0], *[labels] * repeats[1]])
        return retrain(module, images, labels, self.training, mark)

    def _repeats(self, clean: int, triggers: int) -> tuple[int, int]:
        """How often so many clean images, and so many triggers, are taken."""
        wanted = self.share / (1 - self.share) * clean / triggers
        times = math.floor(1 / max(wanted, 1 / _MOST) + _ROUNDING)
        return max(times, 1), max(math.ceil(wanted - _ROUNDING), 1)
