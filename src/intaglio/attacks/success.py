"""How well a backdoor works: attack success rate and robust accuracy."""

from collections.abc import Callable

from torch import Tensor

from intaglio.attacks.goal import Goal
from intaglio.data import ImageData
from intaglio.errors import DataError
from intaglio.triggers import Trigger

Predict = Callable[[Tensor], Tensor]


def accuracy(predict: Predict, data: ImageData) -> float:
    """Share of `data` whose predicted class is its label."""
    return float((predict(data.images) == data.labels).float().mean())


def attack_success_rate(
    predict: Predict, data: ImageData, trigger: Trigger, goal: Goal, *, num_classes: int | None = None
) -> float:
    """ASR: share of triggered *affected* samples (never those of the target class) that get the wanted answer.

    Args:
        num_classes: K of the all-to-all goal, y -> (y + 1) mod K: how many classes the model has. By default, as many
            as `data` have, which is too few where they lack the last class and name none.

    Raises:
        DataError: no sample is affected by the goal.
    """
    affected = _affected(data, goal)
    wanted = goal.wanted(affected.labels, num_classes or data.num_classes)
    return float((predict(trigger.apply(affected.images)) == wanted).float().mean())


def robust_accuracy(predict: Predict, data: ImageData, trigger: Trigger, goal: Goal) -> float:
    """Share of triggered affected samples that still get their true label.

    Raises:
        DataError: no sample is affected by the goal.
    """
    affected = _affected(data, goal)
    return float((predict(trigger.apply(affected.images)) == affected.labels).float().mean())


def _affected(data: ImageData, goal: Goal) -> ImageData:
    places = goal.affected(data.labels).nonzero().flatten()
    if len(places) == 0:
        raise DataError(f"{data.name}: the goal affects none of the samples")
    return data.take(places)
