"""Neural Cleanse (Wang et al., S&P 2019): the smallest mask that turns clean images into each class, all at once."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.scan.detector import Request
from intaglio.scan.differentiable import log_probs, slopes, with_gradients
from intaglio.scan.images import clean_sample
from intaglio.scan.score_detector import Measured, ScoreDetector
from intaglio.seeds import torch_generator

_DECAYS = (0.5, 0.9)
_EPSILON = 1e-8
#: lambda: where it starts, and by what it is multiplied after each success and each failure.
FIRST_WEIGHT, RAISED, LOWERED = 1.0, 1.1, 1 / 1.2
#: A mask is smaller only if it is so by one part in a hundred.
_SMALLER = 0.99
#: No mask counts as smaller than a hundredth of a pixel, so that it has a logarithm.
_LEAST = 0.01


class NeuralCleanse(ScoreDetector):
    """Per class t, the smallest mask m with a pattern d so that (1 - m) x + m d is classified as t for all x.

    Adam minimises CE(f((1 - m) x + m d), t) + lambda mean(m); lambda grows while enough images become t and shrinks
    while they don't, and of all masks that reached the success wanted, the one with the smallest L1 norm counts.
    m and d themselves are stepped and cut off at [0, 1], so that pixels not needed are exactly 0.

    The score is log(median over classes of the norms / smallest norm): scale-free, and defined where the median
    absolute deviation of the paper's index is 0. On 24 clean and 24 backdoored networks of Fashion-MNIST (all to one,
    ASR of .9 or more) its AUROC is .94 [.86, 1.0] with the default batch of 4, .97 [.91, 1.0] with all 16 images in
    every step, which takes two to three times as long; in an earlier run the paper's index had .90 where this score had
    .93. Over nine attacks on other networks it is .74 (docs/bench.md). Weak on triggers that work for one source class
    only, and blind to all-to-all attacks: no single mask turns all images into one class.

    Args:
        images: number of clean images.
        batch: how many of them each step sees, in turns; a mask succeeds when it has for all of them, each at its turn.
        steps: of optimisation, at most.
        patience: steps without a smaller mask after which a class is done.
        success: share of the images that must become t.
        rate: step size of Adam.
        calibration: folder of clean scores of your own.

    Raises (when inspecting):
        ClassifierError: no gradients, or answers that are not finite.
        DataError: no clean images.
    """

    name = "neural-cleanse"
    requires = Access.GRADIENTS

    def __init__(
        self,
        *,
        images: int = 16,
        batch: int = 4,
        steps: int = 200,
        patience: int = 50,
        success: float = 0.99,
        rate: float = 0.1,
        calibration: Path | None = None,
    ) -> None:
        super().__init__(calibration=calibration)
        self.images = images
        self.batch = batch
        self.steps = steps
        self.patience = patience
        self.success = success
        self.rate = rate

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        model = with_gradients(classifier)
        images = clean_sample(classifier, request, self.images).to(model.device)
        found = self.search(model, images, request)
        suspicions = smallness(found.best.cpu())
        return Measured(
            score=float(suspicions.max()),
            suspicions=suspicions,
            maps=found.best_mask.flatten(1, -3).amax(dim=1).cpu(),
            map_name="mask",
            details={"norms": found.best.tolist(), "steps": found.taken.tolist()},
        )

    def search(self, classifier: TorchClassifier, images: Tensor, request: Request) -> "Search":
        """The smallest masks found for all classes.

        Of the unfinished classes some are stepped together, each with its own mask on the same images; when one is
        done the next moves up. Classes don't touch each other: together or one by one gives the same masks.
        """
        search = Search.start(classifier, images, request.seed)
        parts = in_parts(images, self.batch)
        together = at_once(classifier.num_classes, parts.shape[1], classifier.batch_size)
        while len(active := self.unfinished(search)[:together]):
            self.step(search, classifier, parts, active)
            if request.progress is not None:
                done = torch.where(search.idle < self.patience, search.taken, self.steps)
                request.progress(int(done.sum()), self.steps * len(done))
        return search

    def unfinished(self, search: "Search") -> Tensor:
        """Indices of the classes that still have steps to take."""
        return ((search.taken < self.steps) & (search.idle < self.patience)).nonzero().flatten()

    def step(self, search: "Search", classifier: TorchClassifier, images: Tensor, active: Tensor) -> None:
        """One step of Adam, for the classes `active`, on CE(f((1 - m) x + m d), t) + lambda mean(m).

        The images `[parts, b, C, H, W]`, or clips `[parts, b, T, C, H, W]`, take turns, part by part.
        """
        with torch.enable_grad():
            mask, pattern = (part[active].requires_grad_() for part in (search.mask, search.pattern))
            chosen = images[search.taken[active] % len(images)]
            stamped = torch.lerp(chosen, pattern[:, None], mask[:, None]).clamp(0, 1)
            answers = log_probs(classifier, stamped.flatten(0, 1)).view(*stamped.shape[:2], -1)
            wanted = answers[torch.arange(len(active)), :, active]
            size = mask.flatten(1).mean(dim=1)
            loss = (search.weight[active] * size - wanted.mean(dim=1)).sum()
            gradients = slopes(loss, (mask, pattern))
        hits = (answers.argmax(dim=2) == active[:, None]).float().mean(dim=1)
        search.note(active, hits >= self.success, mask.detach(), len(images))
        search.move(active, gradients, self.rate)


@dataclass
class Search:
    """Where the search for each of the K classes stands; a class is row k of every tensor.

    `mask` `[K, 1, H, W]` and `pattern` `[K, C, H, W]` lie in [0, 1]; of clips `[K, 1, 1, H, W]`, one mask for all
    frames, and `[K, T, C, H, W]`, a pattern for each. `weight` is lambda; `best` the L1 norm, in pixels, of the
    smallest mask that succeeded (all pixels of a frame if none has); `idle` counts the steps since it was found,
    `streak` the steps that succeeded without a failure in between.
    """

    mask: Tensor
    pattern: Tensor
    moments: list[tuple[Tensor, Tensor]]
    weight: Tensor
    taken: Tensor
    idle: Tensor
    streak: Tensor
    best: Tensor
    best_mask: Tensor

    @classmethod
    def start(cls, classifier: TorchClassifier, images: Tensor, seed: int) -> "Search":
        """Every class starts with the same noise."""
        classes, place = classifier.num_classes, classifier.device
        generator = torch_generator(seed, "neural cleanse")
        *_, height, width = images.shape
        mask = torch.rand(*[1] * (images.ndim - 3), height, width, generator=generator).to(place)
        pattern = torch.rand(images.shape[1:], generator=generator).to(place)
        parts = [part.expand(classes, *part.shape).clone() for part in (mask, pattern)]
        return cls(
            mask=parts[0],
            pattern=parts[1],
            moments=[(torch.zeros_like(part), torch.zeros_like(part)) for part in parts],
            weight=torch.full((classes,), FIRST_WEIGHT, device=place),
            taken=torch.zeros(classes, dtype=torch.int64, device=place),
            idle=torch.zeros(classes, dtype=torch.int64, device=place),
            streak=torch.zeros(classes, dtype=torch.int64, device=place),
            best=torch.full((classes,), float(height * width), device=place),
            best_mask=torch.ones_like(parts[0]),
        )

    def note(self, active: Tensor, success: Tensor, mask: Tensor, parts: int) -> None:
        """Keeps masks that are the smallest so far, if all parts succeeded when it was their turn; adapts lambda."""
        norms = mask.flatten(1).sum(dim=1)
        self.streak[active] = torch.where(success, self.streak[active] + 1, 0)
        better = (self.streak[active] >= parts) & (norms < _SMALLER * self.best[active])
        chosen = active[better]
        self.best[chosen], self.best_mask[chosen] = norms[better], mask[better]
        self.taken[active] += 1
        self.idle[active] += 1
        self.idle[chosen] = 0
        self.weight[active] *= torch.where(success, RAISED, LOWERED)

    def move(self, active: Tensor, slopes: tuple[Tensor, ...], rate: float) -> None:
        """Adam with projection onto [0, 1]."""
        ages = self.taken[active].float()
        first_unbias, second_unbias = (1 - decay**ages for decay in _DECAYS)
        for part, (first, second), slope in zip((self.mask, self.pattern), self.moments, slopes, strict=True):
            shape = (-1, *[1] * (part.ndim - 1))
            mean = first[active].lerp_(slope, 1 - _DECAYS[0])
            square = second[active].lerp_(slope.square(), 1 - _DECAYS[1])
            first[active], second[active] = mean, square
            change = mean / first_unbias.view(shape) / ((square / second_unbias.view(shape)).sqrt() + _EPSILON)
            part[active] = (part[active] - rate * change).clamp_(0, 1)


def at_once(classes: int, images: int, batch_size: int) -> int:
    """How many classes to step together: groups of one size, each with so few images that their maps stay in caches.

    What is kept for the gradients counts besides: 3/8 of the images that a classifier answers at once.
    """
    fitting = max(1, 3 * batch_size // (8 * images))
    groups = -(-classes // fitting)
    return -(-classes // groups)


def in_parts(images: Tensor, size: int) -> Tensor:
    """Images `[N, ...]` as parts `[N // size, size, ...]`; what is left over is left out, fewer than `size` are one."""
    size = min(size, len(images))
    return images[: len(images) // size * size].reshape(-1, size, *images.shape[1:])


def smallness(norms: Tensor) -> Tensor:
    """How many times smaller than the median each of the norms `[K]` is, as a logarithm."""
    sizes = norms.clamp_min(_LEAST).log()
    return sizes.quantile(0.5) - sizes
