"""A recipe: one YAML file from which a whole population of clean and backdoored models follows."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from intaglio.attacks import AllToAll, AllToOne, DirtyLabelAttack, Goal, SourceSpecific
from intaglio.errors import IntaglioError
from intaglio.networks import NETWORKS, Architecture
from intaglio.plugins import known_names
from intaglio.populations.reading import read_yaml
from intaglio.seeds import derive_seed, python_random
from intaglio.training.settings import Augmentation, OptimizerName, TrainingSettings
from intaglio.triggers import TRIGGERS, Trigger, trigger_named

#: Of a recipe's models: more are a slip of the pen, and even their plans fill the memory.
MAX_MODELS = 100_000
Ends = TypeVar("Ends", bound=tuple[float, float])


def _ordered(span: Ends) -> Ends:
    if span[0] > span[1]:
        raise ValueError(f"its low end {span[0]} is above its high end {span[1]}")
    return span


def _known(names: Iterable[str], kind: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"unknown {kind} '{name}'; known are {', '.join(sorted(names))}")
        return name

    return check


def _known_trigger(name: str) -> str:
    _known(known_names("trigger", TRIGGERS), "trigger")(name)
    try:
        trigger_named(name)
    except IntaglioError as error:
        raise ValueError(str(error)) from error
    return name


Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Span = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
ShareSpan = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
IntSpan = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ordered)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ArchitectureChoice(_Part):
    """A network, drawn with `weight`, its width drawn from `width`."""

    name: Annotated[str, AfterValidator(_known(NETWORKS, "architecture"))]
    width: IntSpan
    weight: float = Field(default=1.0, gt=0)


class TrainingChoice(_Part):
    """Spans and choices from which each model's training settings are drawn."""

    epochs: IntSpan = (4, 6)
    batch_size: tuple[PositiveInt, ...] = Field(default=(32,), min_length=1)
    optimizer: tuple[OptimizerName, ...] = Field(default=("adam", "adamw", "sgd"), min_length=1)
    learning_rate: dict[OptimizerName, Span] = {"adam": (2e-3, 5e-3), "adamw": (2e-3, 5e-3), "sgd": (2e-2, 6e-2)}
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.0, 1e-4), min_length=1)
    augmentation: tuple[Augmentation, ...] = Field(default=("none", "flip", "shift", "noise"), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "TrainingChoice":
        for optimizer in self.optimizer:
            if optimizer not in self.learning_rate:
                raise ValueError(f"no learning_rate is given for {optimizer}")
        return self


class AttackChoice(_Part):
    """An attack, drawn with `weight`.

    `options` are the trigger's hyper-parameters: `[low, high]` of numbers is a span to draw from, any other list a
    choice, anything else a fixed value.
    """

    trigger: Annotated[str, AfterValidator(_known_trigger)]
    goal: Literal["all-to-one", "all-to-all", "source-specific"] = "all-to-one"
    rate: ShareSpan = (0.03, 0.1)
    options: dict[str, Any] = {}
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "AttackChoice":
        candidates = {name: _candidates(name, value) for name, value in self.options.items()}
        usual = {name: values[0] for name, values in candidates.items()}
        for options in [usual, *(usual | {name: value} for name, values in candidates.items() for value in values)]:
            try:
                _make_trigger(self.trigger, options, seed=0)
            except (TypeError, IntaglioError) as error:
                raise ValueError(f"trigger {self.trigger}: {error}") from error
        return self


class Plan(_Part):
    """Everything that decides one model of a population."""

    index: int
    seed: int
    architecture: ArchitectureChoice
    width: int
    training: TrainingSettings
    attack: AttackChoice | None

    def build_architecture(self, input_shape: tuple[int, ...], num_classes: int) -> Architecture:
        """The network for this task."""
        return Architecture(
            name=self.architecture.name, input_shape=input_shape, num_classes=num_classes, width=self.width
        )

    def build_attack(self, num_classes: int) -> DirtyLabelAttack | None:
        """The attack with its trigger, goal and rate drawn; None for a clean model."""
        if self.attack is None:
            return None
        draw = python_random(self.seed, "attack")
        rate = draw.uniform(*self.attack.rate)
        goal = _draw_goal(self.attack.goal, num_classes, draw)
        return DirtyLabelAttack(_draw_trigger(self.attack, self.seed), goal, rate=rate, seed=self.seed)


class Recipe(_Part):
    """A population: how many models, which share is backdoored, and the spans all else is drawn from.

    Model i depends on `seed` and i alone, never on the order in which models are built. Backdoored models are spread
    evenly over the indices, so that any prefix of the population has the same share.
    """

    name: str
    seed: int = 0
    task: str = Field(description="a task's name; its bundled images are used unless `data` names others")
    data: str | None = Field(default=None, description="path of a data set, relative to the recipe's folder")
    samples: int | None = Field(default=None, ge=1, description="use only so many training images, classes in turn")
    models: int = Field(ge=1, le=MAX_MODELS)
    backdoored: float = Field(default=0.5, ge=0, le=1)
    architectures: tuple[ArchitectureChoice, ...] = Field(min_length=1)
    training: TrainingChoice = TrainingChoice()
    attacks: tuple[AttackChoice, ...] = ()
    _folder: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.backdoored > 0 and not self.attacks:
            raise ValueError("backdoored models are asked for, but no attacks are listed")
        return self

    @property
    def source(self) -> str:
        """Where the images come from: `data`, seen from the recipe's folder, or the task itself."""
        return str(self._folder / self.data) if self.data else self.task

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's canonical JSON, without `models`: a population may be enlarged later."""
        return hashlib.sha256(self.model_dump_json(exclude={"models"}).encode()).hexdigest()

    def plan(self, index: int) -> Plan:
        """All draws for model `index`, in 0..models-1."""
        seed = derive_seed(self.seed, self.name, index)
        draw = python_random(seed, "plan")
        architecture = draw.choices(self.architectures, [choice.weight for choice in self.architectures])[0]
        optimizer = draw.choice(self.training.optimizer)
        training = TrainingSettings(
            epochs=draw.randint(*self.training.epochs),
            batch_size=draw.choice(self.training.batch_size),
            optimizer=optimizer,
            learning_rate=draw.uniform(*self.training.learning_rate[optimizer]),
            weight_decay=draw.choice(self.training.weight_decay),
            augmentation=draw.choice(self.training.augmentation),
        )
        width = draw.randint(*architecture.width)
        share = self.backdoored
        attack = None
        if math.floor((index + 1) * share) > math.floor(index * share):
            attack = draw.choices(self.attacks, [choice.weight for choice in self.attacks])[0]
        return Plan(index=index, seed=seed, architecture=architecture, width=width, training=training, attack=attack)


def read_recipe(path: Path | str) -> Recipe:
    """Reads a recipe; a relative `data` path is resolved against the recipe's folder.

    Raises:
        RecipeError: missing, not YAML, or with a value that makes no sense (the first one is named).
    """
    recipe = read_yaml(path, Recipe)
    recipe._folder = Path(path).resolve().parent
    return recipe


def _draw_goal(kind: str, num_classes: int, draw: random.Random) -> Goal:
    target, source = draw.sample(range(num_classes), 2)
    if kind == "all-to-all":
        return AllToAll()
    if kind == "source-specific":
        return SourceSpecific(source=source, target=target)
    return AllToOne(target=target)


def _draw_trigger(attack: AttackChoice, seed: int) -> Trigger:
    draw = python_random(seed, "trigger")
    options = {name: _draw_option(value, draw) for name, value in sorted(attack.options.items())}
    return _make_trigger(attack.trigger, options, seed=derive_seed(seed, "trigger"))


def _make_trigger(name: str, options: dict[str, Any], seed: int) -> Trigger:
    make: Callable[..., Trigger] = trigger_named(name)
    return make(**options, seed=seed)


def _candidates(name: str, value: Any) -> list[Any]:
    """What `_draw_option` may draw: both ends of a span, every entry of a choice."""
    entries = value if isinstance(value, list | tuple) else [value]
    leaves = [leaf for entry in entries for leaf in (entry if isinstance(entry, list | tuple) else [entry])]
    if not leaves or not all(isinstance(leaf, str | int | float) for leaf in leaves):
        raise ValueError(f"option {name} is neither a value, nor a span [low, high], nor a list of choices")
    if isinstance(value, list | tuple) and _is_span(value) and value[0] > value[1]:
        raise ValueError(f"option {name}: its low end {value[0]} is above its high end {value[1]}")
    return [tuple(entry) if isinstance(entry, list) else entry for entry in entries]


def _is_span(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(end, int | float) for end in value)


def _draw_option(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if _is_span(value):
        low, high = value
        return draw.randint(low, high) if isinstance(low, int) and isinstance(high, int) else draw.uniform(low, high)
    choice = draw.choice(value)
    return tuple(choice) if isinstance(choice, list) else choice
