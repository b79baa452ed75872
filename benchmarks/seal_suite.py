"""What is done to the sealed models in `benchmarks.seal`: one row a tampering, each with a seed."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.seal_hosts import HOSTS, split
from intaglio.classifiers import TorchClassifier
from intaglio.tampering import (
    Average,
    BitFlip,
    Distil,
    FinePrune,
    FineTune,
    Noise,
    Overwrite,
    Poison,
    Prune,
    Quantise,
    Tampering,
)

SIGMAS = (1e-4, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8)
#: Rows that come out the same for every seed.
_FIXED = ("int", "fp16", "bf16", "pruning")


def tunings() -> dict[str, Callable[[bool], Tampering]]:
    """Trainings, by whether batch normalisation is frozen."""

    def tuned(**options: object) -> Callable[[bool], Tampering]:
        return lambda frozen: FineTune(freeze_batchnorm=frozen, **{"optimizer": "sgd", **options})  # type: ignore[arg-type]

    found: dict[str, Callable[[bool], Tampering]] = {
        "1 SGD step, lr 1e-5": tuned(steps=1, learning_rate=1e-5),
        "100 SGD steps, lr 1e-5": tuned(steps=100, learning_rate=1e-5),
        "1 SGD step, lr 1e-3": tuned(steps=1, learning_rate=1e-3),
        "1 epoch, lr 1e-4": tuned(learning_rate=1e-4),
        "1 epoch, lr 1e-3": tuned(learning_rate=1e-3),
        "1 epoch, lr 1e-2": tuned(learning_rate=1e-2),
        "40 epochs, lr 1e-3": tuned(epochs=40, learning_rate=1e-3),
        "last layer, 1 SGD step, lr 1e-5": tuned(layers="last", steps=1, learning_rate=1e-5),
        "last layer, 1 SGD step, lr 1e-3": tuned(layers="last", steps=1, learning_rate=1e-3),
        "last layer, 1 epoch, lr 1e-4": tuned(layers="last", learning_rate=1e-4),
        "last layer, 1 epoch, lr 1e-3": tuned(layers="last", learning_rate=1e-3),
    }
    for rate in (0.01, 0.1):
        found[f"poisoned fine-tuning, {rate:.0%}"] = lambda frozen, rate=rate: Poison(  # type: ignore[misc]
            rate=rate, optimizer="sgd", learning_rate=1e-3, freeze_batchnorm=frozen
        )
    for trigger in ("patch", "blended", "pixels"):
        found[f"backdoor injection, {trigger}"] = lambda frozen, trigger=trigger: Poison(  # type: ignore[misc]
            trigger=trigger, epochs=3, freeze_batchnorm=frozen
        )
    return found


def edits() -> dict[str, Tampering]:
    """Everything that doesn't train, or not with batch normalisation as it was."""
    found: dict[str, Tampering] = {f"noise, sigma {sigma:g}": Noise(sigma=sigma) for sigma in (1e-2, 1e-3, 5e-4, 1e-4)}
    found |= {f"noise, sigma {sigma:g}": Noise(sigma=sigma) for sigma in SIGMAS[1:4]}
    found |= {f"pruning, {share:.0%}": Prune(share=share) for share in (0.01, 0.1, 0.5)}
    found |= {f"int{bits}": Quantise(bits=bits) for bits in (16, 8, 4)}
    found |= {"int8, by channel": Quantise(bits=8, scale="channel")}
    found |= {number: Quantise(number=number) for number in ("fp16", "bf16")}
    found |= {
        "weight averaging": Average(optimizer="sgd", learning_rate=1e-3),
        "fine-pruning": FinePrune(share=0.1, optimizer="sgd", learning_rate=1e-3),
        "distillation": Distil(epochs=2),
    }
    return found


def rows(host: str, classifier: TorchClassifier) -> dict[str, Tampering]:
    """Every row for a host; those with BatchNorm have trainings twice."""
    found: dict[str, Tampering] = {}
    norms = any(isinstance(part, nn.BatchNorm2d) for part in classifier.module.modules())
    for name, tuning in tunings().items():
        found[name] = tuning(True)
        if norms:
            found[f"{name}, BatchNorm training"] = tuning(False)
    mark = split(HOSTS[host].task, "test").take(torch.arange(100))
    found["another mark"] = Overwrite(triggers=(mark.images, (mark.labels + 1) % 10), epochs=1)
    return found | edits()


def repeats(name: str, seeds: int) -> int:
    """How many seeds tell anything new."""
    return 1 if name.startswith(_FIXED) else seeds


def layer_groups(module: nn.Module) -> dict[str, str]:
    """First, middle and last layer with weights."""
    layers = [name.rpartition(".")[0] for name, value in module.named_parameters() if value.ndim >= 2]
    return {"first layer": layers[0], "middle layer": layers[len(layers) // 2], "last layer": layers[-1]}


def bit_flips(module: nn.Module) -> dict[tuple[str, int], Tampering]:
    """One flipped bit in one weight, by layer and position."""
    return {
        (place, position): BitFlip(position=position, layer=layer)
        for place, layer in layer_groups(module).items()
        for position in (0, 4, 8, 12, 14, 16, 18, 20, 22, 23, 24, 25, 26, 28, 30, 31)
    }
