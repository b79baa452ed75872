"""SIG (Barni et al. 2019): a sinusoid over samples of the target class, whose labels stay."""

from typing import ClassVar

from torch import Tensor

from intaglio.attacks.clean_label import CleanLabelAttack
from intaglio.data import ImageData
from intaglio.triggers import SinusoidTrigger, Trigger


class SIG(CleanLabelAttack):
    """Adds v[i, j] = delta sin(2 pi f j / W) to a share of the target class; at test time to any image.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the target class's samples, in (0, 1].
        delta: amplitude in training, in (0, 1].
        test_delta: amplitude at test time, which nobody inspects; none: the same.
        frequency: f, periods over the image's width.
        seed: draws the samples.

    Raises:
        RecipeError: a value outside its range.

    Source: Barni, Kallas & Tondi 2019, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning", sec. 3 (delta 20 / 255 and f = 6, on traffic signs; 0.3 of the class).
    """

    name: ClassVar[str] = "sig"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.3,
        delta: float = 20 / 255,
        test_delta: float | None = None,
        frequency: float = 6.0,
        seed: int = 0,
    ) -> None:
        super().__init__(target, rate=rate, seed=seed)
        self.planted = SinusoidTrigger(delta=delta, frequency=frequency, seed=seed)
        self.trigger = SinusoidTrigger(
            delta=delta if test_delta is None else test_delta, frequency=frequency, seed=seed
        )

    def fixed_triggers(self) -> tuple[Trigger, Trigger]:
        return self.planted, self.trigger

    def alter(self, images: Tensor, data: ImageData, device: str) -> tuple[Tensor, Trigger]:
        return self.planted.apply(images), self.trigger
