"""What the filters of training sets and inputs share: features of labelled images, and which samples to remove."""

import math
from collections import Counter

import torch
from torch import Tensor

from intaglio.classifiers import Classifier, TorchClassifier
from intaglio.data import ImageData, check_labelled
from intaglio.errors import ClassifierError, DataError, ModelError, RecipeError
from intaglio.networks.final_linear import final_linear, penultimate
from intaglio.scan.detector import Request

MIN_SAMPLES = 10
_SMOOTHING = 0.1
_TINY = 1e-12


def samples_to_remove(scores: Tensor, share: float, groups: Tensor | None = None) -> Tensor:
    """Boolean mask `[N]` of the ceil(share n) most suspicious of n samples; with `groups` `[N]`, of each group's.

    Of equal scores the earlier sample goes first.

    Raises:
        RecipeError: a share outside [0, 1].
        DataError: scores `[N]` that are not finite, or groups of another length.
    """
    if not 0 <= share <= 1:
        raise RecipeError(f"the share of samples to remove lies in [0, 1], got {share}")
    if scores.ndim != 1 or not bool(torch.isfinite(scores).all()):
        raise DataError(f"expected finite scores [N], got {list(scores.shape)} or values that are not finite")
    groups = torch.zeros(len(scores), dtype=torch.int64) if groups is None else groups
    if groups.shape != scores.shape:
        raise DataError(f"{len(scores)} scores, but groups {list(groups.shape)}")
    mask = torch.zeros(len(scores), dtype=torch.bool)
    for group in sorted(set(groups.tolist())):
        members = (groups == group).nonzero().flatten()
        order = scores[members].argsort(descending=True, stable=True)
        # 0.29 * 100 is 28.999999999999996: what differs in the last digits is the same number
        mask[members[order[: math.ceil(round(share * len(members), 9))]]] = True
    return mask


def training_features(classifier: Classifier, request: Request, name: str) -> tuple[Tensor, Tensor]:
    """Penultimate features float32 `[N, D]` of the request's training images, and their labels int64 `[N]`.

    Raises:
        DataError: there are none, they have other shapes or classes than the model, or some have no label.
        ClassifierError: the model shows no layers.
        ModelError: it ends in no linear layer.
    """
    training = request.training
    if training is None:
        raise DataError(
            f"{name} looks for poison among the images that the model was trained on: give them, with their labels "
            "(--training, or training=ImageData(...))"
        )
    check_labels(training, classifier)
    return features_of(classifier, training.images), training.labels


def check_labels(data: ImageData, classifier: Classifier) -> None:
    """Refuses images that are not of the model's shape, or that it has no class for.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    if tuple(data.input_shape) != classifier.input_shape:
        raise DataError(f"{data.name}: images are {data.input_shape}, but the model takes {classifier.input_shape}")
    check_labelled(data.labels, data.name, "a filter")
    if (high := int(data.labels.max())) >= classifier.num_classes:
        raise DataError(f"{data.name}: labels go up to {high}, but the model has {classifier.num_classes} classes")


def features_of(classifier: Classifier, images: Tensor) -> Tensor:
    """What the final linear layer is given for each image, float32 `[N, D]` on the CPU; counted as N queries.

    Raises:
        ClassifierError: the classifier has no module to look into.
        ModelError: it ends in no linear layer, or calls that layer several times an image.
    """
    if not isinstance(classifier, TorchClassifier):
        raise ClassifierError(f"{classifier.source}: its features can't be seen, for it is no torch module")
    example = classifier.preprocessing.apply(images[:2]).to(classifier.device)
    layer = final_linear(classifier.module, example)
    with penultimate(classifier.module, layer) as parts:
        classifier.scores(images)
    if len(parts) != math.ceil(len(images) / classifier.batch_size):
        raise ModelError(f"{classifier.source}: layer '{layer}' is called more than once for an image")
    return torch.cat([part.flatten(1).float().cpu() for part in parts])[: len(images)]  # the last batch may be padded


def seen_by_others(features: Tensor, labels: Tensor) -> Tensor:
    """Centred features of each class in units of how the other classes' features spread, float64 `[N, D]`.

    x_i = L_k^-1 (f_i - mean_k), where L_k L_k' is the mean within-class covariance of all classes but k, plus a tenth
    of the mean variance, of all classes, on the diagonal. Within a clean class these are about as round as any; where
    some images of a class carry a trigger, they lie along a direction in which no other class varies, for none of
    theirs carry it. Classes of fewer than `MIN_SAMPLES` are left at 0.

    Whitening against what is clean is the idea of Hayase et al. 2021, "SPECTRE"; to take the other classes for it is
    of our own making.

    Raises:
        DataError: fewer than two classes with `MIN_SAMPLES` samples, or features that are not finite `[N, D]`.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not bool(torch.isfinite(features).all()):
        raise DataError(
            f"expected finite features [N, D] with N labels, got {list(features.shape)} and {list(labels.shape)}"
        )
    features = features.double()
    classes = large_classes(labels)
    if len(classes) < 2:
        raise DataError(f"poison is told by comparing classes: at least two need {MIN_SAMPLES} images, got {classes}")
    total = torch.stack([_covariance(features[labels == label]) for label in classes]).sum(dim=0)
    floor = _SMOOTHING * (total.diagonal().mean() / len(classes)).clamp_min(_TINY)
    seen = torch.zeros_like(features)
    for label in classes:
        mine = features[labels == label]
        others = (total - _covariance(mine)) / (len(classes) - 1)
        root = torch.linalg.cholesky(others + floor * torch.eye(features.shape[1], dtype=features.dtype))
        seen[labels == label] = torch.linalg.solve_triangular(root, (mine - mine.mean(dim=0)).T, upper=False).T
    return seen


def large_classes(labels: Tensor) -> list[int]:
    """The classes with at least `MIN_SAMPLES` samples: of fewer no spread can be told."""
    counts = Counter(labels.tolist())
    return sorted(label for label, count in counts.items() if count >= MIN_SAMPLES)


def principal_axes(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Coordinates `[n, count]` along the directions of largest variance, and these variances; largest first.

    Each axis points to its heavier tail (skewness >= 0): a poisoned minority lies at its far end.
    """
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    count = min(count, axes.shape[1])
    along = centred @ axes.flip(1)[:, :count]
    along = along * torch.where(along.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    return along, variances.flip(0)[:count].clamp_min(0)


def _covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(dim=0)
    return centred.T @ centred / len(features)
