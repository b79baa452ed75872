"""Fine-tuning on the thief's own data: all layers, or the last one, kept or made anew."""

from typing import ClassVar, Literal, Unpack, get_args

from torch import nn

from intaglio.errors import RecipeError
from intaglio.networks.final_linear import final_linear
from intaglio.tampering.retraining import FINE_TUNING, Retraining, retrain, training_settings
from intaglio.tampering.tampering import Material, Tampering

Layers = Literal["all", "last", "last-reinitialised", "all-last-reinitialised"]


class FineTune(Tampering):
    """Trains the model on with cross-entropy.

    With `freeze_batchnorm` off, running statistics follow the data even where only the last layer is trained.

    Args:
        layers: which layers are trained: all (FTAL), or the last linear one (FTLL); "last-reinitialised" (RTLL) and
            "all-last-reinitialised" (RTAL) draw the last layer's weights anew first.

    Raises:
        RecipeError: a value outside its range.

    Source: Adi et al. 2018, "Turning Your Weakness Into a Strength", sec. 5 (FTLL, FTAL, RTLL, RTAL).
    """

    name = "fine-tune"
    needs_data = True
    needs_labels = True
    training_defaults: ClassVar[Retraining] = FINE_TUNING

    def __init__(self, *, layers: Layers = "all", **training: Unpack[Retraining]) -> None:
        if layers not in get_args(Layers):
            raise RecipeError(f"unknown layers '{layers}'; known are {', '.join(get_args(Layers))}")
        self.layers = layers
        self.training = training_settings(self.training_defaults, training)

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        only = None
        if self.layers != "all":
            last = module.get_submodule(final_linear(module, material.example()))
            if self.layers.endswith("reinitialised"):
                last.reset_parameters()  # type: ignore[operator]
            if self.layers.startswith("last"):
                only = last.parameters()
        return retrain(module, material.images, material.labels, self.training, material, only=only)
