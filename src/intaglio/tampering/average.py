"""Weight averaging: the model and a copy of it that was fine-tuned, mixed weight by weight."""

from copy import deepcopy
from typing import ClassVar, Unpack

from torch import nn

from intaglio.errors import ModelError, RecipeError
from intaglio.tampering.retraining import FINE_TUNING, Retraining, retrain, training_settings
from intaglio.tampering.tampering import Material, Tampering


class Average(Tampering):
    """(1 - share) w + share w', where w' is fine-tuned on the thief's data.

    `average_weights` mixes two models that are at hand already.

    Args:
        share: of the fine-tuned copy, in (0, 1].

    Raises:
        RecipeError: a value outside its range.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
    """

    name = "average"
    needs_data = True
    needs_labels = True
    training_defaults: ClassVar[Retraining] = FINE_TUNING

    def __init__(self, *, share: float = 0.5, **training: Unpack[Retraining]) -> None:
        if not 0 < share <= 1:
            raise RecipeError(f"the copy's share lies in (0, 1], got {share}")
        self.share = share
        self.training = training_settings(self.training_defaults, training)

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        tuned = retrain(deepcopy(module), material.images, material.labels, self.training, material)
        return average_weights(module, tuned, share=self.share)


def average_weights(first: nn.Module, second: nn.Module, *, share: float = 0.5) -> nn.Module:
    """A new module with weights and statistics (1 - share) a + share b; counters are those of the first.

    Raises:
        ModelError: the two are not of one architecture.
        RecipeError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise RecipeError(f"the second model's share lies in [0, 1], got {share}")
    mixed, other = deepcopy(first), second.state_dict()
    own = mixed.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in other.items()}:
        raise ModelError("only models of one architecture can be averaged")
    means = {
        name: value.mul(1 - share).add(other[name].to(value), alpha=share)
        for name, value in own.items()
        if value.is_floating_point()
    }
    for name, mean in means.items():  # apart: tied weights have two names, and are to be mixed once
        own[name].copy_(mean)
    return mixed.eval()
