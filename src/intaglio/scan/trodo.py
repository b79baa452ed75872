"""TRODO (Mirzaei et al., NeurIPS 2024): how easily images of nothing are made to look familiar. No data."""

from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.scan.confidence import log_odds
from intaglio.scan.detector import Request
from intaglio.scan.differentiable import log_probs, slopes, with_gradients
from intaglio.scan.probes import synthetic_probes
from intaglio.scan.score_detector import Measured, ScoreDetector

#: Each step is so many times the radius divided by the number of steps.
_STRIDE = 2.5


class TRODO(ScoreDetector):
    """Mean rise of the model's confidence in out-of-distribution images, under a small perturbation that raises it.

    The images are random clouds, the same for all models of one input shape (the paper's variant without data);
    projected gradient ascent on max_k log p_k stays within `radius` of them in the maximum norm. A backdoor leaves
    directions in which confidence grows with any image.

    The score is the mean rise of log(p / (1 - p)) of the most likely class, not of p as in the paper: p saturates. On
    12 clean and 24 backdoored networks of Fashion-MNIST (ASR of .9 or more) its AUROC is .79, with p .59; with
    shuffled quarters of clean images in place of clouds .78 and .67. Suspicions are the mean probabilities of the
    classes after the ascent: a hint at the target, right for about half of these models. On models of another training
    recipe, over nine attacks, AUROC is .56 (docs/bench.md).

    Args:
        steps: of the ascent.
        radius: of the perturbation.
        calibration: folder of clean scores of your own.

    Raises (when inspecting):
        ClassifierError: no gradients, or answers that are not finite.
    """

    name = "trodo"
    requires = Access.GRADIENTS

    def __init__(self, *, steps: int = 10, radius: float = 0.05, calibration: Path | None = None) -> None:
        super().__init__(calibration=calibration)
        self.steps = steps
        self.radius = radius

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        model = with_gradients(classifier)
        probes = synthetic_probes(model.input_shape)
        rises, afterwards = [], []
        probed = torch.cat([probes.bases, probes.trials]).to(model.device)
        batches = torch.split(probed, 2 * model.batch_size)
        for number, images in enumerate(batches):
            before = log_probs(model, images).detach()
            after = log_probs(model, self.ascend(model, images)).detach()
            rises.append(log_odds(after) - log_odds(before))
            afterwards.append(after.exp())
            if request.progress is not None:
                request.progress(number + 1, len(batches))
        return Measured(score=float(torch.cat(rises).mean()), suspicions=torch.cat(afterwards).mean(dim=0).cpu())

    def ascend(self, classifier: TorchClassifier, images: Tensor) -> Tensor:
        """Images in [0, 1], within the radius of those given, that the model is more confident in."""
        low, high = (images - self.radius).clamp_min(0), (images + self.radius).clamp_max(1)
        moved = images
        for _ in range(self.steps):
            with torch.enable_grad():
                moved = moved.detach().requires_grad_()
                (slope,) = slopes(log_probs(classifier, moved).amax(dim=1).sum(), [moved])
            step = _STRIDE * self.radius / self.steps * slope.sign()
            moved = (moved.detach() + step).clamp(low, high)
        return moved
