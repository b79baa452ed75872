"""`ftg`: real images pushed to where the class probabilities vary least. A baseline."""

import torch

from intaglio.classifiers import Access, Classifier
from intaglio.errors import RecipeError
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.starts import starting_levels
from intaglio.seal.surface import LEVELS, probabilities, require_module


class FineGrained(SealMethod):
    """x <- clip(x - step * sign(d Var(softmax f(x)) / dx)), from the owner's images; the answers are what f says.

    Args:
        step: in grey levels.
        steps: how often.

    Raises:
        RecipeError: a step or a count of steps that makes no sense.

    Source: fragile triggers by fine-grained gradient signs on real images (FTG), the follow-up of Yin, Yin & Zhang,
    "Neural Network Fragile Watermarking With No Model Performance Degradation", ICIP 2022.
    """

    name = "ftg"
    requires = Access.GRADIENTS

    def __init__(self, *, step: float = 1.0, steps: int = 100) -> None:
        if step <= 0 or steps < 1:
            raise RecipeError(f"a step above 0 and at least 1 step, got {step} and {steps}")
        self.step = step
        self.steps = steps

    def run(self, classifier: Classifier, request: Request) -> Triggers:
        module = require_module(classifier, self.name)
        levels = starting_levels(classifier, request, 2 * request.pairs)
        for index in range(self.steps):
            images = (levels / LEVELS).requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(probabilities(module, images).var(dim=1).sum(), images)
            levels = (levels - self.step * slope.sign()).clamp(0, LEVELS)
            if request.progress is not None:
                request.progress(index + 1, self.steps)
        levels = levels.round()
        return Triggers(levels, classifier.predict(levels / LEVELS))
