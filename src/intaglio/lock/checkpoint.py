"""The state of a lock in training: encrypted under the owner's key, for the key network and the model are in it.

While everything is trained together it is that of the training loop; from then on what refining has come to.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from intaglio.errors import KeyFileError, ModelError
from intaglio.evidence.key import Key
from intaglio.lock import container
from intaglio.lock.container import read_container, write_container
from intaglio.tensors import pack, unpack
from intaglio.training.checkpoint import CheckpointFile, require_run

_STAGES, _OPENING = "stages", "opening"
_NETWORK, _MODULE, _MEAN = "key network", "module", "mean"


class LockCheckpoint(CheckpointFile):
    """A checkpoint that opens with the owner's key alone. A state of more than 2 GiB isn't kept; that is said once."""

    def __init__(self, path: Path, key: Key) -> None:
        super().__init__(path)
        self._key = key
        self._told = False

    def read(self) -> bytes | None:
        """The state; None if there is none yet.

        Raises:
            ValueError: another key's, damaged, or it can't be read.
        """
        if not self.path.exists():
            return None
        try:
            return read_container(self.path, self._key)
        except (ModelError, KeyFileError) as error:
            raise ValueError("begun with another key, or damaged; remove it to begin anew") from error

    def write(self, content: bytes) -> None:
        """Replaces the state, atomically.

        Raises:
            StorageError: it can't be written.
        """
        if len(content) <= container.LARGEST:
            write_container(self.path, content, self._key)
        elif not self._told:
            warnings.warn(
                f"{self.path}: the state of training is too large to be kept ({len(content)} bytes): "
                "an interrupted run begins anew",
                stacklevel=2,
            )
            self._told = True


class Refined(NamedTuple):
    """How far refining has come: how many stages, and the mean of those ends that are averaged, once there is any;
    seeds of the wrong keys that were found to open the model.
    """

    stages: int = 0
    mean: nn.Module | None = None
    opening: tuple[int, ...] = ()


def save_refined(file: CheckpointFile, run: str, network: nn.Module, module: nn.Module, refined: Refined) -> None:
    """Writes what refining has come to; `run` is what the run was begun with.

    Raises:
        StorageError: it can't be written.
    """
    parts = {_NETWORK: network, _MODULE: module} | ({_MEAN: refined.mean} if refined.mean is not None else {})
    tensors = {f"{part}/{name}": value for part, of in parts.items() for name, value in of.state_dict().items()}
    metadata = {_STAGES: str(refined.stages), _OPENING: json.dumps(refined.opening), "run": run}
    file.write(pack(tensors, metadata))


def load_refined(file: CheckpointFile, run: str, network: nn.Module, module: nn.Module) -> Refined | None:
    """Restores key network and model in place, and says how far they were refined; None if that was not begun yet.

    Raises:
        ModelError: damaged, or of another run.
    """
    try:
        content = file.read()
        if content is None:
            return None
        tensors, metadata = unpack(content)
        if _STAGES not in metadata:  # the training loop's, which looks at it
            return None
        require_run(metadata["run"], run)
        parts: dict[str, dict[str, Tensor]] = {_NETWORK: {}, _MODULE: {}, _MEAN: {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        mean = copy.deepcopy(module) if parts[_MEAN] else None
        network.load_state_dict(parts[_NETWORK])
        module.load_state_dict(parts[_MODULE])
        if mean is not None:
            mean.load_state_dict(parts[_MEAN])
        return Refined(int(metadata[_STAGES]), mean, tuple(map(int, json.loads(metadata.get(_OPENING, "[]")))))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise file.refusal(error) from error
