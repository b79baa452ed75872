"""Dirty-label poisoning: a share of the training set carries the trigger and the wanted label."""

from typing import ClassVar

from torch import Tensor

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.goal import Goal, SourceSpecific
from intaglio.attacks.poisoned import PoisonedDataset
from intaglio.attacks.relabelling import RelabellingAttack
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.triggers import PatchTrigger, Trigger

__all__ = ["BadNets", "DirtyLabelAttack", "PoisonedDataset"]


class DirtyLabelAttack(RelabellingAttack):
    """Stamps `rate` of the training set and relabels it as the goal wants.

    Samples are drawn by `seed` among those that the goal affects. A source-specific goal adds `cover`: as many
    samples again, of the other classes, carry the trigger and keep their label; without them the backdoor would
    answer for every class.

    Args:
        trigger: how inputs are altered.
        goal: which answer is wanted for which label.
        rate: share of the whole training set that is relabelled, in (0, 1].
        cover: cover samples per relabelled sample, for source-specific goals.
        seed: draws the samples.

    Source: Gu et al. 2017 (BadNets); Tang et al. 2021 (TaCT) for source-specific goals with cover samples.
    """

    name: ClassVar[str] = "dirty-label"

    def __init__(self, trigger: Trigger, goal: Goal, *, rate: float = 0.05, cover: float = 1.0, seed: int = 0) -> None:
        if not 0 < rate <= 1 or not cover >= 0:
            raise RecipeError(f"a poison rate lies in (0, 1] and cover is not negative, got {rate} and {cover}")
        super().__init__(goal, rate=rate, seed=seed)
        self.trigger = trigger
        self.cover = cover

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        return self.trigger

    def fixed_triggers(self) -> tuple[Trigger, Trigger]:
        return self.trigger, self.trigger

    def cover_count(self, samples: int, payload: int) -> int:
        return round(self.cover * payload) if isinstance(self.goal, SourceSpecific) else 0

    def coverable(self, labels: Tensor, payload: Tensor) -> Tensor:
        if isinstance(self.goal, SourceSpecific):
            return ~self.goal.affected(labels) & (labels != self.goal.target)
        return super().coverable(labels, payload)


class BadNets(DirtyLabelAttack):
    """All-to-one dirty-label poisoning with a patch: the attack every detector is measured on first.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set, in (0, 1].
        seed: draws the samples, and the patch's place.
        trigger: the patch; by default a white one of 3 x 3 pixels at a place drawn by the seed.

    Raises:
        RecipeError: a rate outside its range, or a trigger that is none.

    Source: Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain".
    """

    name: ClassVar[str] = "badnets"

    def __init__(self, target: int = 0, rate: float = 0.05, seed: int = 0, *, trigger: Trigger | None = None) -> None:
        if not isinstance(trigger, Trigger | None):
            raise RecipeError(f"badnets takes a Trigger, made in Python, and not {type(trigger).__name__} '{trigger}'")
        super().__init__(trigger or PatchTrigger(seed=seed), all_to_one(target), rate=rate, seed=seed)
