"""What clean-label attacks share: samples of the target class alone are altered, and none is relabelled."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from intaglio.attacks.attack import Attack, all_to_one, check_listing
from intaglio.attacks.goal import AllToOne
from intaglio.attacks.poisoned import Drawn, Listing, PoisonedDataset, draw_samples, marked
from intaglio.data import Data, ImageData, image_data
from intaglio.errors import RecipeError
from intaglio.triggers import Trigger


class CleanLabelAttack(Attack):
    """Alters `rate` of the target class's samples; every label stays, and is right.

    A subclass says how they are altered, and what is stamped at test time.
    """

    clean_label: ClassVar[bool] = True
    goal: AllToOne

    def __init__(self, target: int, *, rate: float, seed: int) -> None:
        if not 0 < rate <= 1:
            raise RecipeError(f"the share of the target class that is altered lies in (0, 1], got {rate}")
        self.goal = all_to_one(target)
        self.rate = rate
        self.seed = seed

    @abstractmethod
    def alter(self, images: Tensor, data: ImageData, device: str) -> tuple[Tensor, Trigger]:
        """The altered images of the target class `[M, C, H, W]` (or clips), and the trigger for test time."""

    def draw(self, listing: Listing) -> Drawn:
        check_listing(self, listing)
        own: Tensor = listing.labels == self.goal.target
        chosen = draw_samples(own, max(round(self.rate * int(own.sum())), 1), "poisoned", self.seed)
        return Drawn(chosen, torch.empty(0, dtype=torch.int64), listing.labels)

    def poison(self, data: Data, *, device: str = "cpu") -> PoisonedDataset:
        data = image_data(data)
        chosen = self.draw(Listing.of(data)).payload
        images = data.images.clone()
        images[chosen], trigger = self.alter(images[chosen], data, device)
        return PoisonedDataset(replace(data, images=images), marked(chosen, len(data)), trigger, self.goal)
