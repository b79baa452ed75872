"""A graph from `torch.export`, interpreted operator by operator: no Python code is generated, nothing is evaluated."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.classifiers.exported_archive import DTYPES, ExportedArchive
from intaglio.classifiers.exported_operators import find_operator
from intaglio.errors import ClassifierError, ModelError, UnsafeFileError

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_MAX_DEPTH = 64
_LITERALS = frozenset(
    {"as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings", "as_int_lists"}
)


@dataclass(frozen=True)
class _Value:
    """A reference to an earlier result, by name."""

    name: str


@dataclass(frozen=True)
class _Step:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str | list[str] | None, ...]
    last_uses: tuple[str, ...] = ()  # values that no later step needs: their memory is given back


class ExportedGraph(nn.Module):
    """The exported model as a module with its own parameter names: `[N, ...]` to scores `[N, K]`, differentiable.

    Raises:
        UnsafeFileError: an operator that is not on the allow-list.
        ModelError: more than one input or output, control flow, training mode, or a graph that changes its state.
    """

    def __init__(self, archive: ExportedArchive) -> None:
        super().__init__()
        graph, signature = archive.graph_module["graph"], archive.graph_module["signature"]
        self._names: dict[str, str] = {}
        user_inputs = []
        for spec in signature["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input":
                user_inputs.append(content["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                target = content[f"{kind}_name"]
                source = archive.constants if target in archive.constants else archive.weights
                self._names[content["arg"]["name"]] = target
                _register(self, target, source[target], trainable=kind == "parameter")
            else:
                raise ModelError(f"has an input of kind '{kind}', which isn't supported")
        if len(user_inputs) != 1:
            raise ModelError(f"expected one input, got {len(user_inputs)}: export a model with one")
        outputs = signature["output_specs"]
        if any("user_output" not in spec for spec in outputs):
            raise ModelError("changes its own state while answering: call eval() before torch.export.export")
        if len(outputs) != 1:
            raise ModelError(f"expected one output, got {len(outputs)}: export a model with one")
        self.input_name: str = user_inputs[0]
        self.output_name: str = outputs[0]["user_output"]["arg"]["as_tensor"]["name"]
        steps = [_step(node) for node in graph["nodes"]]
        _check_order(steps, {*self._names, self.input_name}, self.output_name)
        self._steps = _with_last_uses(steps, {*self._names, self.output_name})

    def forward(self, x: Tensor) -> Tensor:
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        values: dict[str, Any] = {name: weights[target] for name, target in self._names.items()}
        versions = _versions(values, self._names)
        values[self.input_name] = x
        for step in self._steps:
            result = step.function(*_resolve(step.args, values), **_resolve(step.kwargs, values))
            results = (result,) if len(step.outputs) == 1 else result
            for names, part in zip(step.outputs, results, strict=True):
                if isinstance(names, str):
                    values[names] = part
                elif names is not None:
                    values.update(zip(names, part, strict=True))
            for name in step.last_uses:
                del values[name]
        if versions != _versions(values, self._names):
            raise ClassifierError("the exported graph changes its own weights while answering")
        answer: Tensor = values[self.output_name]
        return answer


def _register(module: nn.Module, name: str, value: Tensor, *, trainable: bool) -> None:
    """Puts a tensor at its dotted name, with plain modules on the way."""
    *path, last = name.split(".")
    if len(path) > _MAX_DEPTH:
        raise ModelError(f"has modules nested deeper than {_MAX_DEPTH}")
    for part in path:
        if not isinstance(module._modules.get(part), nn.Module):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if last in module._parameters or last in module._buffers:
        return
    if trainable:
        module.register_parameter(last, nn.Parameter(value, requires_grad=value.is_floating_point()))
    else:
        module.register_buffer(last, value)


def _versions(values: Mapping[str, Tensor], names: Iterable[str]) -> list[int]:
    """How often each was written to in place; torch doesn't count for tensors made in inference mode."""
    return [0 if values[name].is_inference() else values[name]._version for name in names]


def _step(node: Mapping[str, Any]) -> _Step:
    target = node["target"]
    function = find_operator(target)
    if function is None:
        raise UnsafeFileError(f"calls '{target[:80]}', which isn't on the list of allowed operators")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in node["inputs"]:
        value = _argument(entry["arg"])
        if entry["name"] in ("training", "train") and value is True:
            raise ModelError("was exported in training mode: call eval() before torch.export.export")
        if entry.get("kind") == 1 or not entry["name"]:
            args.append(value)
        else:
            kwargs[entry["name"]] = value
    return _Step(function, tuple(args), kwargs, tuple(_output(entry) for entry in node["outputs"]))


def _check_order(steps: list[_Step], known: set[str], output: str) -> None:
    """Every value must be made before it is used."""
    known = set(known)
    for step in steps:
        for name in (*_references(step.args), *_references(tuple(step.kwargs.values()))):
            if name not in known:
                raise ModelError(f"is damaged: '{name}' is used before it is made")
        for names in step.outputs:
            known.update([names] if isinstance(names, str) else names or [])
    if output not in known:
        raise ModelError(f"is damaged: its output '{output}' is never made")


def _with_last_uses(steps: list[_Step], kept: set[str]) -> list[_Step]:
    """Notes at each step which values are used there for the last time; those in `kept` live on."""
    seen = set(kept)
    noted = []
    for step in reversed(steps):
        last = sorted({*_references(step.args), *_references(tuple(step.kwargs.values()))} - seen)
        seen.update(last)
        noted.append(replace(step, last_uses=tuple(last)))
    return noted[::-1]


def _references(template: Any) -> Iterator[str]:
    if isinstance(template, _Value):
        yield template.name
    elif isinstance(template, list | tuple):
        for item in template:
            yield from _references(item)


def _argument(union: Mapping[str, Any]) -> Any:
    """One argument of the schema's tagged union: a literal, a reference, or a list of them."""
    ((kind, value),) = union.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return _Value(value["name"])
        case "as_tensors":
            return [_Value(item["name"]) for item in value]
        case "as_optional_tensors":
            return [_argument(item) for item in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _symbol(value)
        case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_symbol(item) for item in value]
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return _MEMORY_FORMATS[value]
        case "as_layout":
            return torch.strided
        case "as_device":
            return torch.device("cpu")
        case _ if kind in _LITERALS:
            return value
    raise ModelError(f"has an argument of kind '{kind}', which isn't supported")


def _symbol(union: Mapping[str, Any]) -> Any:
    ((kind, value),) = union.items()
    return _Value(value) if kind == "as_name" else value


def _output(union: Mapping[str, Any]) -> str | list[str] | None:
    ((kind, value),) = union.items()
    match kind:
        case "as_tensor":
            return str(value["name"])
        case "as_tensors":
            return [str(item["name"]) for item in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return str(value["as_name"])
        case "as_none":
            return None
    raise ModelError(f"has an output of kind '{kind}', which isn't supported")


def _resolve(template: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(template, _Value):
        return values[template.name]
    if isinstance(template, list | tuple):
        return type(template)(_resolve(item, values) for item in template)
    if isinstance(template, Mapping):
        return {key: _resolve(item, values) for key, item in template.items()}
    return template
