"""Blended (Chen et al. 2017): a faint pattern over the whole image."""

from typing import ClassVar

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.dirty_label import DirtyLabelAttack
from intaglio.triggers.blended import BlendedTrigger, BlendPattern


class Blended(DirtyLabelAttack):
    """All-to-one dirty-label poisoning with a blended pattern: x~ = (1 - alpha) x + alpha t.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set, in (0, 1].
        alpha: the pattern's weight, in (0, 1].
        pattern: what t looks like.
        seed: draws the pattern and the samples.

    Raises:
        RecipeError: a value outside its range.

    Source: Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", sec. 4.1.
    """

    name: ClassVar[str] = "blended"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.05,
        alpha: float = 0.2,
        pattern: BlendPattern = "noise",
        seed: int = 0,
    ) -> None:
        trigger = BlendedTrigger(alpha=alpha, pattern=pattern, seed=seed)
        super().__init__(trigger, all_to_one(target), rate=rate, seed=seed)
