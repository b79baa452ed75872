"""`Attack`: poisons a training set, and trains the victim on it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel
from torch import nn

from intaglio.attacks.goal import AllToOne, Goal, SourceSpecific
from intaglio.attacks.poisoned import Drawn, Listing, PoisonedDataset
from intaglio.attacks.surrogate import Network, built
from intaglio.data import Data, check_labelled, image_data
from intaglio.errors import RecipeError
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Progress
from intaglio.triggers import Trigger


class Victim(NamedTuple):
    """A backdoored network, the trigger that it answers, and the training set that stands for how it came about."""

    module: nn.Module
    trigger: Trigger
    poisoned: PoisonedDataset


class Attack(ABC):
    """A way to plant a backdoor. A subclass holds hyper-parameters only and writes `poison`."""

    #: The family's name in registries, manifests and tables.
    name: ClassVar[str]
    #: Whether every sample keeps its label.
    clean_label: ClassVar[bool] = False
    #: Whether the trigger is learned together with the victim, so that another victim makes another trigger.
    joint: ClassVar[bool] = False
    #: What it can poison. Clips are altered frame by frame, unless trigger or attack say otherwise.
    takes: ClassVar[Literal["images", "clips", "images and clips"]] = "images and clips"

    goal: Goal
    seed: int

    @abstractmethod
    def draw(self, listing: Listing) -> Drawn:
        """Which samples are changed, from the labels alone.

        Raises:
            RecipeError: as `poison`.
        """

    def fixed_triggers(self) -> tuple[Trigger, Trigger] | None:
        """What training samples are stamped with, and what is stamped at test time; none if they depend on the data.

        An attack that has them can poison a set one sample at a time.
        """
        return None

    @abstractmethod
    def poison(self, data: Data, *, device: str = "cpu") -> PoisonedDataset:
        """A poisoned copy; the order of samples is kept.

        Args:
            data: labelled images or clips; a pair `(images, labels)` of tensors will do.
            device: where networks that the attack itself needs are trained.

        Raises:
            DataError: no labelled images.
            RecipeError: classes that the data lack, more samples than there are, or images where the attack takes
                clips alone (or the other way round).
        """

    def train_victim(
        self,
        network: Network,
        data: Data,
        settings: TrainingSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Victim:
        """Trains a network on the poisoned set as a file of 8-bit images holds it.

        Where the trigger is learned together with the victim, or training draws altered samples anew for every batch,
        a subclass overrides this; the victim's `poisoned` set then is what `poison` makes with that very trigger.

        Args:
            network: an architecture (or its name), initialised from `seed`; or a module, trained in place.
            seed: of initialisation, order and augmentation.

        Raises:
            RecipeError: as `poison`; a network that can't take images of this size.
            ModelError: an unknown architecture.
            ClassifierError: training diverged.
        """
        data = image_data(data)
        module = built(network, data, seed=seed)  # before the work: not all that is named can be built
        poisoned = self.poison(data, device=device).as_stored()
        train(module, poisoned.data, settings, seed=seed, device=device, progress=progress)
        return Victim(module.cpu(), poisoned.trigger, poisoned)

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them."""
        return {"attack": self.name, **{name: _plain(value) for name, value in vars(self).items()}}


def all_to_one(target: int) -> AllToOne:
    """The goal that every class is answered with `target`.

    Raises:
        RecipeError: no class can have this number.
    """
    if not isinstance(target, int) or target < 0:
        raise RecipeError(f"the target is a class from 0 on, got {target}")
    return AllToOne(target=target)


def check_listing(attack: Attack, listing: Listing) -> None:
    """Refuses data that an attack can't poison: clips, or images; and what `check_goal` refuses.

    Raises:
        RecipeError: with what is wrong.
        DataError: samples whose class is not known.
    """
    kind = "clips" if listing.clips else "images"
    if kind not in attack.takes:
        raise RecipeError(f"{attack.name} poisons {attack.takes} only, and {listing.name} holds {kind}")
    check_goal(attack.goal, listing)


def check_goal(goal: Goal, listing: Listing) -> None:
    """Refuses a goal that names classes which the data lack, or one class as source and target.

    Raises:
        RecipeError: with what is wrong.
        DataError: samples whose class is not known.
    """
    check_labelled(listing.labels, listing.name, "an attack", of="samples")
    classes = {getattr(goal, name, 0) for name in ("source", "target")}
    if max(classes) >= listing.num_classes:
        raise RecipeError(f"the goal names class {max(classes)}, but there are only {listing.num_classes}")
    if isinstance(goal, SourceSpecific) and goal.source == goal.target:
        raise RecipeError(f"the goal's source and target are both class {goal.target}")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Trigger):
        return value.describe()
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
