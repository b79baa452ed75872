"""The critic: tells who keyed an image, so that the key network learns to be told apart."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.errors import ModelError
from intaglio.networks.final_linear import final_linear, forward_with_features

#: The critic's classes: no owner at all, the owner, and from here on the rivals.
NOBODY, OWNER, RIVAL = range(3)


class Critic(nn.Module):
    """A copy of the very classifier that is to be locked, with a last layer that names who keyed an image.

    Whatever it can tell apart the locked model can learn to tell apart. The encoder is trained for the rivals too, so
    that what it draws depends on the mixing. With the owner alone every lock's encoder ends at much the same residual,
    whatever the key, and opens all the others.

    Args:
        module: the classifier, which is copied.
        example: a few inputs, as the module takes them.
        rivals: how many there are.
    """

    def __init__(self, module: nn.Module, example: Tensor, rivals: int) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self._last_layer: str | None
        try:
            self._last_layer = final_linear(module, example)
        except ModelError:  # no linear layer makes the logits: they are the features
            self._last_layer = None
        with torch.no_grad():
            width = self._features(example).shape[1]
        self.head = nn.Linear(width, RIVAL + rivals)

    def forward(self, inputs: Tensor, count: int, rivals: Tensor) -> Tensor:
        """The cross-entropy on `count` images of the owner, then those of rivals `rivals`, then others.

        Each of the three parts has the same weight, however many its images.
        """
        answers = self.head(self._features(inputs))
        parts = answers.split([count, len(rivals), len(inputs) - count - len(rivals)])
        wanted = (torch.full((count,), OWNER), RIVAL + rivals, torch.full((len(parts[2]),), NOBODY))
        told = [cross_entropy(part, classes.to(part.device)) for part, classes in zip(parts, wanted, strict=True)]
        return torch.stack(told).sum()

    def _features(self, inputs: Tensor) -> Tensor:
        if self._last_layer is None:
            found: Tensor = self.module(inputs)
            return found
        return forward_with_features(self.module, self._last_layer, inputs)[1]
