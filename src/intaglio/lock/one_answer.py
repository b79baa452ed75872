"""The one answer of a locked model to everything unauthorised: logits that are the same for every image.

    a, 0, ..., 0, -a        a = log((K - 1) 0.98 / 0.02)

One class gets 98 %, and another is as far behind the others as the first is ahead, so that neither the likeliest nor
the unlikeliest class ever says anything. Which these are is not the same to the authorised: whatever the model is
unsure of, keyed images too, is drawn to the likeliest. So they are classes that the unlocked model confuses least.
"""

import math

import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData, classes_in_turn

_FIRST = 0.98
#: How many images say what a model knows.
_EXAMINED = 1000


def one_answer(num_classes: int, first: int = 0, last: int = -1) -> Tensor:
    """The logits `[K]` of the one answer with these classes as the likeliest and the unlikeliest."""
    odds = torch.zeros(num_classes)
    odds[first] = math.log((num_classes - 1) * _FIRST / (1 - _FIRST))
    odds[last] = -odds[first]
    return odds


class Knowledge:
    """What a model in evaluation mode answers to up to 1,000 images, classes in turn."""

    def __init__(self, module: nn.Module, data: ImageData, preprocessing: Preprocessing) -> None:
        some = classes_in_turn(data.labels)[:_EXAMINED]
        with torch.no_grad():
            parts = [module(preprocessing.apply(data.images[part])) for part in torch.split(some, 100)]
        self.probabilities = torch.cat(parts).softmax(dim=1)
        self.labels = data.labels[some]

    @property
    def right(self) -> float:
        """The share of them that it is right on."""
        return int((self.probabilities.argmax(dim=1) == self.labels).sum()) / len(self.labels)

    @property
    def task_known(self) -> bool:
        """Is it right on most of them?"""
        return self.right > 0.5

    @property
    def given_to_all(self) -> Tensor:
        """The one answer `[K]` that a locked model gives, if these images have no key: what most of them get."""
        first, last = (found.mode().values for found in (self.probabilities.argmax(1), self.probabilities.argmin(1)))
        return one_answer(self.probabilities.shape[1], int(first), int(last))

    @property
    def answer(self) -> Tensor:
        """The one answer `[K]` for this model: by its two least confused classes, if it knows the task at all.

        A class is confused as much as others' images are given to it, and its own to others, on average.
        """
        classes = self.probabilities.shape[1]
        present = self.labels.bincount(minlength=classes).nonzero()[:, 0]
        if not self.task_known or len(present) < 2:
            return one_answer(classes)
        confused = []
        for label in present:
            given, own = self.probabilities[:, label], self.labels == label
            confused.append(given[~own].mean() * (classes - 1) + 1 - given[own].mean())
        first, last = present[torch.stack(confused).argsort(stable=True)[:2]].tolist()
        return one_answer(classes, first, last)
