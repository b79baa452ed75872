"""Training state on disk as safetensors: weights, optimiser state and epoch. Nothing is pickled."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from intaglio.errors import ModelError
from intaglio.files import write_bytes


def save_checkpoint(path: Path, run: str, module: nn.Module, optimizer: Optimizer, epoch: int) -> None:
    """Writes the state after `epoch` epochs, atomically; `run` is what the run was begun with.

    Raises:
        StorageError: the file can't be written.
    """
    tensors = {f"module/{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).contiguous()
    write_bytes(path, save(tensors, {"epoch": json.dumps(epoch), "run": run}))


def load_checkpoint(path: Path, run: str, module: nn.Module, optimizer: Optimizer) -> int:
    """Restores module and optimiser in place and returns the number of finished epochs of this `run`.

    Raises:
        ModelError: damaged, of another network, or of another run.
    """
    state: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as stream:
            epoch, begun = int(json.loads(stream.metadata()["epoch"])), stream.metadata()["run"]
            if begun != run:
                raise ValueError("begun with other settings, seed, key or the like; remove it to begin anew")
            for key in stream.keys():  # noqa: SIM118 - not a mapping
                part, _, name = key.partition("/")
                if part == "module":
                    weights[name] = stream.get_tensor(key)
                else:
                    index, _, entry = name.partition("/")
                    state.setdefault(int(index), {})[entry] = stream.get_tensor(key)
        module.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: not a checkpoint of this training run ({reason})") from error
    return epoch
