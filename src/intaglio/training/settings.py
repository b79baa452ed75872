"""How a network is trained: one model for recipes, the command line and Python."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intaglio.errors import RecipeError

OptimizerName = Literal["adam", "adamw", "sgd"]
Augmentation = Literal["none", "flip", "shift", "flip-shift", "noise"]
Schedule = Literal["cosine", "constant"]


class TrainingSettings(BaseModel):
    """Epochs, optimiser and augmentation. The learning rate follows half a cosine from its value down to zero.

    `flip` mirrors half of the images, `shift` moves each by up to 2 pixels, `flip-shift` does both, `noise` adds
    Gaussian noise of standard deviation 0.05. `steps`, if given, is the exact number of optimiser steps, in place
    of `epochs`; the schedule `constant` keeps the learning rate. `freeze_batchnorm` keeps batch normalisation as it
    is, its statistics and its affine parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=4, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: OptimizerName = "adam"
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    augmentation: Augmentation = "none"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    schedule: Schedule = "cosine"
    steps: int | None = Field(default=None, ge=1)
    freeze_batchnorm: bool = False


def checked_settings(values: Mapping[str, Any]) -> TrainingSettings:
    """The settings of these values.

    Raises:
        RecipeError: a value outside its range, or an option that isn't one; it says which.
    """
    try:
        return TrainingSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
