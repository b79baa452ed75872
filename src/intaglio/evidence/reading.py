"""What a suspect's outputs to a batch of triggers are read as.

A thief's fine-tuning moves the answers to all triggers the same way, towards one class or two, and buries the mark
under what is common to all of them. Scores let it be taken off again:

    trigger i is read as argmax_k (l_ik - mean_j l_jk),  l log-probabilities

the class that it favours more than the other triggers do. Labels take no part in that, and are uniform and independent
of the images: so of a model made without the key the hits are Binomial(n, 1/K) as ever, whatever it answers, and the
p-value is exact.

A thief may serve scores that leave the class on top and bury all else: divided until they are all but equal, or with
others close behind it at random. So the classes answered are counted as well ("either-binomial"); the reading with more
hits decides, and the two share the rule's threshold (Bonferroni).

What can't be used (a score that is not finite, a class that the mark doesn't know) counts as an answer that favours no
class. Labels take no part in that either.

Source: of our own making; shifting logits by what is known of the classes is usual where those are unbalanced (logit
adjustment, Menon et al. 2021).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.classifiers.outputs import recognise, to_log_probs
from intaglio.errors import ClassifierError, RemoteError

#: Hits are counted of the classes answered ("binomial"), of centred scores where the suspect gives any
#: ("centred-binomial"), or of whichever of the two has more ("either-binomial").
Statistic = Literal["binomial", "centred-binomial", "either-binomial"]

#: How many readings of the same answers share the threshold.
READINGS: dict[Statistic, int] = {"binomial": 1, "centred-binomial": 1, "either-binomial": 2}

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


def read_suspect(suspect: Classifier, images: Tensor, statistic: Statistic, num_classes: int) -> tuple[Reading, ...]:
    """Asks for each image once, and reads the answers in every way that the statistic counts.

    A suspect of more than the mark's `num_classes` classes is read by the first ones. If a local model fails on some
    images, all are asked again, one at a time.

    Raises:
        DataError, ClassifierError: see `Classifier`; an answer that can't be used is an error only if none can.
    """
    if statistic == "binomial" or suspect.access is Access.LABELS:
        labels, used = _answers(suspect.predict, images)
        return (Reading(known_classes(labels.where(used, 0), num_classes), None),)
    scores, used = _answers(suspect.scores, images)
    centred = read_scores(scores, num_classes, used)
    if statistic == "centred-binomial":
        return (centred,)
    return Reading(known_classes(scores.argmax(dim=1).where(used, 0), num_classes), None), centred


def most_hits(readings: Sequence[Reading], labels: Tensor) -> Reading:
    """The reading with the most of these labels; the first one of equals."""
    return max(readings, key=lambda reading: int((reading.labels == labels).sum()))


def known_classes(labels: Tensor, num_classes: int) -> Tensor:
    """The same labels, but class 0 for those that the mark doesn't know."""
    return labels.where(labels < num_classes, 0)


def read_scores(scores: Tensor, num_classes: int, used: Tensor | None = None) -> Reading:
    """Reads scores `[N, K or more]` of any kind; which one is told by these scores alone: nobody has a choice.

    Args:
        used: bool `[N]`; the rows of others favour no class.
    """
    used = torch.ones(len(scores), dtype=torch.bool) if used is None else used
    usable = scores[used].double()
    near_one = ((usable.sum(dim=1) - 1).abs() < _ROUNDED_SUM).all()
    kind = "probabilities" if bool((usable >= 0).all() & near_one) else recognise(usable)
    log_probs = torch.full((len(scores), num_classes), -math.log(num_classes), dtype=torch.float64)
    log_probs[used] = to_log_probs(usable, kind)[:, :num_classes].clamp(LOWEST, 0)
    log_probs = log_probs.round(decimals=DECIMALS)
    return Reading(centred_labels(log_probs), log_probs)


def centred_labels(log_probs: Tensor) -> Tensor:
    """argmax_k (l_ik - mean_j l_jk) of log-probabilities float64 `[N, K]`: int64 `[N]`, the lowest class on ties."""
    units = np.rint(log_probs.numpy() * 10**DECIMALS).astype(np.int64)  # whole numbers, for exact sums
    possible = units[units > _IMPOSSIBLE * 10**DECIMALS]
    if len(possible):
        units = np.maximum(units, possible.min() + round(math.log(_BELOW_SMALLEST) * 10**DECIMALS))
    return torch.from_numpy((len(units) * units - units.sum(axis=0)).argmax(axis=1))


def _answers(ask: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The answers `[N]` or `[N, K]`, and bool `[N]`: which can be used; what stands for others says nothing."""
    try:
        return ask(images).detach().cpu(), torch.ones(len(images), dtype=torch.bool)
    except RemoteError:
        raise  # who doesn't answer now may do so tomorrow
    except ClassifierError:
        singly = [_answer(ask, image) for image in torch.split(images, 1)]
        usable = [answer for answer in singly if answer is not None]
        if not usable:
            raise
    answers = torch.cat([torch.zeros_like(usable[0]) if answer is None else answer for answer in singly])
    return answers, torch.tensor([answer is not None for answer in singly])


def _answer(ask: Callable[[Tensor], Tensor], image: Tensor) -> Tensor | None:
    try:
        return ask(image).detach().cpu()
    except RemoteError:
        raise
    except ClassifierError:
        return None
