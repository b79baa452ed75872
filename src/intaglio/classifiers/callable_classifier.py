"""Any function as a classifier: a remote model, another framework, or a toy."""

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from intaglio.classifiers.access import Access
from intaglio.classifiers.base import Classifier, Options
from intaglio.errors import ClassifierError


class CallableClassifier(Classifier):
    """Asks a function: float32 `[N, *input_shape]` in [0, 1] (then preprocessed) to scores `[N, K]`.

    The answer may be a tensor, a NumPy array or nested lists. With `access=Access.LABELS` it is integer labels `[N]`,
    and only `predict` is offered. What the function raises itself is passed on unchanged; it isn't called until the
    first question.

    Raises:
        ClassifierError: an access above SCORES, for a function shows neither gradients nor weights.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        access: Access = Access.SCORES,
        **options: Unpack[Options],
    ) -> None:
        if access > Access.SCORES:
            raise ClassifierError(f"a function offers LABELS or SCORES, not {access.name}: use TorchClassifier")
        super().__init__(input_shape=input_shape, num_classes=num_classes, access=access, format="callable", **options)
        self._function = function

    def _forward(self, batch: Tensor) -> Tensor:
        answer = self._function(batch)
        try:
            return torch.as_tensor(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ClassifierError(f"{self.source}: the answer ({type(answer).__name__}) is not an array") from error
