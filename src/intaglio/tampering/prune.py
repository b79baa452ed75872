"""Pruning: the weights of least magnitude, or the channels that clean images use least, become zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from intaglio.data import classes_in_turn
from intaglio.errors import ModelError, RecipeError
from intaglio.tampering.retraining import FINE_TUNING, Retraining, retrain, training_settings
from intaglio.tampering.tampering import Material, Tampering, weights_of

Scope = Literal["global", "layer"]

#: So many images, of all classes in turn, decide which channels are used least.
_LOOKED_AT = 2048


class Prune(Tampering):
    """Sets the `round(share * n)` weights of least magnitude to zero; biases and normalisation are left.

    Args:
        share: of the weights, in [0, 1].
        scope: least in the whole network (global), or in each layer.

    Raises:
        RecipeError: a value outside its range.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks".
    """

    name = "prune"

    def __init__(self, *, share: float = 0.3, scope: Scope = "global") -> None:
        _check_share(share)
        if scope not in get_args(Scope):
            raise RecipeError(f"unknown scope '{scope}'; known are {', '.join(get_args(Scope))}")
        self.share = share
        self.scope = scope

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        weights = [weight.detach() for _, weight in weights_of(module)]
        if not weights:
            raise ModelError("prune: the module has no matrices or kernels")
        for group in [weights] if self.scope == "global" else [[weight] for weight in weights]:
            sizes = torch.cat([weight.abs().flatten() for weight in group])
            kept = torch.ones_like(sizes)
            kept[sizes.argsort(stable=True)[: round(self.share * len(sizes))]] = 0
            masks = torch.split(kept, [weight.numel() for weight in group])
            for weight, mask in zip(group, masks, strict=True):
                weight.mul_(mask.view(weight.shape)).add_(0.0)  # -0.0 + 0.0 is 0.0
        return module


class FinePrune(Tampering):
    """Removes the channels of the last convolution that clean images activate least, then trains on without them.

    A channel's activation is the mean of max(0, y), with y the convolution's output after the batch normalisation that
    follows it, if one does. The removed channels stay zero while the rest is trained.

    Args:
        share: of the channels, in [0, 1].

    Raises:
        RecipeError: a value outside its range.

    Source: Liu et al. 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks".
    """

    name = "fine-prune"
    needs_data = True
    needs_labels = True
    training_defaults: ClassVar[Retraining] = FINE_TUNING

    def __init__(self, *, share: float = 0.3, **training: Unpack[Retraining]) -> None:
        _check_share(share)
        self.share = share
        self.training = training_settings(self.training_defaults, training)

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        convolution, norm = _last_convolution(module, material.example())
        activations = _activations(module, convolution if norm is None else norm, material)
        kept = torch.ones_like(activations)
        kept[activations.argsort(stable=True)[: round(self.share * len(activations))]] = 0
        parts: list[nn.Module] = [convolution] if norm is None else [convolution, norm]
        masks = {
            parameter: kept.view(-1, *[1] * (parameter.ndim - 1)) for part in parts for parameter in part.parameters()
        }
        for parameter, mask in masks.items():
            parameter.detach().mul_(mask)
        if norm is not None and norm.running_mean is not None:
            norm.running_mean.mul_(kept)
        with _kept_zero(masks):
            return retrain(module, material.images, material.labels, self.training, material)


@contextmanager
def _kept_zero(masks: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """While it lasts, gradients are 0 where a parameter's mask is."""
    flags = {parameter: parameter.requires_grad for parameter in masks}
    handles = []
    for parameter, mask in masks.items():
        parameter.requires_grad_(True)  # else it takes no hook
        handles.append(parameter.register_hook(partial(torch.mul, mask)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _last_convolution(module: nn.Module, example: Tensor) -> tuple[_ConvNd, _BatchNorm | None]:
    """The convolution called last, and the batch normalisation that its output goes to."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [
        part.register_forward_hook(lambda part, inputs, output: calls.append((part, inputs[0], output)))
        for part in module.modules()
        if isinstance(part, _ConvNd | _BatchNorm)
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    for part, _, output in reversed(calls):
        if isinstance(part, _ConvNd) and not part.transposed:
            following = (other for other, taken, _ in calls if isinstance(other, _BatchNorm) and taken is output)
            return part, next(following, None)
    raise ModelError("fine-prune: the network has no convolution whose channels could be removed")


def _activations(module: nn.Module, part: nn.Module, material: Material) -> Tensor:
    """How much the clean images activate each channel of `part`, `[channels]`."""
    sums: list[Tensor] = []
    looked_at = classes_in_turn(material.labels)[:_LOOKED_AT].sort().values  # folders come sorted by class
    handle = part.register_forward_hook(
        lambda _part, _inputs, output: sums.append(output.relu().flatten(2).mean(2).sum(0))
    )
    try:
        with torch.no_grad():
            for batch in torch.split(material.inputs(material.images[looked_at]), 256):
                module(batch.to(material.device))
    finally:
        handle.remove()
    return torch.stack(sums).sum(0)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise RecipeError(f"the share to prune lies in [0, 1], got {share}")
