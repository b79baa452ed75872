"""What a suspect's outputs to a batch of triggers are read as.

A thief's fine-tuning moves the answers to all triggers the same way, towards one class or two, and buries the mark
under what is common to all of them. Scores let it be taken off again:

    trigger i is read as argmax_k (l_ik - mean_j l_jk),  l log-probabilities

the class that it favours more than the other triggers do. Labels take no part in that, and are uniform and independent
of the images: so of a model made without the key the hits are Binomial(n, 1/K) as ever, whatever it answers, and the
p-value is exact.

Source: of our own making; shifting logits by what is known of the classes is usual where those are unbalanced (logit
adjustment, Menon et al. 2021).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.classifiers.outputs import recognise, to_log_probs

#: Hits are counted of the classes answered ("binomial"), or of centred scores, where the suspect gives any.
Statistic = Literal["binomial", "centred-binomial"]

#: Log-probabilities are whole ten-thousandths before they are read: any machine reads the same out of them.
DECIMALS = 4
#: What is lower, or impossible, counts as this.
LOWEST = -1e4
#: A probability of 0 counts as this share of the smallest that is not: servers round.
_BELOW_SMALLEST = 0.1
#: Below any log-probability in single precision but that of 0 (`to_log_probs` has -87.3 for it).
_IMPOSSIBLE = -87.0
#: Rounded probabilities may miss 1 by so much.
_ROUNDED_SUM = 0.05


class Reading(NamedTuple):
    """What a suspect says to N triggers."""

    labels: Tensor  #: what each is read as, int64 [N]
    log_probs: Tensor | None  #: float64 [N, K], rounded, where scores were read


def read_suspect(suspect: Classifier, images: Tensor, statistic: Statistic) -> Reading:
    """Asks for each image once, and reads the answers.

    Raises:
        DataError, ClassifierError: see `Classifier`.
    """
    if statistic == "binomial" or suspect.access is Access.LABELS:
        return Reading(suspect.predict(images).cpu(), None)
    return read_scores(suspect.scores(images).detach().cpu())


def read_scores(scores: Tensor) -> Reading:
    """Reads scores `[N, K]` of any kind; which one is told by these scores alone, so that nobody has a choice."""
    scores = scores.double()
    near_one = ((scores.sum(dim=1) - 1).abs() < _ROUNDED_SUM).all()
    kind = "probabilities" if bool((scores >= 0).all() & near_one) else recognise(scores)
    log_probs = to_log_probs(scores, kind).clamp(LOWEST, 0).round(decimals=DECIMALS)
    return Reading(centred_labels(log_probs), log_probs)


def centred_labels(log_probs: Tensor) -> Tensor:
    """argmax_k (l_ik - mean_j l_jk) of log-probabilities float64 `[N, K]`: int64 `[N]`, the lowest class on ties."""
    units = np.rint(log_probs.numpy() * 10**DECIMALS).astype(np.int64)  # whole numbers, for exact sums
    possible = units[units > _IMPOSSIBLE * 10**DECIMALS]
    if len(possible):
        units = np.maximum(units, possible.min() + round(math.log(_BELOW_SMALLEST) * 10**DECIMALS))
    return torch.from_numpy((len(units) * units - units.sum(axis=0)).argmax(axis=1))
