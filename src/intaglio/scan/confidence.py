"""Which clean models a model is ranked among: those whose answers are about as sure as its own.

A network that was trained for longer is surer of its answers, and many detectors find it more suspicious, although
nothing was planted. So a score is ranked among the nearer half of the clean models by confidence, and never fewer than
60 where there are as many:

    confidence = mean over clean images of log(p_top / (1 - p_top))

A planted backdoor changes that little; whoever scales the logits to seem surer is ranked among surer clean models,
which accuse him as well where he stands out from these.

Source: our own; ranks among like models are localised conformal p-values (Guan 2023, "Localized conformal prediction").
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import DataError
from intaglio.scan.detector import Request
from intaglio.scan.images import clean_sample

#: A model is ranked among no fewer clean models, if there are as many.
LEAST = 60
#: Of an image on which nothing but one answer is left after rounding.
_SUREST = 15.0
#: Clean images on which confidence is measured.
_IMAGES = 256


class Rank(NamedTuple):
    """A p-value, and the clean scores that it is the rank among."""

    p_value: float
    among: tuple[float, ...]


def confidence(log_probs: Tensor) -> float:
    """Mean log odds of the answers, of log-probabilities `[N, K]`."""
    top, answers = log_probs.max(dim=1)
    others = log_probs.scatter(1, answers[:, None], -torch.inf).logsumexp(dim=1)
    return float((top - others).clamp(max=_SUREST).mean())


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
    count = max(LEAST, len(values) // 2)
    groups = []
    for place in np.unique(values) if own is None else [own]:
        group = np.zeros(len(values), bool)
        group[np.argsort(np.abs(values - place), kind="stable")[:count]] = True
        groups.append(group)
    return groups


def ranked_among(count: int) -> str:
    """What a calibration's statement says of that."""
    return f"This one is ranked among the {count} of them that are about as sure of their answers."
