"""Weights in safetensors files: the only weights format that is written here."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from intaglio.classifiers.sidecar import Sidecar, sidecar_path, write_sidecar
from intaglio.classifiers.weights import check_fits
from intaglio.errors import ModelError
from intaglio.files import write_bytes


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, on the CPU.

    Raises:
        ModelError: not a safetensors file, or a truncated one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OverflowError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated ({error})") from error


def save_classifier(module: nn.Module, path: Path | str, sidecar: Sidecar) -> None:
    """Writes a module's weights to `path` (.safetensors) and its side-car to `<stem>.intaglio.json` beside it.

    Shared tensors are written once under each name; both files are written atomically.

    Raises:
        ModelError: another suffix, no architecture in the side-car, or weights that aren't that architecture's.
        StorageError: the files can't be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: weights are written as .safetensors")
    if sidecar.architecture is None:
        raise ModelError(f"{path}: a side-car without an architecture could not be opened again")
    check_fits(sidecar.architecture, module.state_dict(), str(path))
    write_bytes(path, weights_file(module))
    write_sidecar(sidecar_path(path), sidecar)


def weights_file(module: nn.Module) -> bytes:
    """The bytes of the file that `save_classifier` writes: what a model's digest is taken of."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})
