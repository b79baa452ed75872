"""A module as a list of steps, by torch.fx: each can run on whole maps, and, if understood, on windows."""

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from intaglio.errors import ModelError
from intaglio.scan.locality.layers import understood
from intaglio.scan.locality.operators import Convolution, Operator

#: What tracing foreign code may raise: control flow on values, shapes or types that a proxy doesn't have.
_UNTRACEABLE = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError, NameError)
_SHAPES = ("size", "dim", "ndimension", "numel")


@dataclass(frozen=True)
class Name:
    """A reference to an earlier step's result."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call: `run(*args, **kwargs)`, where `Name`s stand for results. `local` is how windows go through it."""

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    local: Operator | None = None
    #: It asks for a shape only: answered without computing anything.
    shape_only: bool = False
    last_uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """Steps in order; `constants` don't depend on the image."""

    image: str
    constants: dict[str, Any]
    steps: tuple[Step, ...]
    output: str


def trace(module: nn.Module) -> Network:
    """The steps of a module in evaluation mode.

    Raises:
        ModelError: it can't be traced, or changes a tensor in place that is used again.
    """
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        raise ModelError("hooks can't be traced")
    try:
        graph = fx.Tracer().trace(module)
    except _UNTRACEABLE as error:
        raise ModelError(f"can't be traced: {error}") from error
    nodes = list(graph.nodes)
    images = [node for node in nodes if node.op == "placeholder" and node.users]
    outputs = [node for node in nodes if node.op == "output"]
    if len(images) != 1 or not isinstance(outputs[0].args[0], fx.Node):
        raise ModelError("expected one input and one output")
    _refuse_changes_in_place(module, nodes)
    constants: dict[str, Any] = {}
    steps: list[Step] = []
    dependent = {images[0].name}
    for node in nodes:
        if node.op == "get_attr":
            constants[node.name] = _attribute(module, str(node.target))
        elif node.op in ("call_module", "call_function", "call_method"):
            step = _step(module, node, constants, dependent)
            if step.inputs:
                steps.append(step)
                dependent.add(node.name)
            else:
                constants[node.name] = step.run(*resolve(step.args, constants), **resolve(step.kwargs, constants))
    output = outputs[0].args[0].name
    steps = _folded(steps, output)
    return Network(images[0].name, constants, tuple(_with_last_uses(steps, output)), output)


def resolve(template: Any, values: Any) -> Any:
    """Arguments with the results in place of their names."""
    if isinstance(template, Name):
        return values[template.name]
    if isinstance(template, list | tuple):
        return type(template)(resolve(item, values) for item in template)
    if isinstance(template, dict):
        return {key: resolve(item, values) for key, item in template.items()}
    if isinstance(template, slice):
        return slice(*(resolve(item, values) for item in (template.start, template.stop, template.step)))
    return template


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _step(module: nn.Module, node: fx.Node, constants: dict[str, Any], dependent: set[str]) -> Step:
    args, kwargs = _template(node.args), _template(node.kwargs)
    inputs = tuple(other.name for other in node.all_input_nodes if other.name in dependent)
    if node.op == "call_module":
        layer = _quiet(module.get_submodule(str(node.target)))
        local = understood(layer, node.name, args, kwargs, inputs, constants) if inputs else None
        run: Callable[..., Any] = local.whole if isinstance(local, Convolution) else layer
        return Step(node.name, run, args, kwargs, inputs, local)
    method = node.target if isinstance(node.target, str) else None
    call: Callable[..., Any] = operator.methodcaller if method else node.target  # type: ignore[assignment]
    local = understood(method or call, node.name, args, kwargs, inputs, constants) if inputs else None
    shape_only = method in _SHAPES or (call is getattr and args[1] in ("shape", "ndim", "dtype", "device"))
    if isinstance(local, Convolution):
        return Step(node.name, local.whole, args[:1], {}, inputs, local)
    if method:
        call = _Method(method)
    if _changes_in_place(node, None):
        call = _OnCopy(call)
    return Step(node.name, call, args, kwargs, inputs, local, shape_only)


class _Method:
    """A tensor's method as a function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, first: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(first, self.name)(*args, **kwargs)


class _OnCopy:
    """A function that changes its first argument, given a copy of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.function(first.clone(), *args, **kwargs)


def _quiet(layer: nn.Module) -> nn.Module:
    """A layer that leaves its input as it is; the same weights."""
    if getattr(layer, "inplace", False) is not True:
        return layer
    quiet = copy.copy(layer)
    quiet.inplace = False  # type: ignore[assignment]
    return quiet


def _changes_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return module is not None and getattr(module.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    augmented = node.target in {operator.iadd, operator.isub, operator.imul, operator.itruediv}
    foreign = name.endswith("_") and not name.endswith("__")
    return augmented or foreign or node.kwargs.get("inplace") is True or (bool(node.args) and node.args[-1] is True)


def _refuse_changes_in_place(module: nn.Module, nodes: list[fx.Node]) -> None:
    """Steps never change what they are given: that is the same only where nothing looks at it afterwards."""
    order = {node: place for place, node in enumerate(nodes)}
    for node in nodes:
        if _changes_in_place(node, module):
            changed = node.all_input_nodes[0]
            if any(order[user] > order[node] for user in changed.users):
                raise ModelError(f"'{node.name}' changes '{changed.name}' in place, which is used again")


def _template(value: Any) -> Any:
    """Arguments with `Name`s in place of nodes."""
    if isinstance(value, fx.Node):
        return Name(value.name)
    if isinstance(value, list):
        return [_template(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_template(item) for item in value)
    if isinstance(value, dict):
        return {key: _template(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_template(item) for item in (value.start, value.stop, value.step)))
    return value


def _folded(steps: list[Step], output: str) -> list[Step]:
    """Convolutions that only a batch normalisation looks at, as one convolution each."""
    users: dict[str, int] = {}
    for step in steps:
        for name in step.inputs:
            users[name] = users.get(name, 0) + 1
    by_name = {step.name: step for step in steps}
    gone: set[str] = set()
    folded = []
    for step in steps:
        layer = step.run
        before = by_name.get(step.inputs[0]) if len(step.inputs) == 1 else None
        if (
            type(layer) is nn.BatchNorm2d
            and step.local is not None
            and before is not None
            and isinstance(before.local, Convolution)
            and users[before.name] == 1
            and before.name != output
        ):
            local = _normalised(before.local, step.name, layer)
            gone.add(before.name)
            step = replace(before, name=step.name, run=local.whole, local=local)
        by_name[step.name] = step
        folded.append(step)
    return [step for step in folded if step.name not in gone]


def _normalised(convolution: Convolution, name: str, norm: nn.BatchNorm2d) -> Convolution:
    """norm(w x + b) = (w s) x + (b - mean) s + beta with s = gamma / sqrt(variance + eps)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.detach() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    bias = -norm.running_mean.detach() if convolution.bias is None else convolution.bias - norm.running_mean.detach()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.detach()
    weight = (convolution.weight * scale.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    return replace(convolution, name=name, weight=weight, bias=bias)


def _with_last_uses(steps: list[Step], output: str) -> Iterator[Step]:
    """Notes at each step which results are needed there for the last time."""
    last = {name: step.name for step in steps for name in step.inputs}
    for step in steps:
        ending = {name for name in step.inputs if last[name] == step.name and name != output}
        yield replace(step, last_uses=tuple(sorted(ending)))
