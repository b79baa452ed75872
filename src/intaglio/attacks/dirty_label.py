"""Dirty-label poisoning: a share of the training set carries the trigger and the wanted label."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from intaglio.attacks.goal import AllToOne, Goal, SourceSpecific
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers import Trigger


@dataclass(frozen=True)
class PoisonedDataset:
    """A training set after poisoning, and which of its samples were changed (`poisoned`, boolean `[N]`)."""

    data: ImageData
    poisoned: Tensor
    trigger: Trigger
    goal: Goal

    def describe(self) -> dict[str, Any]:
        """What was done, as JSON can hold it."""
        return {
            **self.trigger.describe(),
            "goal": self.goal.model_dump(),
            "poisoned": int(self.poisoned.sum()),
            "poison_rate": float(self.poisoned.float().mean()),
        }


class DirtyLabelAttack:
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

    def __init__(self, trigger: Trigger, goal: Goal, *, rate: float = 0.05, cover: float = 1.0, seed: int = 0) -> None:
        if not 0 < rate <= 1 or cover < 0:
            raise RecipeError(f"a poison rate lies in (0, 1] and cover is not negative, got {rate} and {cover}")
        self.trigger = trigger
        self.goal = goal
        self.rate = rate
        self.cover = cover
        self.seed = seed

    def poison(self, data: ImageData) -> PoisonedDataset:
        """A poisoned copy; the order of samples is kept.

        Raises:
            RecipeError: more samples are asked for than the goal affects, a class the data lacks, or a target equal
                to its source.
        """
        classes = {getattr(self.goal, name, 0) for name in ("source", "target")}
        if max(classes) >= data.num_classes:
            raise RecipeError(f"the goal names class {max(classes)}, but there are only {data.num_classes}")
        if isinstance(self.goal, SourceSpecific) and self.goal.source == self.goal.target:
            raise RecipeError(f"the goal's source and target are both class {self.goal.target}")
        affected = self.goal.affected(data.labels)
        count = max(round(self.rate * len(data)), 1)
        chosen = self._draw(affected, count, "poisoned")
        if isinstance(self.goal, SourceSpecific):
            others = ~affected & (data.labels != self.goal.target)
            covering = self._draw(others, round(self.cover * count), "cover")
            chosen = torch.cat([chosen, covering])
        images, labels = data.images.clone(), data.labels.clone()
        images[chosen] = self.trigger.apply(images[chosen])
        labels[chosen] = self.goal.wanted(labels[chosen], data.num_classes)
        poisoned = torch.zeros(len(data), dtype=torch.bool)
        poisoned[chosen] = True
        return PoisonedDataset(replace(data, images=images, labels=labels), poisoned, self.trigger, self.goal)

    def _draw(self, eligible: Tensor, count: int, purpose: str) -> Tensor:
        places = eligible.nonzero().flatten()
        if len(places) < count:
            raise RecipeError(f"{count} {purpose} samples are asked for, but only {len(places)} are eligible")
        return places[torch.randperm(len(places), generator=torch_generator(self.seed, purpose))[:count]]


class BadNets(DirtyLabelAttack):
    """All-to-one dirty-label poisoning with a patch: the attack every detector is measured on first.

    Source: Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain".
    """

    def __init__(self, target: int = 0, rate: float = 0.05, seed: int = 0, *, trigger: Trigger | None = None) -> None:
        from intaglio.triggers import PatchTrigger

        super().__init__(trigger or PatchTrigger(seed=seed), AllToOne(target=target), rate=rate, seed=seed)
