"""Which networks there are, and how a file names one: `Architecture` is what a side-car writes down."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from intaglio.errors import ModelError, RecipeError
from intaglio.networks.lenet import LeNet
from intaglio.networks.mobilenet import SmallMobileNet
from intaglio.networks.resnet import resnet8, resnet14, resnet18
from intaglio.networks.vgg import SmallVGG

Factory = Callable[..., nn.Module]

#: name -> factory(input_shape, num_classes, width=...)
NETWORKS: dict[str, Factory] = {
    "lenet": LeNet,
    "vgg": SmallVGG,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet18": resnet18,
    "mobilenet": SmallMobileNet,
}


class Architecture(BaseModel):
    """A network by name, with its input `(C, H, W)`, class count and width (None: the network's own default)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    num_classes: int = Field(ge=2)
    width: int | None = Field(default=None, ge=1)

    def build(self) -> nn.Module:
        """A freshly initialised module (from torch's global generator), in training mode.

        Raises:
            ModelError: no network has this name.
            RecipeError: the input is too small for it, or too large for this machine.
        """
        factory = NETWORKS.get(self.name)
        if factory is None:
            raise ModelError(f"unknown architecture '{self.name}'; known are {', '.join(sorted(NETWORKS))}")
        extra = {} if self.width is None else {"width": self.width}
        try:
            return factory(self.input_shape, self.num_classes, **extra)
        except RuntimeError as error:
            raise RecipeError(f"{self.name} can't take inputs of shape {self.input_shape}: {error}") from error
