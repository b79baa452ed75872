"""`Trigger`: how an input is altered so that a backdoor answers."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from intaglio.data import check_images


class Trigger(ABC):
    """A pure, batched alteration of images, or of every frame of clips.

    A subclass holds hyper-parameters only and writes `run`; one that goes over time writes `run_on_clips` as well.
    """

    #: The family's name in recipes, manifests and tables.
    name: str

    def apply(self, images: Tensor) -> Tensor:
        """Images float32 `[N, C, H, W]` in [0, 1] with the trigger on them; same shape and bounds, a new tensor.

        Clips `[N, T, C, H, W]` get it on every frame, unless the trigger says otherwise.

        Raises:
            DataError: wrong type, shape or bounds.
        """
        check_images(images, f"input of trigger {self.name}")
        return (self.run(images) if images.ndim == 4 else self.run_on_clips(images)).clamp(0.0, 1.0)

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """The alteration itself, on checked images."""

    def run_on_clips(self, clips: Tensor) -> Tensor:
        """The alteration of checked clips `[N, T, C, H, W]`: by default, of every frame as of an image."""
        return self.run(clips.flatten(0, 1)).reshape(clips.shape)

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {"trigger": self.name, **options}
