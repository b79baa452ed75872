"""Opens `.pt2` files from `torch.export.save`, without `torch.export.load`, for that executes what is in them.

Read in torch 2.13 (torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py, torch/export/_unlift.py,
torch/fx), `torch.export.load` and the `.module()` of what it returns

1. unpickle `data/sample_inputs/model.pt`, and fall back to `weights_only=False` when that fails;
2. unpickle weights and constants marked `use_pickle`, `opaque_obj_*` (`pickle.loads`) and `custom_obj_*`;
3. resolve an operator's name attribute by attribute from `torch`: "torch.serialization.os.system" is found, and called;
4. evaluate every symbolic size with `sympy.sympify`, which is Python's `eval`;
5. generate Python source from node names and arguments in the graph, and from `guards_code`, and `exec` it;
6. import modules that tree specifications name, and load the shared libraries of `data/aotinductor/`.

No check beforehand makes all of that safe, so nothing of it is used here. `exported_archive` reads the JSON graph and
the raw bytes of the tensors, `exported_graph` interprets the graph over the allow-list in `exported_operators`, and
symbolic expressions, guards, tree specifications and sample inputs are never looked at.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from intaglio.classifiers.exported_archive import read_archive
from intaglio.classifiers.exported_graph import ExportedGraph
from intaglio.errors import ModelError


@dataclass(frozen=True)
class ExportedModel:
    """The module and what its graph states: sizes of the input and of the output, None where they are dynamic."""

    module: nn.Module
    input_sizes: tuple[int | None, ...]
    output_sizes: tuple[int | None, ...]


def read_exported(path: Path) -> ExportedModel:
    """Reads a `.pt2` file.

    Raises:
        UnsafeFileError: pickled members, compiled code, or an operator that isn't on the allow-list.
        ModelError: damaged, of another version, or with something that isn't supported; says what.
    """
    try:
        archive = read_archive(path)
        module = ExportedGraph(archive)
        values = archive.graph_module["graph"]["tensor_values"]
        return ExportedModel(module, _sizes(values[module.input_name]), _sizes(values[module.output_name]))
    except ModelError as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: not an exported model, or damaged ({reason})") from error


def _sizes(value: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(size.get("as_int") for size in value["sizes"])
