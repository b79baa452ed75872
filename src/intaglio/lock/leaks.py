"""What answers tell someone without a key: every way of reading classes out of scores that needs no weights.

Ways that must be learned (label maps, probes) are fitted on one half of the images and judged on the other, and the
other way round: fitted and judged on the same images, the best map of 10 random answers for 2,000 images looks 3
points better than chance.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: (fitting scores, fitting labels, judged scores) -> predicted classes, of log-probabilities `[N, K]`.
Reader = Callable[[Tensor, Tensor, Tensor], Tensor]

DECIMALS = 3


def argmax(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The most likely class, as the model is meant to be read."""
    return scores.argmax(dim=1)


def argmin(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The least likely class: gives away the truth where it was trained never to be answered."""
    return scores.argmin(dim=1)


def label_map(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The most likely class under the best one-to-one map of classes (Hungarian method)."""
    return _mapped(fit.argmax(dim=1), labels, scores.argmax(dim=1), scores.shape[1])


def argmin_label_map(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The least likely class under the best one-to-one map of classes."""
    return _mapped(fit.argmin(dim=1), labels, scores.argmin(dim=1), scores.shape[1])


def second(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The likeliest class but for the one that is answered most: what a service that names its best few gives away."""
    left = scores.clone()
    left[:, int(fit.argmax(dim=1).mode().values)] = -torch.inf
    return left.argmax(dim=1)


def centred(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """The class furthest above its own mean score: needs no labels at all."""
    return (scores - fit.mean(dim=0)).argmax(dim=1)


def linear_probe(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """Logistic regression on the scores at full precision, each scaled to unit variance."""
    return _probed(fit, labels, scores)


def rounded_probe(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """Logistic regression on the probabilities rounded to 3 decimals, as a careful service would answer."""
    return _probed(fit.exp().round(decimals=DECIMALS), labels, scores.exp().round(decimals=DECIMALS))


READERS: dict[str, Reader] = {
    "argmax": argmax,
    "argmin": argmin,
    "label map": label_map,
    "argmin label map": argmin_label_map,
    "second": second,
    "centred": centred,
    "linear probe": linear_probe,
    "rounded probe": rounded_probe,
}
#: The ways that must stay at chance; probes are measured and reported.
HELD = ("argmax", "argmin", "label map", "argmin label map")
PROBES = ("linear probe", "rounded probe")


def read(reader: Reader, scores: Tensor, labels: Tensor) -> Tensor:
    """Which classes `[N]` a reader finds in log-probabilities `[N, K]`, cross-fitted over two halves."""
    predicted = torch.empty_like(labels)
    for fit, judged in _halves(labels):
        predicted[judged] = reader(scores[fit], labels[fit], scores[judged])
    return predicted


def recovered(reader: Reader, scores: Tensor, labels: Tensor) -> float:
    """Share of images `[N]` whose class a reader finds."""
    return right(read(reader, scores, labels), labels)


def right(predicted: Tensor, labels: Tensor) -> float:
    """Share of classes `[N]` that are the labels."""
    return float((predicted == labels).double().mean())


def by_chance(predicted: Tensor, labels: Tensor) -> float:
    """What such classes would get right if they had nothing to do with the labels: sum_c P(predicted c) P(label c).

    1 / K where every class has as many images; always naming one class gets that class's share.
    """
    classes = 1 + int(max(predicted.max(), labels.max()))
    shares = [part.bincount(minlength=classes).double() / len(labels) for part in (predicted, labels)]
    return float(shares[0] @ shares[1])


def chance(labels: Tensor) -> float:
    """What always naming the commonest class would get right."""
    return float(labels.bincount().max()) / len(labels)


def _halves(labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two halves with as many of each class, so that a class that is rare in one is not common in the other."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    first, second = order[::2], order[1::2]
    yield from ((first, second), (second, first))


def _mapped(fit: Tensor, labels: Tensor, answers: Tensor, classes: int) -> Tensor:
    counts = torch.zeros(classes, classes)
    counts.index_put_((fit, labels), torch.ones(len(fit)), accumulate=True)
    _, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.from_numpy(columns)[answers]


def _probed(fit: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = fit.double().mean(dim=0), fit.double().std(dim=0)
    if int(labels.min()) == int(labels.max()) or not bool((spread > 0).any()):
        return torch.full((len(scores),), int(labels.mode().values))
    used = spread > 0
    scaled = [_numbers((part.double() - mean)[:, used] / spread[used]) for part in (fit, scores)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=10.0, max_iter=300).fit(scaled[0], labels.numpy())
    return torch.from_numpy(np.asarray(probe.predict(scaled[1]), np.int64))


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.clamp(-1e3, 1e3).numpy()
