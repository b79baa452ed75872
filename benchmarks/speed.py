"""How much faster the one-pixel signature is by exact locality, beside what multiply-adds allow; and fewer values.

    python -m benchmarks.speed [NAME ...] [--repeats N]

One process, one thread, the same probes both ways in turn. Networks of random weights: their speed is that of trained
ones. Whole signatures of the small networks; of large ones a fixed sample of places, all over the image, and the four
values that a scan asks: the seconds of a whole one follow in proportion. Times are of the processor: others on the
machine change them less. Writes results/speed.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.results import known, record
from intaglio.classifiers import TorchClassifier
from intaglio.networks import Architecture
from intaglio.scan.locality import Sides, local_answers, local_cost
from intaglio.scan.signature import base_images, pixel_values, places_of

Figures = dict[str, Any]


class Case(NamedTuple):
    """A network, and what of its signature is asked: `run` neighbours of each `every` rows and columns; so many values.

    Neighbours go through a network together, so a sample must have as many as a whole signature has.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    every: int
    run: int
    values: int | None
    bar: float | None


class StridedStem(nn.Module):
    """ResNet-18 as made for ImageNet: a 7x7 stem of stride 2 and a max pooling before the first stage."""

    def __init__(self) -> None:
        super().__init__()
        body = named("resnet18", (3, 224, 224))()
        body.conv1 = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        body.relu = nn.MaxPool2d(3, 2, 1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def named(name: str, shape: tuple[int, int, int], width: int | None = None) -> Callable[[], nn.Module]:
    """A factory of one of intaglio's own networks."""
    return lambda: Architecture(name=name, input_shape=shape, num_classes=10, width=width).build()


CASES: dict[str, Case] = {
    "vgg, width 12, 1x28x28": Case(named("vgg", (1, 28, 28), 12), (1, 28, 28), 1, 1, None, 3.0),
    "lenet, 1x28x28": Case(named("lenet", (1, 28, 28)), (1, 28, 28), 1, 1, None, None),
    "resnet8, 1x28x28": Case(named("resnet8", (1, 28, 28)), (1, 28, 28), 1, 1, None, None),
    "mobilenet, 3x32x32": Case(named("mobilenet", (3, 32, 32)), (3, 32, 32), 1, 1, None, None),
    "resnet18, 3x32x32": Case(named("resnet18", (3, 32, 32)), (3, 32, 32), 6, 2, 4, 1.5),
    "resnet18 (3x3 stem), 3x224x224": Case(named("resnet18", (3, 224, 224)), (3, 224, 224), 11, 1, 4, 1.8),
    "resnet18 (7x7 stem), 3x224x224": Case(StridedStem, (3, 224, 224), 5, 1, 4, 1.8),
}


def measure(case: Case, repeats: int) -> Figures:
    """Seconds both ways, their ratio with a 95 % interval, and the multiply-adds."""
    torch.manual_seed(0)
    classifier = TorchClassifier(case.build(), input_shape=case.shape, num_classes=10)
    levels = pixel_values(case.shape[0])
    values = levels if case.values is None else levels[:: len(levels) // case.values][: case.values]
    bases = base_images(case.shape, ("black", "grey") if case.every == 1 else ("grey",))
    rows, columns = (sampled(side, case) for side in places_of(case.shape))
    times: dict[str, list[float]] = {"local": [], "dense": []}
    worst = 0.0
    for _ in range(repeats):
        answers = {}
        for way, ask in (("local", by_locality), ("dense", on_whole_maps)):
            start = time.process_time()
            answers[way] = [ask(classifier, base, values, rows, columns) for base in bases]
            times[way].append(time.process_time() - start)
        worst = max(
            worst, *(float((a - b).abs().max()) for a, b in zip(answers["local"], answers["dense"], strict=True))
        )
    places = len(rows.starts) * len(columns.starts)
    size = int(rows.lengths.max()), int(columns.lengths.max())
    cost = local_cost(classifier.module, torch.zeros(1, *case.shape), places, len(values), size)
    ratio = statistics.median(times["dense"]) / statistics.median(times["local"])
    low, high = ratio_interval(times["dense"], times["local"])
    return {
        "probes": len(bases) * places * len(values),
        "repeats": repeats,
        "seconds_local": round(statistics.median(times["local"]), 4),
        "seconds_dense": round(statistics.median(times["dense"]), 4),
        "ratio": {"value": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)},
        "bar": case.bar,
        "largest_difference": float(f"{worst:.2g}"),
        "multiply_adds": {
            "local": round(cost.local),
            "dense": round(cost.dense),
            "ratio": round(cost.dense / cost.local, 3),
            "share_of_it_reached": round(ratio * cost.local / cost.dense, 3),
        },
    }


def sampled(side: Sides, case: Case) -> Sides:
    """The rows or columns that are probed: runs of neighbours, as far from one border as from the other."""
    start = (case.every - case.run) // 2
    kept = (torch.arange(len(side.starts)) - start) % case.every < case.run
    return Sides(side.starts[kept], side.lengths[kept])


def by_locality(classifier: TorchClassifier, base: Tensor, values: Tensor, rows: Sides, columns: Sides) -> Tensor:
    """Log-probabilities `[places, V, K]`."""
    answers = local_answers(classifier, base, values[:, :, None, None], rows, columns)
    assert answers is not None
    out = torch.empty(len(rows.starts) * len(columns.starts), len(values), classifier.num_classes)
    for places, log_probs in answers:
        out[places] = log_probs
    return out


def on_whole_maps(classifier: TorchClassifier, base: Tensor, values: Tensor, rows: Sides, columns: Sides) -> Tensor:
    """The same, from altered images: a part of the places at a time, as the signature does."""
    height, width = base.shape[1:]
    tall, wide = members(rows, height), members(columns, width)
    masks = (tall[:, None, :, None] & wide[None, :, None, :]).flatten(0, 1)[:, None]
    step = max(1, (64 << 20) // (base.numel() * 4 * len(values)))
    return torch.cat(
        [
            classifier.log_probs(torch.where(part[:, None], values[None, :, :, None, None], base).flatten(0, 1)).view(
                len(part), len(values), -1
            )
            for part in torch.split(masks, step)
        ]
    )


def members(side: Sides, pixels: int) -> Tensor:
    """Boolean `[cells, pixels]`."""
    offset = torch.arange(pixels) - side.starts[:, None]
    return (offset >= 0) & (offset < side.lengths[:, None])


def ratio_interval(first: list[float], second: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians; repeats are drawn in pairs."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(first), (2000, len(first)), generator=generator)
    ratios = torch.tensor(first)[picks].median(dim=1).values / torch.tensor(second)[picks].median(dim=1).values
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def values_needed() -> Figures:
    """Queries and AUROC of fewer values against 16, out of results/ablation.json: a hand-made number, grey base."""
    by_values = known("ablation").get("hand-made number by values (logit, grey)")
    if by_values is None:
        return {}
    whole = by_values["16"]["value"]
    return {
        count: {
            "queries_share": round(int(count) / 16, 4),
            "auroc": area["value"],
            "loss": round(whole - area["value"], 4),
        }
        for count, area in by_values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks, by the start of their names; default: all")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if not options.names or any(name.startswith(start) for start in options.names):
            found = measure(case, options.repeats)
            print(name, found, flush=True)
            figures = known("speed")
            figures.setdefault("signature", {})[name] = found
            figures["values"] = values_needed()
            record("speed", figures)


if __name__ == "__main__":
    main()
