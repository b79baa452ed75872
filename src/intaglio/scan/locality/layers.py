"""Which layers are understood: from a module, a function or a method's name to the operator for windows."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.scan.locality.geometry import Sliding
from intaglio.scan.locality.operators import (
    AveragePool,
    Concatenation,
    Convolution,
    Elementwise,
    MaxPool,
    Mean,
    Operator,
    Same,
    Sum,
    ZeroPadding,
)

_SAME_MODULES = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_SAME_NAMES = ("contiguous", "clone", "detach")
_ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Softplus, nn.Mish, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign, nn.LogSigmoid, nn.PReLU, nn.Hardshrink),
)
#: Functions and methods of one map, and numbers.
_ELEMENTWISE_NAMES = frozenset(
    [
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "leaky_relu_",
        "silu",
        "hardswish",
        "gelu",
        "sigmoid",
        "sigmoid_",
        "tanh",
        "tanh_",
        "elu",
        "elu_",
        "selu",
        "celu",
        "softplus",
        "mish",
        "hardsigmoid",
        "hardtanh",
        "softsign",
        "logsigmoid",
        "clamp",
        "clamp_",
        "clamp_min",
        "clamp_max",
        "abs",
        "exp",
        "neg",
        "sqrt",
        "square",
        "float",
    ]
)
_ARITHMETIC: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), torch.add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), torch.sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), torch.mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), torch.div),
    **dict.fromkeys((torch.maximum, "maximum"), torch.maximum),
    **dict.fromkeys((torch.minimum, "minimum"), torch.minimum),
}


def understood(
    target: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: tuple[str, ...],
    constants: dict[str, Any],
) -> Operator | None:
    """The operator for a layer (a module, a function, or a method's name), or None.

    `args` and `kwargs` hold names of results; `inputs` are those that depend on the image, `constants` the others.
    """
    if isinstance(target, nn.Module):
        return _module(target, name) if len(args) == len(inputs) == 1 and not kwargs else None
    if target in _ARITHMETIC:
        return _arithmetic(_ARITHMETIC[target], name, args, kwargs, inputs, constants)
    if target in (torch.cat, torch.concat):
        return _concatenation(name, *args, **kwargs) if len(args[0]) == len(inputs) else None
    if len(inputs) != 1 or not args or getattr(args[0], "name", None) != inputs[0]:
        return None
    called = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and not _of_torch(target):
        return None
    rest = _values(args[1:], constants), _values(kwargs, constants)
    return _function(target, called, name, *rest)


def _of_torch(function: Any) -> bool:
    """Whether a function is torch's own: another's of the same name may be anything."""
    return any(
        getattr(owner, getattr(function, "__name__", ""), None) is function
        for owner in (torch, functional, Tensor, torch._C._nn)
    )


def _values(template: Any, constants: dict[str, Any]) -> Any:
    if hasattr(template, "name"):
        return constants.get(template.name)
    if isinstance(template, list | tuple):
        return [_values(item, constants) for item in template]
    if isinstance(template, dict):
        return {key: _values(item, constants) for key, item in template.items()}
    return template


def _module(layer: nn.Module, name: str) -> Operator | None:
    kind = type(layer)
    if isinstance(layer, nn.Conv2d) and kind is nn.Conv2d:
        if layer.padding_mode != "zeros":
            return None
        return _convolution(name, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.BatchNorm2d) and kind is nn.BatchNorm2d:
        return Elementwise(name, layer) if layer.running_mean is not None and not layer.training else None
    if kind in _ELEMENTWISE_MODULES:
        return Elementwise(name, layer)
    if kind in _SAME_MODULES and not layer.training:
        return Same(name)
    if isinstance(layer, nn.MaxPool2d) and kind is nn.MaxPool2d and not layer.return_indices:
        return _max_pool(name, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, nn.AvgPool2d) and kind is nn.AvgPool2d:
        return AveragePool(
            name, *_sliding(layer.kernel_size, layer.stride, layer.padding), average=layer, ceil=layer.ceil_mode
        )
    if isinstance(layer, nn.AdaptiveAvgPool2d) and kind is nn.AdaptiveAvgPool2d:
        return Mean(name) if _pair(layer.output_size) == (1, 1) else None
    if isinstance(layer, nn.ZeroPad2d) and kind is nn.ZeroPad2d:
        return _padding(name, list(layer.padding))
    return None


def _function(target: Any, called: str, name: str, args: list[Any], kwargs: dict[str, Any]) -> Operator | None:
    """Functions of one map; anything called in a way of its own is left to the whole maps."""
    try:
        match called:
            case "conv2d":
                return _conv2d(name, *args, **kwargs)
            case "max_pool2d" | "boolean_dispatch" if target in (functional.max_pool2d, torch.max_pool2d):
                return _max_pool2d(name, *args, **kwargs)
            case "avg_pool2d":
                return _avg_pool2d(name, args, kwargs)
            case "adaptive_avg_pool2d":
                return Mean(name) if _pair(*args, **kwargs) == (1, 1) else None
            case "mean":
                return _mean(name, *args, **kwargs)
            case "pad":
                return _pad(name, *args, **kwargs)
            case "dropout" | "dropout2d":
                training = kwargs.get("training", args[1] if len(args) > 1 else True)
                return Same(name) if training is False else None
            case _ if called in _SAME_NAMES and not args and not kwargs:
                return Same(name)
            case _ if called in _ELEMENTWISE_NAMES and _numbers(args) and _numbers(kwargs.values()):
                kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
                args = args[: next((place for place, item in enumerate(args) if item is True), len(args))]
                function = getattr(Tensor, target) if isinstance(target, str) else target
                if called.endswith("_"):
                    return Elementwise(name, lambda values: function(values.clone(), *args, **kwargs))
                return Elementwise(name, lambda values: function(values, *args, **kwargs))
    except TypeError:  # an argument by a name that isn't known here
        pass
    return None


def _numbers(values: Any) -> bool:
    return all(value is None or isinstance(value, bool | int | float | str) for value in values)


def _arithmetic(
    function: Callable[..., Tensor],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: tuple[str, ...],
    constants: dict[str, Any],
) -> Operator | None:
    if kwargs or len(args) != 2:
        return None
    if len(inputs) == 2:
        return Sum(name, function) if function is torch.add else Elementwise(name, function)
    if len(inputs) != 1:  # x + x counts as one input
        return None
    first, second = (getattr(item, "name", None) for item in args)
    if first == second:
        return Elementwise(name, lambda values: function(values, values))
    other = _values(args[1] if first == inputs[0] else args[0], constants)
    if isinstance(other, Tensor) and not (other.numel() == 1 or (other.ndim >= 3 and other.shape[-2:] == (1, 1))):
        return None
    if not isinstance(other, Tensor | int | float):
        return None
    constant = other if isinstance(other, Tensor) else torch.tensor(float(other))
    if first == inputs[0]:
        return Elementwise(name, lambda values: function(values, constant))
    return Elementwise(name, lambda values: function(constant, values))


def _concatenation(name: str, tensors: Any, dim: int = 0) -> Operator | None:
    return Concatenation(name) if dim in (1, -3) else None


def _convolution(
    name: str, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Operator | None:
    kernel, dilation = (int(weight.shape[2]), int(weight.shape[3])), _pair(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [step * (side - 1) for side, step in zip(kernel, dilation, strict=True)]
        if any(one % 2 for one in reach):
            return None
        padding = tuple(one // 2 for one in reach)
    rows, columns = _sliding(kernel, stride, padding, dilation)
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return Convolution(name, rows, columns, weight, None if bias is None else bias.detach(), groups)


def _conv2d(
    name: str,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Operator | None:
    if not isinstance(weight, Tensor) or weight.ndim != 4 or not (bias is None or isinstance(bias, Tensor)):
        return None
    return _convolution(name, weight, bias, stride, padding, dilation, groups)


def _max_pool2d(
    name: str,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Operator | None:
    return None if return_indices else _max_pool(name, kernel_size, stride, padding, dilation)


def _max_pool(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Operator:
    return MaxPool(name, *_sliding(kernel, stride, padding, dilation))


def _avg_pool2d(name: str, args: list[Any], kwargs: dict[str, Any]) -> Operator:
    keys = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = {**dict(zip(keys, args, strict=False)), **kwargs}
    sliding = _sliding(given["kernel_size"], given.get("stride"), given.get("padding", 0))
    average = partial(functional.avg_pool2d, **given)
    return AveragePool(name, *sliding, average=average, ceil=bool(given.get("ceil_mode", False)))


def _mean(name: str, dim: Any = None, keepdim: bool = False) -> Operator | None:
    axes = sorted(axis % 4 for axis in dim) if isinstance(dim, list | tuple) else None
    return Mean(name) if axes == [2, 3] else None


def _pad(name: str, pad: Any, mode: str = "constant", value: float | None = None) -> Operator | None:
    return _padding(name, list(pad)) if mode == "constant" and not value else None


def _padding(name: str, pad: list[int]) -> Operator | None:
    """`pad` is (left, right, top, bottom), or fewer."""
    left, right, top, bottom, *more = [*pad, *[0] * (4 - len(pad))]
    return None if any(more) or min(left, right, top, bottom) < 0 else ZeroPadding(name, top, left)


def _sliding(kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Sliding, Sliding]:
    kernel = _pair(kernel)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    rows, columns = zip(kernel, stride, _pair(padding), _pair(dilation), strict=True)
    return Sliding(*rows), Sliding(*columns)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return first, second
