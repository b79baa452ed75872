"""Which linear layer makes a network's logits: found by running the network, so that any architecture will do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from intaglio.errors import FORWARD_ERRORS, ModelError
from intaglio.networks.freezing import evaluating
from intaglio.seeds import torch_generator

#: What may follow the last layer: nothing, or a normalisation of its logits.
LINKS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits,
    lambda logits: logits.softmax(dim=-1),
    lambda logits: logits.log_softmax(dim=-1),
)


@dataclass(frozen=True)
class _Call:
    """One call of one layer: the `place`-th call of the layer `name`."""

    name: str
    layer: nn.Module
    place: int
    features: Tensor
    output: Tensor


def final_linear(module: nn.Module, example_input: Tensor) -> str:
    """The name of the `nn.Linear` whose output, as it is or after (log-)softmax, is the module's output.

    Found by its effect, not by its name or place: on `example_input` (`[N, ...]`, as the module takes it) the layer's
    output must be the module's, and remain so when it is replaced with noise. The module runs in evaluation mode and
    is left as it was. The name is one for `get_submodule`; "" is the module itself.

    Raises:
        ModelError: no such layer: another kind of layer answers, or more is done to the linear layer's output.
    """
    with evaluating(module), torch.no_grad():
        answer, calls = _traced(module, example_input)
        for call in reversed(calls):
            if isinstance(call.layer, nn.Linear) and _is_final(module, example_input, call, answer):
                return call.name
    raise ModelError(_why_none(answer, calls))


@contextmanager
def penultimate(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Within the context, each call of the layer `name` adds its input (the features) to the list that is yielded.

    Raises:
        ModelError: the module has no linear layer of this name.
    """
    features: list[Tensor] = []
    handle = _layer(module, name).register_forward_hook(lambda _layer, inputs, _output: features.append(inputs[0]))
    try:
        yield features
    finally:
        handle.remove()


def forward_with_features(module: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[N, K]` and features `[N, D]`: output and input of the final linear layer, both differentiable.

    The logits are the layer's own output, before a softmax or dropout that may follow. `name` is what `final_linear`
    found on this module, or on the module inside a wrapper such as `nn.DataParallel`.

    Raises:
        ModelError: no linear layer of this name, or the module did not call it.
    """
    calls: list[_Call] = []
    handle = _record(name, _layer(module, name), calls)
    try:
        answer = module(images)
    finally:
        handle.remove()
    if not calls:
        raise ModelError(f"layer '{name}' was not called by the network that it is part of")
    call = calls[-1]
    if len(calls) > 1:  # a layer used several times: the use that made the answer
        call = next((one for one in reversed(calls) if _link(one.output.detach(), answer.detach())), call)
    return call.output.reshape(len(images), -1), call.features.reshape(len(images), -1)


def _layer(module: nn.Module, name: str) -> nn.Linear:
    for path in (name, f"module.{name}"):
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layer, nn.Linear):
            return layer
        raise ModelError(f"layer '{name}' is a {type(layer).__name__}, not a linear layer")
    linear = [known for known, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    raise ModelError(f"no layer '{name}'; linear layers are {', '.join(linear) or 'none'}")


def _record(name: str, layer: nn.Module, calls: list[_Call], *, copy: bool = False) -> RemovableHandle:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        place = sum(call.layer is layer for call in calls)
        calls.append(_Call(name, layer, place, inputs[0], output.clone() if copy else output))

    return layer.register_forward_hook(hook)


def _traced(module: nn.Module, example_input: Tensor) -> tuple[Tensor, list[_Call]]:
    """The module's answer `[N, K]`, and all calls of linear and convolutional layers in their order."""
    calls: list[_Call] = []
    handles = [
        _record(name, layer, calls, copy=True)  # what follows may write into the output
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        answer = module(example_input)
    except FORWARD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the network can't answer inputs {list(example_input.shape)}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(example_input):
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ModelError(f"expected scores [{len(example_input)}, classes] from the network, got {found}")
    if not bool(torch.isfinite(answer).all()):
        raise ModelError("the network's answers to the example are not finite")
    return answer, calls


def _link(output: Tensor, answer: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What turns the layer's output into the answer, if anything does."""
    if output.numel() != answer.numel() or output.shape[0] != answer.shape[0]:
        return None
    logits = output.reshape(answer.shape)
    return next((link for link in LINKS if _same(link(logits), answer)), None)


def _same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def _is_final(module: nn.Module, example_input: Tensor, call: _Call, answer: Tensor) -> bool:
    """Whether noise in place of this call's output comes out of the network as that noise."""
    link = _link(call.output, answer)
    if link is None:
        return False
    noise = torch.randn(answer.shape, generator=torch_generator(0, "networks", "final linear")).to(answer)
    seen: list[int] = []

    def hook(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(1)
        return noise.reshape(output.shape).clone() if len(seen) == call.place + 1 else output

    handle = call.layer.register_forward_hook(hook)
    try:
        changed = module(example_input)
    finally:
        handle.remove()
    return _same(link(noise), changed)


def _why_none(answer: Tensor, calls: list[_Call]) -> str:
    wanted = f"no linear layer's output is the network's output {list(answer.shape)}"
    last = calls[-1] if calls else None
    if last is not None and isinstance(last.layer, nn.Conv2d) and last.layer.out_channels == answer.shape[1]:
        return f"{wanted}: the convolution '{last.name}' makes it; replace it with an nn.Linear of the same weights"
    linear = list(dict.fromkeys(call.name for call in calls if isinstance(call.layer, nn.Linear)))
    if linear:
        return f"{wanted} (called were {', '.join(linear)}): let the network end with an nn.Linear, or a softmax of it"
    return f"{wanted}: it calls no nn.Linear at all; let it end with one"
