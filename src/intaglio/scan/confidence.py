"""Which clean models a model is ranked among: those whose answers are about as sure as its own.

A network that was trained for longer is surer of its answers, and many detectors find it more suspicious, although
nothing was planted. So a score is ranked among the nearer half of the clean models by confidence, and never fewer than
60 where there are as many:

    confidence = mean over clean images of log(p_top / (1 - p_top))

A planted backdoor changes that little; whoever scales the logits to seem surer is ranked among surer clean models,
which accuse him as well where he stands out from these. An API that rounds its answers seems surer than it is, too; one
that rounds so coarsely that they are no longer told from logits seems less sure: `--outputs probabilities` says so.

A p-value among all clean models holds exactly, for a model drawn as they were; among like ones it holds nearly (in
simulations with a minority of surer, higher-scoring models 5 % become 6 to 7), but for each kind of model by itself.

Source: our own; Guan 2023, "Localized conformal prediction", has the idea, with a correction that is not made here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import DataError
from intaglio.scan.detector import Request
from intaglio.scan.images import clean_sample

#: A model is ranked among no fewer clean models, if there are as many.
LEAST = 60
#: Log odds above this count as this, such as those of an answer that was rounded to certainty.
SUREST = 15.0
#: Clean images on which confidence is measured.
_IMAGES = 256


class Rank(NamedTuple):
    """A p-value, and the clean scores that it is the rank among."""

    p_value: float
    among: tuple[float, ...]


def log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) of the most likely class: `[N]`, of log-probabilities `[N, K]`."""
    ranked = log_probs.sort(dim=1, descending=True).values
    return ranked[:, 0] - ranked[:, 1:].logsumexp(dim=1)


def confidence(log_probs: Tensor) -> float:
    """Mean log odds of the answers, of log-probabilities `[N, K]`."""
    return float(log_odds(log_probs).clamp(max=SUREST).mean())


def confidence_of(classifier: Classifier, request: Request) -> float | None:
    """A classifier's confidence on clean images; None where it gives no scores, or no images are known."""
    if classifier.access is Access.LABELS:
        return None
    try:
        images = clean_sample(classifier, request, _IMAGES)
    except DataError:
        return None
    return confidence(classifier.log_probs(images))


def alike(own: float | None, known: Sequence[float]) -> list[NDArray[np.bool_]]:
    """Masks over the clean models with these confidences: whom a model may be ranked among.

    One: the nearer half of them, at least `LEAST`. Where the model's own confidence is not known, one for every
    confidence it may have: the largest p-value counts.
    """
    values = np.asarray(known, float)
    count = min(len(values), max(LEAST, len(values) // 2))
    if own is None:  # the nearest of any confidence lie side by side
        order = np.argsort(values, kind="stable")
        nearest = [order[start : start + count] for start in range(len(values) - count + 1)]
    else:
        nearest = [np.argsort(np.abs(values - own), kind="stable")[:count]]
    return [np.isin(np.arange(len(values)), group) for group in nearest]


def ranked_among(count: int, confidence: float | None) -> str:
    """What a calibration's statement says of that."""
    if confidence is None:
        return f"How sure this one is of its answers is not known: p is the largest that {count} like ones would give."
    return f"This one is ranked among the {count} of them that are about as sure of their answers."
