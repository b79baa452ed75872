"""Training state on disk as safetensors: weights, optimiser state and epoch. Nothing is pickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from intaglio.errors import ModelError
from intaglio.files import write_private
from intaglio.tensors import pack, unpack


class CheckpointFile:
    """Where a run keeps its state: a file that nobody but its owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """The state; None if there is none yet.

        Raises:
            OSError: it can't be read.
        """
        return self.path.read_bytes() if self.path.exists() else None

    def write(self, content: bytes) -> None:
        """Replaces the state, atomically.

        Raises:
            StorageError: it can't be written.
        """
        write_private(self.path, content)

    def refusal(self, reason: object) -> ModelError:
        """The error that says why the state is not one to go on from."""
        return ModelError(f"{self.path}: not a checkpoint of this training run ({' '.join(str(reason).split())})")


def require_run(begun: str, run: str) -> None:
    """Refuses a state that was begun with something else than `run` says.

    Raises:
        ValueError: it was.
    """
    if begun != run:
        raise ValueError("begun with other settings, seed, key, model or data; remove it to begin anew")


def save_checkpoint(file: CheckpointFile, run: str, module: nn.Module, optimizer: Optimizer, epoch: int) -> None:
    """Writes the state after `epoch` epochs, atomically; `run` is what the run was begun with.

    Raises:
        StorageError: the file can't be written.
    """
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    file.write(pack(tensors, {"epoch": str(epoch), "run": run}))


def _require_like(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuses weights of another network before any of them is loaded.

    Raises:
        ValueError: they are.
    """
    shapes, wanted = ({name: tuple(value.shape) for name, value in part.items()} for part in (weights, own))
    if differing := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        raise ValueError(f"of another network: '{differing[0]}' is missing, not known, or of another shape")


def load_checkpoint(file: CheckpointFile, run: str, module: nn.Module, optimizer: Optimizer) -> int:
    """Restores module and optimiser in place and returns the number of finished epochs of this `run`; 0 of a new one.

    Raises:
        ModelError: damaged, of another network, or of another run.
    """
    state: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    try:
        content = file.read()
        if content is None:
            return 0
        tensors, metadata = unpack(content)
        require_run(metadata["run"], run)
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part == "module":
                weights[name] = value
            else:
                index, _, entry = name.partition("/")
                state.setdefault(int(index), {})[entry] = value
        epoch = int(metadata["epoch"])
        _require_like(weights, module.state_dict())
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        module.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise file.refusal(error) from error
    return epoch
