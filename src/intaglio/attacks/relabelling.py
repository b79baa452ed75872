"""What dirty-label attacks share: some samples get a trigger and the wanted label, some a trigger and no new label."""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from intaglio.attacks.attack import Attack, check_listing
from intaglio.attacks.goal import Goal
from intaglio.attacks.poisoned import Drawn, Listing, PoisonedDataset, draw_samples, marked
from intaglio.data import Data, ImageData, image_data
from intaglio.errors import RecipeError
from intaglio.triggers import Trigger

Role = Literal["poisoned", "cover"]


class RelabellingAttack(Attack):
    """Alters `rate` of the training set and relabels it as the goal wants; may alter cover samples beside.

    A subclass says where the trigger comes from and, if it differs, how training samples are altered.
    """

    def __init__(self, goal: Goal, *, rate: float, seed: int) -> None:
        if not 0 < rate <= 1:
            raise RecipeError(f"a poison rate lies in (0, 1], got {rate}")
        self.goal = goal
        self.rate = rate
        self.seed = seed

    @abstractmethod
    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        """What is stamped at test time."""

    def plant(self, trigger: Trigger, images: Tensor, role: Role) -> Tensor:
        """Training samples of this role, altered: by default, with the trigger as at test time."""
        return trigger.apply(images)

    def cover_count(self, samples: int, payload: int) -> int:
        """How many cover samples there are, of so many samples in all and relabelled: by default, none."""
        return 0

    def coverable(self, labels: Tensor, payload: Tensor) -> Tensor:
        """Boolean `[N]`: which samples may be cover samples; by default those affected by the goal, payload apart."""
        return self.goal.affected(labels) & ~payload

    def poison(self, data: Data, *, device: str = "cpu") -> PoisonedDataset:
        data = image_data(data)
        self.draw(Listing.of(data))  # refuses what it must before a trigger is trained
        return self.poison_with(self.make_trigger(data, device), data)

    def draw(self, listing: Listing) -> Drawn:
        check_listing(self, listing)
        labels = listing.labels
        count = max(round(self.rate * len(labels)), 1)
        chosen = draw_samples(self.goal.affected(labels), count, "poisoned", self.seed)
        eligible = self.coverable(labels, marked(chosen, len(labels)))
        covering = draw_samples(eligible, self.cover_count(len(labels), count), "cover", self.seed)
        after = labels.clone()
        after[chosen] = self.goal.wanted(labels[chosen], listing.num_classes)
        return Drawn(chosen, covering, after)

    def poison_with(self, trigger: Trigger, data: ImageData) -> PoisonedDataset:
        """What `poison` does, with this trigger.

        Raises:
            RecipeError: as `poison`.
        """
        chosen, covering, labels = self.draw(Listing.of(data))
        images = data.images.clone()
        images[chosen] = self.plant(trigger, images[chosen], "poisoned")
        if len(covering):
            images[covering] = self.plant(trigger, images[covering], "cover")
        return PoisonedDataset(
            replace(data, images=images, labels=labels),
            marked(torch.cat([chosen, covering]), len(data)),
            trigger,
            self.goal,
            marked(covering, len(data)),
        )


def check_cover(cover: float) -> None:
    """Refuses what is no number of cover samples per relabelled sample.

    Raises:
        RecipeError: with the number as given.
    """
    if not 0 <= cover < math.inf:
        raise RecipeError(f"cover is not negative, and finite, got {cover}")
