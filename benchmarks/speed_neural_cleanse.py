"""Neural Cleanse with all classes in one batch against the loop over classes that others write: same work, same masks.

    python -m benchmarks.speed_neural_cleanse [--areas N]

In one process, on one thread, the two by turns; networks with random weights, whose masks are searched for a fixed
number of steps. With `--areas N`, instead: the AUROC over N clean and N backdoored models (all to one, ASR of .9 or
more) of the `fashion-virus` population of `benchmarks.populations`, by how many of the images each step sees; models
scored before are not scored again. Writes results/speed.json.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from benchmarks.populations import folder
from benchmarks.results import interval, known, record
from intaglio.classifiers import TorchClassifier, open_classifier
from intaglio.evidence.statistics import auroc
from intaglio.networks import Architecture
from intaglio.populations import model_folder
from intaglio.populations.manifest import ModelRecord
from intaglio.scan.detector import Request
from intaglio.scan.neural_cleanse import FIRST_WEIGHT, LOWERED, RAISED, NeuralCleanse, Search

Figures = dict[str, Any]

SHAPE = (1, 28, 28)
#: Network, classes, images in each step.
BARS = {10: 2.0, 43: 4.0}
CASES = (*((name, classes, 4) for classes in BARS for name in ("lenet", "vgg")), ("lenet", 10, 16), ("vgg", 10, 16))
STEPS = 10
ROUNDS = 4
#: How many of the images each step sees.
BATCHES = (4, 16)
REACHED = 0.9


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


def compare(name: str, classes: int, count: int) -> Figures:
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
        "bar": BARS[classes],
        # Adam makes whole steps of slopes that differ by rounding alone: single pixels part ways, norms don't.
        "largest_difference_of_norms": float(f"{difference_of_norms(masks, expected):.2g}"),
        "share_of_pixels_that_differ": round(float(((masks - expected).abs() > 1e-3).float().mean()), 6),
        "profile": profile_of(detector, classifier, images),
    }


def difference_of_norms(masks: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the norm."""
    norms, wanted = masks.flatten(1).sum(dim=1), expected.flatten(1).sum(dim=1)
    return float(((norms - wanted).abs() / wanted.clamp_min(1)).max())


def profile_of(detector: NeuralCleanse, classifier: TorchClassifier, images: Tensor) -> dict[str, float]:
    """Where the batched search spends its time: shares of the six costliest operators."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        batched(detector, classifier, images)
    events = sorted(recorded.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in events[:6]}


def chosen(count: int) -> list[ModelRecord]:
    """Clean models and such whose backdoor works for all, in turns."""
    paths = sorted(folder("fashion-virus").glob("*/record.json"))
    records = [ModelRecord.model_validate_json(path.read_text()) for path in paths]
    clean = [entry for entry in records if not entry.backdoored]
    working = [entry for entry in records if (entry.asr or 0) >= REACHED and entry.family.endswith("/all-to-one")]
    return [entry for pair in zip(clean[:count], working[:count], strict=True) for entry in pair]


def score(entry: ModelRecord, batch: int) -> dict[str, float]:
    """A model's score and what it costs in processor time."""
    classifier = open_classifier(model_folder(folder("fashion-virus"), entry.index) / "model.safetensors")
    started = time.process_time()
    found = NeuralCleanse(batch=batch).measure(classifier, Request())
    return {"score": round(found.score, 5), "seconds": round(time.process_time() - started, 2)}


def measure_areas(count: int) -> None:
    """Records AUROC and seconds by batch over the models scored so far."""
    for batch in map(str, BATCHES):
        for entry in chosen(count):
            label = f"{entry.index}, {'backdoored' if entry.backdoored else 'clean'}"
            if label in known("speed").get("neural_cleanse_batches", {}).get(batch, {}).get("models", {}):
                continue
            scored = score(entry, int(batch))
            figures = known("speed")
            part = figures.setdefault("neural_cleanse_batches", {}).setdefault(batch, {"models": {}})
            part["models"][label] = scored
            part.update(summary(part["models"]))
            record("speed", figures)
            print(batch, {key: value for key, value in part.items() if key != "models"}, flush=True)


def summary(models: dict[str, dict[str, float]]) -> Figures:
    """AUROC and mean seconds."""
    backdoored, clean = (
        [one["score"] for label, one in models.items() if label.endswith(truth)] for truth in ("backdoored", "clean")
    )
    return {
        "backdoored": len(backdoored),
        "clean": len(clean),
        "auroc": interval(auroc(backdoored, clean)) if backdoored and clean else None,
        "seconds": round(sum(one["seconds"] for one in models.values()) / len(models), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", type=int, metavar="N", help="AUROC over N clean and N backdoored models, by batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.areas:
        measure_areas(options.areas)
        return
    compared: list[Figures] = []
    for case in CASES:
        compared.append(compare(*case))
        print(compared[-1], flush=True)
        record("speed", {**known("speed"), "neural_cleanse": compared})


if __name__ == "__main__":
    main()
