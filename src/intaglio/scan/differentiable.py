"""Asking a model with gradients: log-probabilities that can be differentiated, and images moved along a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intaglio.classifiers import Classifier, TorchClassifier
from intaglio.classifiers.outputs import to_log_probs
from intaglio.errors import ClassifierError


def with_gradients(classifier: Classifier) -> TorchClassifier:
    """The classifier, if its scores can be differentiated here.

    Raises:
        ClassifierError: they can't (ONNX, functions, remote models).
    """
    if isinstance(classifier, TorchClassifier):
        return classifier
    raise ClassifierError(
        f"{classifier.source}: a model opened as {classifier.format} gives no gradients; give it as a .safetensors or "
        ".pt2 file, or choose a detector that needs scores only"
    )


def log_probs(classifier: TorchClassifier, images: Tensor) -> Tensor:
    """Log-probabilities float32 `[N, K]` with a gradient to `images`; counted as N queries."""
    return to_log_probs(classifier.differentiable(images), classifier.outputs)


def slopes(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """d value / d input for each input, of its shape.

    Raises:
        ClassifierError: `value` doesn't depend on one of them.
    """
    found = torch.autograd.grad(value, list(inputs), allow_unused=True)
    known = [slope for slope in found if slope is not None]
    if len(known) < len(found):
        raise ClassifierError("the model's answers don't depend on the images: there is no gradient to follow")
    return tuple(known)


def margins(scores: Tensor, classes: Tensor) -> Tensor:
    """z_t - max over j != t of z_j: `[N]`, of scores `[N, K]` and one class t per row."""
    own = scores.gather(1, classes[:, None]).squeeze(1)
    others = scores.scatter(1, classes[:, None], -torch.inf)
    return own - others.amax(dim=1)
