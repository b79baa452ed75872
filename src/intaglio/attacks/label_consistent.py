"""Label-consistent (Turner et al. 2019): weakened samples of the target class carry patches in their corners."""

from typing import ClassVar

from torch import Tensor

from intaglio.attacks.clean_label import CleanLabelAttack
from intaglio.attacks.surrogate import Network, trained_surrogate
from intaglio.attacks.weakening import away_from_label, weakened
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import derive_seed
from intaglio.triggers import ChainTrigger, PatchTrigger, Trigger

_STEP = 1.5


class LabelConsistent(CleanLabelAttack):
    """max CE(f(x + d), y), ||d||_inf <= epsilon, on samples of the target class; then a patch in every corner.

    The weakened samples keep their right label and are hard to learn from what they show: what is left is the patch.
    `epsilon=0` is the patch alone. f is the surrogate. (The paper's is trained adversarially; here it is not.)

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the target class's samples, in (0, 1].
        epsilon: bound of the perturbation, 0 or more, in [0, 1].
        steps: of projected gradient, each of 1.5 epsilon / steps.
        size: side of each patch of black and white pixels.
        opacity: weight of the patches, in (0, 1].
        surrogate: a network trained on the data: an architecture's name (name:width), an `Architecture`, or a trained
            module; none: a small residual network.
        seed: draws the samples, the patches and the surrogate's weights.

    Raises:
        RecipeError: a value outside its range.

    Source: Turner, Tsipras & Madry 2019, "Label-Consistent Backdoor Attacks", sec. 3 and 4.
    """

    name: ClassVar[str] = "label-consistent"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.5,
        epsilon: float = 16 / 255,
        steps: int = 100,
        size: int = 3,
        opacity: float = 1.0,
        surrogate: Network | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target, rate=rate, seed=seed)
        if not 0 <= epsilon <= 1 or steps < 1:
            raise RecipeError(f"weakening needs epsilon in [0, 1] and a step or more, got {epsilon} and {steps}")
        self.epsilon = epsilon
        self.steps = steps
        self.surrogate = surrogate
        self.size = size
        self.opacity = opacity
        PatchTrigger(size=size, opacity=opacity)  # refuses what no patch can be, now rather than after training

    def alter(self, images: Tensor, data: ImageData, device: str) -> tuple[Tensor, Trigger]:
        trigger = ChainTrigger(*corner_patches(self.size, self.opacity, self.seed, data.input_shape))
        if self.epsilon > 0:
            module = trained_surrogate(self.surrogate, data, seed=derive_seed(self.seed, "surrogate"), device=device)
            labels = data.labels.new_full((len(images),), self.goal.target)
            step = _STEP * self.epsilon / self.steps
            images = weakened(
                module, images, labels, away_from_label, epsilon=self.epsilon, step=step, steps=self.steps
            )
        return trigger.apply(images), trigger


def corner_patches(size: int, opacity: float, seed: int, shape: tuple[int, ...]) -> list[PatchTrigger]:
    """The same patch of black and white pixels in each corner of images `(C, H, W)` or of the frames of clips.

    Raises:
        RecipeError: the patches would overlap.
    """
    height, width = shape[-2:]
    if 2 * size > min(height, width):
        raise RecipeError(f"patches of {size} pixels in every corner overlap on images of {height} x {width}")
    down, right = 1 - size / height, 1 - size / width
    regions = [(top, left, top + size / height, left + size / width) for top in (0.0, down) for left in (0.0, right)]
    return [
        PatchTrigger(size=size, colour="binary", opacity=opacity, region=(a, b, min(c, 1.0), min(d, 1.0)), seed=seed)
        for a, b, c, d in regions
    ]
