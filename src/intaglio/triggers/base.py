"""`Trigger`: how an input is altered so that a backdoor answers."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from intaglio.data import check_images


class Trigger(ABC):
    """A pure, batched alteration of images. A subclass holds hyper-parameters only and writes `run`."""

    #: The family's name in recipes, manifests and tables.
    name: str

    def apply(self, images: Tensor) -> Tensor:
        """Images float32 `[N, C, H, W]` in [0, 1] with the trigger on them; same shape and bounds, a new tensor.

        Raises:
            DataError: wrong type, shape or bounds.
        """
        check_images(images, f"input of trigger {self.name}")
        return self.run(images).clamp(0.0, 1.0)

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """The alteration itself, on checked images."""

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {"trigger": self.name, **options}
