"""Activation Clustering: the poisoned and the honest images of a class form two clusters (Chen et al. 2018)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import RecipeError
from intaglio.scan.detector import Request
from intaglio.scan.filtering import large_classes, principal_axes, seen_by_others, training_features
from intaglio.scan.score_detector import Measured, ScoreDetector

#: A silhouette compares every pair of samples; so many of a class are enough for two decimals.
_COMPARED = 1000
_TINY = 1e-12


class Clusters(NamedTuple):
    """Two clusters within each class; classes that are too small have silhouette and share 0.

    `suspicions` float64 `[N]` in [-1, 1], `silhouettes` `[K]`, and `shares` `[K]`: that of the suspicious cluster.
    """

    suspicions: Tensor
    silhouettes: Tensor
    shares: Tensor


class ActivationClustering(ScoreDetector):
    """Looks for a class of the training set whose features fall into two clusters.

    The penultimate features of each class (in units of the other classes' spread) are reduced to `components`
    principal ones and parted by 2-means; the score is the largest mean silhouette of a class.

    While it was designed, on 20 clean and 20 backdoored Fashion-MNIST models (all-to-one): clusters of ten principal
    components of the bare features hold the poison, but clean classes fall into two as readily, so that neither
    silhouette nor relative size told the models apart (AUROC 0.49 to 0.60); in units of the other classes' spread the
    silhouette did.

    Args:
        components: 1 or more.

    Raises:
        RecipeError: fewer.

    Source: Chen et al. 2018, "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering".
    """

    name = "activation-clustering"
    requires = Access.WEIGHTS
    needs = ("training",)

    def __init__(self, *, components: int = 2, calibration: Path | None = None) -> None:
        super().__init__(calibration=calibration)
        if not isinstance(components, int) or components < 1:
            raise RecipeError(f"clusters are sought along at least one component, got {components}")
        self.components = components

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        features, labels = training_features(classifier, request, self.name)
        found = cluster(features, labels, classifier.num_classes, components=self.components)
        best = int(found.silhouettes.argmax())
        return Measured(
            score=float(found.silhouettes[best]),
            suspicions=found.silhouettes,
            details={"suspicious_share": float(found.shares[best])},
        )


def suspicion_of_samples(features: Tensor, labels: Tensor, *, components: int = 2) -> Tensor:
    """How surely each sample lies in a suspicious cluster, float64 `[N]` in [-1, 1]: positive inside, negative outside.

    The class's silhouette times (d - d') / max(d, d'), d and d' being the distances to the centres of the honest and of
    the suspicious cluster. The suspicious one is that of the heavier tail: the smaller one where there is one (the
    paper's choice), but also told where half of a class is poisoned.

    Args:
        features: `[N, D]`, penultimate.
        labels: int64 `[N]`, as trained on.

    Raises:
        DataError: fewer than two classes with enough samples.
    """
    return cluster(features, labels, int(labels.max()) + 1, components=components).suspicions


def cluster(features: Tensor, labels: Tensor, num_classes: int, *, components: int = 2) -> Clusters:
    """The two clusters of every class; the order of samples makes no difference.

    Raises:
        DataError: fewer than two classes with enough samples.
    """
    seen = seen_by_others(features, labels)
    found = Clusters(
        torch.zeros(len(labels), dtype=torch.float64),
        torch.zeros(num_classes, dtype=torch.float64),
        torch.zeros(num_classes, dtype=torch.float64),
    )
    for label in large_classes(labels):
        along, _ = principal_axes(seen[labels == label], components)
        centres = _two_means(along)
        if centres is None:  # all samples alike
            continue
        honest, suspicious = (torch.linalg.vector_norm(along - centre, dim=1) for centre in centres)
        inside = suspicious < honest
        silhouette = _silhouette(along, inside)
        margin = (honest - suspicious) / torch.maximum(honest, suspicious).clamp_min(_TINY)
        found.suspicions[labels == label] = max(silhouette, 0.0) * margin
        found.silhouettes[label] = silhouette
        found.shares[label] = inside.double().mean()
    return found


def _two_means(points: Tensor) -> Tensor | None:
    """The two centres `[2, d]`, the suspicious one second; None where all points are the same.

    Lloyd's algorithm from the halves along each axis in turn, the tightest result of all: no chance, no order.
    """
    best = None
    for axis in points.T:
        upper = axis > axis.median()
        if not bool(upper.any()):
            continue
        start = np.stack([points[~upper].mean(dim=0).numpy(), points[upper].mean(dim=0).numpy()])
        fitted = KMeans(2, init=start, n_init=1, random_state=0).fit(points.numpy())
        if best is None or fitted.inertia_ < best.inertia_ * (1 - 1e-9):
            best = fitted
    if best is None:
        return None
    centres = torch.from_numpy(best.cluster_centers_)
    along = points @ (centres[1] - centres[0])
    return centres if float((along - along.mean()).pow(3).sum()) >= 0 else centres.flip(0)


def _silhouette(points: Tensor, inside: Tensor) -> float:
    """Mean silhouette; of many points, of so many evenly chosen along the first axis: always the same ones."""
    if len(points) > _COMPARED:
        order = points[:, 0].argsort()[torch.linspace(0, len(points) - 1, _COMPARED).long()]
        points, inside = points[order], inside[order]
    if inside.all() or not inside.any():
        return 0.0
    return float(silhouette_score(points.numpy(), inside.numpy()))
