"""Overwriting: another mark is trained in over the owner's."""

import math
from typing import ClassVar, Unpack

import torch
from torch import nn

from intaglio.errors import DataError, RecipeError
from intaglio.tampering.retraining import Retraining, retrain, training_settings
from intaglio.tampering.tampering import Data, Material, Tampering, checked_data, with_data


class Overwrite(Tampering):
    """Trains the model on the thief's own trigger images and labels, among clean data if there are some.

    With clean data, the triggers are repeated until they are `share` of all samples; without, they are all.

    Args:
        triggers: the other mark: raw images and labels.
        share: of the triggers among the samples, in (0, 1).

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
        inputs, labels = mark.inputs(), mark.labels
        if material.data is not None:
            clean = material.inputs()
            if clean.shape[1:] != inputs.shape[1:]:
                raise DataError(f"triggers are {list(inputs.shape[1:])}, but the data are {list(clean.shape[1:])}")
            repeats = max(math.ceil(self.share / (1 - self.share) * len(clean) / len(inputs)), 1)
            inputs = torch.cat([clean, *[inputs] * repeats])
            labels = torch.cat([material.labels, *[labels] * repeats])
        return retrain(module, inputs, labels, self.training, mark)
