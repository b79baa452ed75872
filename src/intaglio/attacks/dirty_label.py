"""Dirty-label poisoning: a share of the training set carries the trigger and the wanted label."""

from typing import ClassVar, Literal

from torch import Tensor

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.goal import AllToAll, Goal, SourceSpecific
from intaglio.attacks.poisoned import PoisonedDataset
from intaglio.attacks.relabelling import RelabellingAttack, check_cover
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.triggers import PatchTrigger, Trigger
from intaglio.triggers.patch import PatchColour, PatchShape

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
        cover: cover samples per relabelled sample, for source-specific goals, 0 or more.
        seed: draws the samples.

    Raises:
        RecipeError: a value outside its range.

    Source: Gu et al. 2017 (BadNets); Tang et al. 2021 (TaCT) for source-specific goals with cover samples.
    """

    name: ClassVar[str] = "dirty-label"

    def __init__(self, trigger: Trigger, goal: Goal, *, rate: float = 0.05, cover: float = 1.0, seed: int = 0) -> None:
        super().__init__(goal, rate=rate, seed=seed)
        check_cover(cover)
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
    """Dirty-label poisoning with a patch: the attack every detector is measured on first.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set, in (0, 1].
        seed: draws the samples, and the patch's place.
        goal: every class is answered with the target, or each class y with (y + 1) mod K.
        source: the one class that the trigger acts on; none: all others.
        cover: with a source, triggered samples of other classes that keep their label, per relabelled sample.
        size: the patch's side, pixels.
        shape: which of these pixels belong to it.
        colour: of the patch.
        opacity: weight of the patch over the image, in (0, 1].
        trigger: in place of that patch, which is at a place drawn by the seed.

    Raises:
        RecipeError: a value outside its range, a trigger that is none, or one beside options of the patch.

    Source: Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain"; Tang et
    al. 2021 (TaCT) for a source.
    """

    name: ClassVar[str] = "badnets"

    def __init__(
        self,
        target: int = 0,
        rate: float = 0.05,
        seed: int = 0,
        *,
        goal: Literal["all-to-one", "all-to-all"] = "all-to-one",
        source: int | None = None,
        cover: float = 1.0,
        size: int = 3,
        shape: PatchShape = "square",
        colour: PatchColour = "white",
        opacity: float = 1.0,
        trigger: Trigger | None = None,
    ) -> None:
        if not isinstance(trigger, Trigger | None):
            raise RecipeError(f"badnets takes a Trigger, made in Python, and not {type(trigger).__name__} '{trigger}'")
        patch = PatchTrigger(size=size, shape=shape, colour=colour, opacity=opacity, seed=seed)
        if trigger is not None and patch.describe() != PatchTrigger(seed=seed).describe():
            raise RecipeError("badnets takes a trigger or options of its patch, not both")
        super().__init__(trigger or patch, _goal(goal, source, target), rate=rate, cover=cover, seed=seed)


def _goal(kind: str, source: int | None, target: int) -> Goal:
    """What options ask for."""
    one = all_to_one(target)
    if kind not in ("all-to-one", "all-to-all"):
        raise RecipeError(f"a goal is all-to-one or all-to-all, got '{kind}'")
    if source is None:
        return one if kind == "all-to-one" else AllToAll()
    if kind == "all-to-all" or not isinstance(source, int) or source < 0 or source == target:
        raise RecipeError(f"a source is another class than the target, and goes with all-to-one, got {source}")
    return SourceSpecific(source=source, target=target)
