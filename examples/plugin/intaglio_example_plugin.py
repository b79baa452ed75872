"""One detector, one trigger and one tampering: what `intaglio` finds by the entry points in pyproject.toml."""

import torch
from torch import Tensor, nn

from intaglio.classifiers import Access, Classifier
from intaglio.scan import Measured, Request, ScoreDetector
from intaglio.seeds import torch_generator
from intaglio.tampering import Material, Tampering
from intaglio.triggers import Trigger


class LoudestClass(ScoreDetector):
    """How much more often than any other one class is answered to images of pure noise."""

    name = "loudest-class"
    requires = Access.LABELS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        noise = torch.rand(200, *classifier.input_shape, generator=torch_generator(request.seed, self.name))
        shares = torch.bincount(classifier.predict(noise), minlength=classifier.num_classes) / len(noise)
        first, second = shares.topk(2).values.tolist()
        return Measured(score=first - second, suspicions=shares)


class BottomLine(Trigger):
    """The last row of the image in one grey, drawn by the seed."""

    name = "bottom-line"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def run(self, images: Tensor) -> Tensor:
        marked = images.clone()
        marked[:, :, -1, :] = torch.rand((), generator=torch_generator(self.seed, self.name))
        return marked


class Shrink(Tampering):
    """Every weight times `factor`.

    Args:
        factor: what the weights are multiplied by.
    """

    name = "shrink"

    def __init__(self, *, factor: float = 0.9) -> None:
        self.factor = factor

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        for parameter in module.parameters():
            parameter.detach().mul_(self.factor)
        return module
