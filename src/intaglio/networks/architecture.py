"""Which networks there are, and how a file names one: `Architecture` is what a side-car writes down."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from intaglio.errors import ModelError, RecipeError
from intaglio.networks.cnn_lstm import CnnLstm
from intaglio.networks.i3d import I3D
from intaglio.networks.lenet import LeNet
from intaglio.networks.mobilenet import SmallMobileNet
from intaglio.networks.resnet import resnet8, resnet14, resnet18
from intaglio.networks.vgg import SmallVGG
from intaglio.networks.video_resnet import mc3_18, r2plus1d18, r3d18, rmc3_10

Factory = Callable[..., nn.Module]

#: name -> factory(input_shape, num_classes, width=...), for images
NETWORKS: dict[str, Factory] = {
    "lenet": LeNet,
    "vgg": SmallVGG,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet18": resnet18,
    "mobilenet": SmallMobileNet,
}

#: The same for videos.
VIDEO_NETWORKS: dict[str, Factory] = {
    "r3d18": r3d18,
    "mc3_18": mc3_18,
    "r2plus1d18": r2plus1d18,
    "rmc3_10": rmc3_10,
    "i3d": I3D,
    "cnn_lstm": CnnLstm,
}


class Architecture(BaseModel):
    """A network by name, with its input `(C, H, W)` or, for video, `(T, C, H, W)`, class count and width.

    Without a width the network has its own default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    input_shape: tuple[PositiveInt, ...] = Field(min_length=3, max_length=4)
    num_classes: int = Field(ge=2)
    width: int | None = Field(default=None, ge=1)

    def build(self) -> nn.Module:
        """A freshly initialised module (from torch's global generator), in training mode.

        Raises:
            ModelError: no network has this name.
            RecipeError: images for a network for videos, or the other way round; an input that is too small for it, or
                too large for this machine.
        """
        factory = (NETWORKS | VIDEO_NETWORKS).get(self.name)
        if factory is None:
            known = f"{', '.join(sorted(NETWORKS))}; for videos {', '.join(sorted(VIDEO_NETWORKS))}"
            raise ModelError(f"unknown architecture '{self.name}'; known are {known}")
        wanted = 4 if self.name in VIDEO_NETWORKS else 3
        if len(self.input_shape) != wanted:
            kind = "videos (T, C, H, W)" if wanted == 4 else "images (C, H, W)"
            raise RecipeError(f"{self.name} takes {kind}, not inputs of shape {self.input_shape}")
        extra = {} if self.width is None else {"width": self.width}
        try:
            return factory(self.input_shape, self.num_classes, **extra)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise RecipeError(f"{self.name} can't take inputs of shape {self.input_shape}: {error}") from error
