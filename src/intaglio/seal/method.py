"""`SealMethod`: the frame of every way of choosing a seal's triggers. The model is asked, and never changed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.seal.draws import Draws
from intaglio.seal.executions import Execution

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What a method is given beside the classifier.

    `images`: the owner's images float32 `[N, C, H, W]` to start from, if any; `pairs`: how many pairs of triggers are
    wanted; `executions`: the ways of computing that the triggers must survive, the classifier's own first.
    """

    draws: Draws
    pairs: int
    executions: Sequence[Execution]
    images: Tensor | None = None
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class Triggers:
    """Images in whole grey levels float32 `[2 P, C, H, W]`, pair by pair, and the model's answers int64 `[2 P]`.

    `ways`: how many classes tie, or nearly so, at each trigger (2: an ordinary boundary).
    """

    levels: Tensor
    labels: Tensor
    ways: int = 2


class SealMethod(ABC):
    """A way of choosing triggers. Hyper-parameters go to `__init__`, by keyword; a subclass writes `run` alone."""

    name: ClassVar[str]
    #: The least access that the method works with.
    requires: ClassVar[Access]

    @abstractmethod
    def run(self, classifier: Classifier, request: Request) -> Triggers:
        """The triggers, `request.pairs` pairs of them if possible; the two of a pair are asked one after the other."""

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them."""
        return {"method": self.name, **vars(self)}
