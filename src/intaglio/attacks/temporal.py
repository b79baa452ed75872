"""Temporal (Li et al. 2023): a faint flicker of one frequency over the whole clip."""

from typing import ClassVar

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.dirty_label import DirtyLabelAttack
from intaglio.triggers.temporal import TemporalTrigger, Transform


class Temporal(DirtyLabelAttack):
    """All-to-one dirty-label poisoning of clips with one component of a transform along time raised.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set, in (0, 1].
        delta: amplitude, in (0, 1].
        frequency: of the component, 1 or more; none: half of the number of frames.
        transform: along time: discrete cosine or Fourier.
        share: of the pixels that carry it, in (0, 1].
        seed: draws pixels and samples.

    Raises:
        RecipeError: a value outside its range; for images, which have no time.

    Source: Li et al. 2023, "Temporal-Distributed Backdoor Attack Against Video Based Action Recognition".
    """

    name: ClassVar[str] = "temporal"
    takes = "clips"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.05,
        delta: float = 16 / 255,
        frequency: int | None = None,
        transform: Transform = "dct",
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        trigger = TemporalTrigger(delta=delta, frequency=frequency, transform=transform, share=share, seed=seed)
        super().__init__(trigger, all_to_one(target), rate=rate, seed=seed)
