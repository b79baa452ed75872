"""Keys pictures on disk: files, folders of files, and arrays."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from intaglio.data.folder import SUFFIXES
from intaglio.data.picture import read_picture
from intaglio.errors import DataError, NothingToExamineError
from intaglio.files import atomic_path, write_bytes

ARRAY_SUFFIX = ".npy"

#: Images `[N, C, H, W]` -> keyed images of the same shape.
Keying = Callable[[Tensor], Tensor]


def gather(sources: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every picture and array among `sources`, and below those that are folders, with its name below its source.

    Raises:
        DataError: a source that doesn't exist or is of another kind.
        NothingToExamineError: nothing found.
    """
    known = SUFFIXES | {ARRAY_SUFFIX}
    found: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in known)
            found += [(path, path.relative_to(source)) for path in files]
        elif not source.is_file():
            raise DataError(f"no such file or folder: {source}")
        elif source.suffix.lower() not in known:
            raise DataError(f"{source}: neither a picture nor an array ({', '.join(sorted(known))})")
        else:
            found.append((source, Path(source.name)))
    if not found:
        raise NothingToExamineError(f"no pictures in {', '.join(str(source) for source in sources)}")
    return found


def read_images(path: Path, input_shape: tuple[int, int, int]) -> Tensor:
    """One picture as `[1, C, H, W]`, or an array of images `[N, C, H, W]` or `[C, H, W]`, float32 in [0, 1].

    Arrays are `.npy` files of uint8 (divided by 255) or of float32. Grey pictures are widened to colour, and colour
    reduced to grey, where `input_shape` wants it.

    Raises:
        DataError: damaged, or of another size.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        images = _read_array(path)
    else:
        images = read_picture(path, mode="L" if input_shape[0] == 1 else "RGB")[None].float() / 255
    if tuple(images.shape[1:]) != input_shape:
        wanted, found = ("x".join(str(side) for side in shape) for shape in (input_shape, images.shape[1:]))
        raise DataError(f"{path}: is {found}, but this lock is for images of {wanted} (channels x height x width)")
    return images


def key_files(sources: Sequence[Path], out: Path, input_shape: tuple[int, int, int], keying: Keying) -> list[Path]:
    """Writes a keyed copy of everything in `sources` below `out`: pictures as PNG, arrays as they came.

    Everything is read before anything is written.

    Raises:
        DataError: what can't be read, is of another size, or two files that would become one.
        NothingToExamineError: nothing to key.
        StorageError: `out` can't be written.
    """
    batches: dict[Path, tuple[Path, Tensor]] = {}
    for path, name in gather(sources):
        target = out / (name if name.suffix.lower() == ARRAY_SUFFIX else name.with_suffix(".png"))
        if target in batches:
            raise DataError(f"{batches[target][0]} and {path} would both become {target}: key them into two folders")
        batches[target] = (path, read_images(path, input_shape))
    for target, (path, images) in batches.items():
        keyed = (keying(images) * 255).round().to(torch.uint8)
        if target.suffix == ".png":
            write_bytes(target, _png(keyed[0]))
        else:
            _write_like(path, target, keyed)
    return list(batches)


def _read_array(path: Path) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array that can be read without executing it ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype not in (np.uint8, np.float32) or values.ndim not in (3, 4):
        raise DataError(f"{path}: expected uint8 or float32 images [N, C, H, W]")
    images = torch.from_numpy(values).float() / (255 if values.dtype == np.uint8 else 1)
    return images if images.ndim == 4 else images[None]


def _write_like(source: Path, target: Path, keyed: Tensor) -> None:
    original = np.load(source, allow_pickle=False)
    values = keyed.numpy().reshape(original.shape)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, values if original.dtype == np.uint8 else values.astype(np.float32) / 255, allow_pickle=False)


def _png(pixels: Tensor) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()).save(
        stream, "PNG"
    )
    return stream.getvalue()
