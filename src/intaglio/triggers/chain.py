"""Several triggers on one image."""

from typing import Any

from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.triggers.base import Trigger


class ChainTrigger(Trigger):
    """x~ = t_n(... t_1(x)): one trigger after the other, in the order given.

    Raises:
        RecipeError: there are none.
    """

    name = "chain"

    def __init__(self, *links: Trigger) -> None:
        if not links:
            raise RecipeError("a chain needs at least one trigger")
        self.links = links

    def run(self, images: Tensor) -> Tensor:
        for link in self.links:
            images = link.apply(images)
        return images

    def run_on_clips(self, clips: Tensor) -> Tensor:
        return self.run(clips)  # each link knows what it does to clips

    def describe(self) -> dict[str, Any]:
        """The links' own descriptions."""
        return {"trigger": self.name, "links": [link.describe() for link in self.links]}
