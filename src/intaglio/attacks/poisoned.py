"""`PoisonedDataset`: a training set after an attack, and which of its samples were changed to what end."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from intaglio.attacks.goal import AllToAll, Goal
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers import Trigger

_LEVELS = 255


class Listing(NamedTuple):
    """What is known of a training set before any of its samples is read: labels `[N]`, classes, clips or images."""

    labels: Tensor
    num_classes: int
    clips: bool
    name: str

    @classmethod
    def of(cls, data: ImageData) -> Self:
        """The listing of data that are in memory."""
        return cls(data.labels, data.num_classes, data.images.ndim == 5, data.name)


class Drawn(NamedTuple):
    """Which samples an attack changes: payload and cover, as indices in the order drawn; and all labels afterwards."""

    payload: Tensor
    cover: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PoisonedDataset:
    """A training set after poisoning, and which of its samples were changed (`poisoned`, boolean `[N]`).

    `cover` are those of them that carry a trigger to teach the victim when *not* to answer: they keep their label.
    `trigger` is what is stamped at test time.
    """

    data: ImageData
    poisoned: Tensor
    trigger: Trigger
    goal: Goal
    cover: Tensor | None = None

    @property
    def payload(self) -> Tensor:
        """Boolean `[N]`: changed samples that teach the wanted answer."""
        return self.poisoned if self.cover is None else self.poisoned & ~self.cover

    def rates(self) -> dict[str, float]:
        """Both poison rates, and that of cover samples.

        `whole` is payload over all samples; `target_class` payload over the samples that are labelled with the target
        (for all-to-all, where every class is a target, the same as `whole`); `cover` cover samples over all samples.
        """
        payload = int(self.payload.sum())
        return poison_rates(self.data.labels, payload, int(self.poisoned.sum()) - payload, self.goal)

    def as_stored(self) -> "PoisonedDataset":
        """The same with every pixel rounded to one of the 256 levels that a picture file holds."""
        images = (self.data.images * _LEVELS).round() / _LEVELS
        return replace(self, data=replace(self.data, images=images))

    def describe(self) -> dict[str, Any]:
        """What was done, as JSON can hold it.

        `poisoned` and `poison_rate` are of the payload, without cover samples; `poison_rates` are all of `rates`.
        """
        rates = self.rates()
        return {
            **self.trigger.describe(),
            "goal": self.goal.model_dump(),
            "poisoned": int(self.payload.sum()),
            "poison_rate": rates["whole"],
            "poison_rates": rates,
        }


def poison_rates(labels: Tensor, payload: int, cover: int, goal: Goal) -> dict[str, float]:
    """`PoisonedDataset.rates`, from the labels after poisoning and the numbers of samples changed."""
    labelled = len(labels) if isinstance(goal, AllToAll) else int(labels.eq(goal.target).sum())
    return {"whole": payload / len(labels), "target_class": payload / labelled, "cover": cover / len(labels)}


def draw_samples(eligible: Tensor, count: int, purpose: str, seed: int) -> Tensor:
    """Indices of `count` of the eligible samples (boolean `[N]`), drawn by the seed for this purpose.

    Raises:
        RecipeError: there are fewer.
    """
    places = eligible.nonzero().flatten()
    if len(places) < count:
        raise RecipeError(f"{count} {purpose} samples are asked for, but only {len(places)} are eligible")
    return places[torch.randperm(len(places), generator=torch_generator(seed, purpose))[:count]]


def marked(places: Tensor, count: int) -> Tensor:
    """Boolean `[count]`, true at these places."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[places] = True
    return mask
