"""Neural Cleanse with all classes in one batch against the loop over classes that others write: same work, same masks.

    python -m benchmarks.speed_neural_cleanse

In one process, on one thread, the two by turns; networks with random weights, whose masks are searched for a fixed
number of steps. Writes nothing: `figures()` is for a table of speeds.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from intaglio.classifiers import TorchClassifier
from intaglio.networks import Architecture
from intaglio.scan.detector import Request
from intaglio.scan.neural_cleanse import FIRST_WEIGHT, LOWERED, RAISED, NeuralCleanse, Search

SHAPE = (1, 28, 28)
#: Network, classes, images in each step.
CASES = tuple((name, classes, images) for images in (4, 16) for classes in (10, 43) for name in ("lenet", "vgg"))
STEPS = 20
ROUNDS = 3


def network(name: str, classes: int) -> TorchClassifier:
    """A network with random weights, at the default width."""
    torch.manual_seed(0)
    module = Architecture(name=name, input_shape=SHAPE, num_classes=classes).build()
    return TorchClassifier(module, input_shape=SHAPE, num_classes=classes, outputs="logits")


def loop(detector: NeuralCleanse, classifier: TorchClassifier, images: Tensor) -> Tensor:
    """Masks `[K, 1, H, W]` after `detector.steps` steps, class after class, each with an optimiser of its own."""
    noise = Search.start(classifier, images, 0)
    masks = []
    for target in range(classifier.num_classes):
        mask, pattern = noise.mask[target].clone().requires_grad_(), noise.pattern[target].clone().requires_grad_()
        optimiser = torch.optim.Adam([mask, pattern], lr=detector.rate, betas=(0.5, 0.9))
        labels = torch.full((len(images),), target)
        weight = FIRST_WEIGHT
        for _ in range(detector.steps):
            scores = classifier.differentiable(torch.lerp(images, pattern, mask).clamp(0, 1))
            loss = cross_entropy(scores, labels) + weight * mask.mean()
            mask.grad, pattern.grad = torch.autograd.grad(loss, (mask, pattern))
            weight *= RAISED if float((scores.argmax(dim=1) == target).float().mean()) >= detector.success else LOWERED
            optimiser.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
                pattern.clamp_(0, 1)
        masks.append(mask.detach())
    return torch.stack(masks)


def batched(detector: NeuralCleanse, classifier: TorchClassifier, images: Tensor) -> Tensor:
    """The same by the package's own search."""
    return detector.search(classifier, images, Request()).mask


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of processor time, which other processes don't lengthen, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def compare(name: str, classes: int, count: int) -> dict[str, Any]:
    """Both ways by turns; the smallest of the rounds' times, for a larger one was disturbed."""
    classifier, images = network(name, classes), torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    detector = NeuralCleanse(images=count, batch=count, steps=STEPS, patience=STEPS)
    together: list[float] = []
    apart: list[float] = []
    for turn in range(ROUNDS + 1):
        seconds_together, masks = timed(lambda: batched(detector, classifier, images))
        seconds_apart, expected = timed(lambda: loop(detector, classifier, images))
        if turn:  # the first round warms up
            together.append(seconds_together)
            apart.append(seconds_apart)
    return {
        "network": name,
        "classes": classes,
        "steps": STEPS,
        "images": count,
        "batched_seconds": round(min(together), 3),
        "loop_seconds": round(min(apart), 3),
        "speed_up": round(min(apart) / min(together), 2),
        "largest_difference_of_masks": float((masks - expected).abs().max()),
        "profile": profile_of(detector, classifier, images),
    }


def profile_of(detector: NeuralCleanse, classifier: TorchClassifier, images: Tensor) -> dict[str, float]:
    """Where the batched search spends its time: shares of the six costliest operators."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        batched(detector, classifier, images)
    events = sorted(recorded.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in events[:6]}


def figures() -> dict[str, Any]:
    """All cases, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"neural_cleanse": [compare(*case) for case in CASES]}
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    json.dump(figures(), sys.stdout, indent=1)
