"""Sham edits: how soon a candidate would notice small changes, tried on copies of the weights that are thrown away."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from intaglio.classifiers import TorchClassifier
from intaglio.seal.surface import LEVELS, differences, lead
from intaglio.seeds import torch_generator

#: How far an edit goes: the change of the weights over their norm. Large beside rounding, small beside any kink.
_REACH = 1e-4
_DIRECTIONS = 3
_PRUNED = 0.1
_INT8 = 127

Weights = dict[str, Tensor]


def alertness(classifier: TorchClassifier, levels: Tensor, tops: Tensor, *, seed: int) -> Tensor:
    """How readily the answer to each image in grey levels changes, `[E, N]`, for E sham edits; higher is better.

    Each edit moves the weights by 1e-4 of their norm: at random (all of them, and the last layer alone), towards int8
    rounding, towards 10 % pruning, and along a gradient step. A value is the change of the lead over the rivals, in
    units of the lead itself; above 0 the lead shrinks.
    """
    with torch.no_grad():
        before = lead(_scores(classifier, {}, levels), tops)
        rows = []
        for change in edits(classifier, levels, seed):
            after = lead(_scores(classifier, change, levels), tops)
            rows.append((before - after) / before.abs().clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(rows) if rows else torch.zeros(0, len(levels), dtype=torch.float64)


def edits(classifier: TorchClassifier, levels: Tensor, seed: int) -> Iterator[Weights]:
    """Changed parameters by name; the module's own stay as they are."""
    weights = {
        name: value.detach() for name, value in classifier.module.named_parameters() if value.is_floating_point()
    }
    matrices = {name: value for name, value in weights.items() if value.ndim >= 2}
    if not matrices:
        return
    last = next(reversed(matrices))
    for index in range(_DIRECTIONS):
        for chosen in (weights, {last: weights[last]}):
            generator = torch_generator(seed, "seal", "sham", index)
            noise = {name: torch.randn(value.shape, generator=generator).to(value) for name, value in chosen.items()}
            yield _scaled(chosen, noise)
    yield _scaled(matrices, {name: _rounded(value) - value for name, value in matrices.items()})
    sizes = torch.cat([value.abs().flatten() for value in matrices.values()])
    least = sizes.kthvalue(max(1, int(_PRUNED * len(sizes)))).values
    yield _scaled(matrices, {name: -value * (value.abs() <= least) for name, value in matrices.items()})
    yield _scaled(weights, _gradient(classifier, weights, levels, seed))


def _gradient(classifier: TorchClassifier, weights: Weights, levels: Tensor, seed: int) -> Weights:
    """The descent direction of the cross-entropy of one batch under labels drawn at random."""
    batch = levels[: classifier.batch_size]
    labels = torch.randint(
        classifier.num_classes, (len(batch),), generator=torch_generator(seed, "seal", "sham labels")
    )
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    with torch.enable_grad():
        scores = _answer(classifier, leaves, batch)
        loss = torch.nn.functional.cross_entropy(scores, labels.to(scores.device))
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weights[name]) if slope is None else -slope
        for name, slope in zip(leaves, slopes, strict=True)
    }


def _scaled(weights: Weights, change: Weights) -> Weights:
    """The weights after a change that is made as long as `_REACH` of all of them."""
    norm = torch.stack([value.norm() for value in weights.values()]).norm()
    length = torch.stack([value.norm() for value in change.values()]).norm().clamp_min(torch.finfo(torch.float32).tiny)
    return {name: weights[name] + value * (_REACH * norm / length) for name, value in change.items()}


def _rounded(weight: Tensor) -> Tensor:
    step = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny) / _INT8
    return (weight / step).round() * step


def _scores(classifier: TorchClassifier, change: Weights, levels: Tensor) -> Tensor:
    parts = [_answer(classifier, change, part).cpu() for part in torch.split(levels, classifier.batch_size)]
    return differences(torch.cat(parts), classifier.outputs)


def _answer(classifier: TorchClassifier, change: Weights, levels: Tensor) -> Tensor:
    inputs = classifier.preprocessing.apply(levels / LEVELS).to(classifier.device)
    answer: Tensor = functional_call(classifier.module, change, (inputs,))
    return answer
