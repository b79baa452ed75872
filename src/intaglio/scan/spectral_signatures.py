"""Spectral Signatures: poisoned images of a class stick out along one direction of its features (Tran et al. 2018)."""

from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.scan.detector import Request
from intaglio.scan.filtering import large_classes, principal_axes, seen_by_others, training_features
from intaglio.scan.score_detector import Measured, ScoreDetector


class SpectralSignatures(ScoreDetector):
    """Looks for a class whose features vary far more in one direction than other classes' do.

    Of every class k of the training set, centred penultimate features x_i (in units of the other classes' spread) have
    the covariance's largest eigenvalue l_k with direction v_k. The score is log(1 + l_k) - median over the other
    classes, at its largest class. `suspicion_of_samples` says which samples to remove, as the paper does.

    While it was designed, on 20 clean and 20 backdoored Fashion-MNIST models (all-to-one, about half of the target's
    images poisoned): in the paper's plain form the clean classes vary as much along their first direction as the
    poisoned one, and no statistic of it told the models apart (AUROC 0.37 to 0.63); in units of the other classes'
    spread it did.

    Source: Tran, Li & Madry 2018, "Spectral Signatures in Backdoor Attacks", algorithm 1.
    """

    name = "spectral-signatures"
    requires = Access.WEIGHTS
    needs = ("training",)

    def __init__(self, *, calibration: Path | None = None) -> None:
        super().__init__(calibration=calibration)

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        features, labels = training_features(classifier, request, self.name)
        classes, eigenvalues = top_eigenvalues(features, labels)
        suspicions = prominence(eigenvalues)
        everywhere = torch.full((classifier.num_classes,), float(suspicions.min()), dtype=torch.float64)
        everywhere[classes] = suspicions
        return Measured(score=float(suspicions.max()), suspicions=everywhere)


def suspicion_of_samples(features: Tensor, labels: Tensor) -> Tensor:
    """s_i = p_i |p_i|, p_i = x_i . v_k, float64 `[N]`: how far out each sample of class k lies along its top direction.

    The paper has p_i^2. Its sign is kept here, v_k pointing to the heavier tail, because with half of a class poisoned
    both ends lie equally far out and only one of them is poisoned. Samples of tiny classes get 0.

    Args:
        features: `[N, D]`, penultimate.
        labels: int64 `[N]`, as trained on.

    Raises:
        DataError: fewer than two classes with enough samples.
    """
    seen = seen_by_others(features, labels)
    scores = torch.zeros(len(labels), dtype=torch.float64)
    for label in large_classes(labels):
        along = principal_axes(seen[labels == label], 1)[0][:, 0]
        scores[labels == label] = along * along.abs()
    return scores


def top_eigenvalues(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that are large enough, int64 `[k]`, and each one's largest eigenvalue, float64 `[k]`.

    Raises:
        DataError: fewer than two classes with enough samples.
    """
    seen, classes = seen_by_others(features, labels), large_classes(labels)
    largest = [principal_axes(seen[labels == label], 1)[1] for label in classes]
    return torch.tensor(classes), torch.cat(largest)


def prominence(eigenvalues: Tensor) -> Tensor:
    """log(1 + l_k) - the median of that of the others, `[k]` to `[k]`; 1 is what other classes vary by."""
    logs = eigenvalues.log1p()
    others = torch.stack([torch.cat([logs[:place], logs[place + 1 :]]) for place in range(len(logs))])
    return logs - others.quantile(0.5, dim=1)
