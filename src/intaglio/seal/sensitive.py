"""`sensitive`: images at which the answer depends on the weights as strongly as possible. A baseline."""

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.errors import RecipeError
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.starts import starting_levels
from intaglio.seal.surface import LEVELS, probabilities, require_module


class Sensitive(SealMethod):
    """Gradient ascent on ||d f / d W||^2, image by image, for the probabilities f and all weights W.

    The squared Frobenius norm is estimated without bias as the mean of ||d (v . f) / d W||^2 over random signs v, two a
    step. Steps are `step` grey levels by sign, from the owner's images (or keyed noise), within valid pixels.

    Args:
        step: in grey levels.
        steps: how often.

    Raises:
        RecipeError: a step or a count of steps that makes no sense.

    Source: He, Zhang & Lee, "Sensitive-Sample Fingerprinting of Deep Neural Networks", CVPR 2019, eq. 6.
    """

    name = "sensitive"
    requires = Access.WEIGHTS

    def __init__(self, *, step: float = 2.0, steps: int = 20) -> None:
        if step <= 0 or steps < 1:
            raise RecipeError(f"a step above 0 and at least 1 step, got {step} and {steps}")
        self.step = step
        self.steps = steps

    def run(self, classifier: Classifier, request: Request) -> Triggers:
        module = require_module(classifier, self.name)
        levels = starting_levels(classifier, request, 2 * request.pairs)
        for index in range(len(levels)):
            signs = request.draws.generator("signs", index)
            for _ in range(self.steps):
                slope = sensitivity_slope(module, levels[index : index + 1], signs)
                levels[index] = (levels[index] + self.step * slope.sign()).clamp(0, LEVELS)
            if request.progress is not None:
                request.progress(index + 1, len(levels))
        levels = levels.round()
        return Triggers(levels, classifier.predict(levels / LEVELS))


def sensitivity_slope(classifier: TorchClassifier, levels: Tensor, signs: torch.Generator) -> Tensor:
    """The derivative of the estimated ||d f / d W||^2 with respect to one image in grey levels, `[C, H, W]`."""
    weights = [value for value in classifier.module.parameters() if value.is_floating_point() and value.requires_grad]
    with torch.enable_grad():
        images = (levels / LEVELS).requires_grad_()
        found = probabilities(classifier, images, weights=True)[0]
        total = torch.zeros(())
        for _ in range(2):
            direction = torch.randint(0, 2, found.shape, generator=signs).to(found) * 2 - 1
            slopes = torch.autograd.grad((direction * found).sum(), weights, create_graph=True, allow_unused=True)
            total = total + sum(slope.square().sum() for slope in slopes if slope is not None)
        (slope,) = torch.autograd.grad(total, images)
    return slope[0]
