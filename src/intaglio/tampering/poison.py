"""Poisoning: the model is trained on with a share of samples that carry a trigger."""

from collections.abc import Callable
from typing import ClassVar, Unpack

from torch import nn

from intaglio.attacks import BadNets
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import derive_seed
from intaglio.tampering.retraining import Retraining, retrain, training_settings
from intaglio.tampering.tampering import Material, Tampering
from intaglio.triggers import Trigger, trigger_named


class Poison(Tampering):
    """Plants a backdoor: fine-tunes on data of which `rate` carry a trigger and the label `target`.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the samples, in (0, 1].
        trigger: the family's name, or a trigger; by default a white 3 x 3 patch at a place drawn by the seed.

    Raises:
        RecipeError: a value outside its range.

    Source: Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain".
    """

    name = "poison"
    needs_data = True
    needs_labels = True
    training_defaults: ClassVar[Retraining] = {"epochs": 5, "learning_rate": 1e-3, "schedule": "constant"}

    def __init__(
        self, *, target: int = 0, rate: float = 0.1, trigger: str | Trigger = "patch", **training: Unpack[Retraining]
    ) -> None:
        if not 0 < rate <= 1:
            raise RecipeError(f"the rate of poisoned samples lies in (0, 1], got {rate}")
        if not isinstance(target, int) or target < 0:
            raise RecipeError(f"the target is a class from 0 on, got {target}")
        if isinstance(trigger, str):
            trigger_named(trigger)
        self.target = target
        self.rate = rate
        self.trigger = trigger
        self.training = training_settings(self.training_defaults, training)

    def trigger_for(self, seed: int) -> Trigger:
        """The trigger that `apply(..., seed=seed)` plants."""
        if isinstance(self.trigger, Trigger):
            return self.trigger
        family: Callable[..., Trigger] = trigger_named(self.trigger)
        return family(seed=derive_seed(seed, self.name, "trigger"))

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        classes = tuple(str(index) for index in range(material.num_classes))
        data = ImageData(material.images, material.labels, classes, self.name)
        seed = derive_seed(material.seed, self.name, "samples")
        attack = BadNets(self.target, self.rate, seed, trigger=self.trigger_for(material.seed))
        poisoned = attack.poison(data).data
        return retrain(module, poisoned.images, poisoned.labels, self.training, material)
