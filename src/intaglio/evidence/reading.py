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

from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.classifiers.outputs import recognise, to_log_probs

#: Hits are counted of the classes answered ("binomial"), or of centred scores, where the suspect gives any.
Statistic = Literal["binomial", "centred-binomial"]

#: Log-probabilities are rounded before they are read, so that a file of them says the same.
DECIMALS = 4
#: A probability of 0 counts as this share of the smallest that is not: servers round.
_BELOW_SMALLEST = 0.1
#: Below any log-probability but that of 0 (`to_log_probs` has -87.3 for it).
_IMPOSSIBLE = -87.0


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
    scores = suspect.scores(images).detach().cpu()
    kind = suspect.outputs if suspect.outputs_known else recognise(scores)  # without further queries
    log_probs = to_log_probs(scores, kind).double().round(decimals=DECIMALS)
    return Reading(centred_labels(log_probs), log_probs)


def centred_labels(log_probs: Tensor) -> Tensor:
    """argmax_k (l_ik - mean_j l_jk) of log-probabilities float64 `[N, K]`: int64 `[N]`."""
    possible = log_probs[log_probs > _IMPOSSIBLE]
    if len(possible):
        log_probs = log_probs.clamp_min(float(possible.min()) + math.log(_BELOW_SMALLEST))
    return (log_probs - log_probs.mean(dim=0)).argmax(dim=1)
