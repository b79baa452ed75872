"""MM-BD (Wang et al., S&P 2024): the largest margin that any input reaches, class by class. No data."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import gamma
from torch import Tensor

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.scan.detector import Request
from intaglio.scan.differentiable import log_probs, margins, slopes, with_gradients
from intaglio.scan.score_detector import Measured, ScoreDetector
from intaglio.seeds import torch_generator

#: A gamma distribution is fitted to so many margins or more.
_FITTED = 3
#: A spread of the fitted margins below this share of their median is none.
_ALIKE = 1e-3
#: The smallest p-value that a fit to so few margins is believed.
_LEAST_P = 1e-6
#: A class is done after so many steps without a larger margin.
_PATIENCE = 8
#: Smaller margins count as this one, in nats: a ratio needs them positive.
_LEAST = 0.01


class MMBD(ScoreDetector):
    """r_t = max over images x in [0, 1] of z_t(x) - max over j != t of z_j(x): a backdoor's target stands out.

    From random images, the same for all classes, signed gradient steps climb within [0, 1]; the score is
    log(largest r / median r), scale-free. The paper's own p-value, of the largest r under a gamma distribution fitted
    to all others, stands where no clean models are known; it takes the largest of K for a fresh draw and so alarms
    more often than it says. The rule of the steps is this package's: the paper's are plain gradient steps.

    Args:
        starts: random images per class.
        steps: of the ascent, at most.
        rate: of the first step, in pixel values; it falls to 0 in a line.
        change: relative growth of a margin that counts as none.
        calibration: folder of clean scores of your own.

    Raises (when inspecting):
        ClassifierError: no gradients, or answers that are not finite.
    """

    name = "mm-bd"
    requires = Access.GRADIENTS

    def __init__(
        self,
        *,
        starts: int = 30,
        steps: int = 60,
        rate: float = 0.1,
        change: float = 1e-5,
        calibration: Path | None = None,
    ) -> None:
        super().__init__(calibration=calibration)
        self.starts = starts
        self.steps = steps
        self.rate = rate
        self.change = change

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        model = with_gradients(classifier)
        generator = torch_generator(request.seed, self.name)
        starts = torch.rand(self.starts, *model.input_shape, generator=generator).to(model.device)
        largest = torch.empty(model.num_classes)
        together = max(1, 2 * model.batch_size // self.starts)
        for group in torch.split(torch.arange(model.num_classes, device=model.device), together):
            largest[group.cpu()] = self.climb(model, starts, group).cpu()
            if request.progress is not None:
                request.progress(int(group[-1]) + 1, model.num_classes)
        suspicions = outlying_ratio(largest)
        return Measured(
            score=float(suspicions.max()),
            suspicions=suspicions,
            p_value=null_p_value(largest.double().numpy()),
            details={"margins": largest.tolist()},
        )

    def climb(self, classifier: TorchClassifier, starts: Tensor, group: Tensor) -> Tensor:
        """The largest margin that each class of the group reaches from the starts `[S, C, H, W]`, all at once."""
        images = starts.expand(len(group), *starts.shape).clone()
        best = torch.full((len(group),), -torch.inf, device=starts.device)
        idle = torch.zeros_like(group)
        for step in range(self.steps):
            active = (idle < _PATIENCE).nonzero().flatten()
            if not len(active):
                break
            with torch.enable_grad():
                current = images[active].requires_grad_()
                wanted = group[active].repeat_interleave(len(starts))
                reached = margins(log_probs(classifier, current.flatten(0, 1)), wanted)
                (slope,) = slopes(reached.sum(), [current])
            top = reached.detach().view(len(active), -1).amax(dim=1)
            before = best[active]
            grown = before.isinf() | (top > before + self.change * before.abs())
            idle[active] = torch.where(grown, 0, idle[active] + 1)
            best[active] = torch.maximum(top, before)
            images[active] = (current.detach() + self.rate * (1 - step / self.steps) * slope.sign()).clamp_(0, 1)
        return best


def outlying_ratio(largest: Tensor) -> Tensor:
    """How many times larger than the median each of the margins `[K]` is, as a logarithm."""
    sizes = largest.clamp_min(_LEAST).log()
    return sizes - sizes.quantile(0.5)


def null_p_value(largest: NDArray[np.float64]) -> float | None:
    """p = 1 - F(r_max)^K, with the gamma distribution F fitted to all margins `[K]` but the largest; 1e-6 at least.

    None where it can't be fitted, or the fit says nothing: fewer than 4 classes, a margin that is not positive, or
    margins so alike (a standard deviation below 0.001 of their median) that the next digit would be an outlier: those
    of a saturated softmax are. The floor is there because a few margins say nothing of F's tail that far out, and
    because no test has a p-value of 0.
    """
    rest = np.sort(largest)[:-1]
    if len(rest) < _FITTED or rest[0] <= 0 or rest.std() < _ALIKE * np.median(rest):
        return None
    try:
        shape, _, scale = gamma.fit(rest, floc=0)
    except (ValueError, RuntimeError):  # what scipy raises where its search finds no fit
        return None
    p_value = float(-np.expm1(len(largest) * np.log1p(-gamma.sf(largest.max(), shape, scale=scale))))
    return max(p_value, _LEAST_P) if np.isfinite(p_value) else None
