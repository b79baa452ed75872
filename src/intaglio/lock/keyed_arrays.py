"""Keys images and clips that are kept as NumPy arrays: a `.npy` of nothing else, or the pictures of an `.npz`."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intaglio.data.images import check_images
from intaglio.data.npz import IMAGE_KEYS, MAX_BYTES
from intaglio.errors import DataError
from intaglio.files import atomic_path
from intaglio.lock.frames import Frame, wrong_size
from intaglio.triggers.batches import batch_size

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
#: What the one array of an `.npy` is called here.
_ALONE = "images"
_PICTURES = frozenset(key.format(s=split) for key in IMAGE_KEYS for split in ("train", "test"))
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,  # a header that says more than there is
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

#: Images `[N, C, H, W]`, or clips `[N, T, C, H, W]` -> the same, keyed.
Keying = Callable[[Tensor], Tensor]


def is_array(path: Path) -> bool:
    """Whether a file is one of arrays, by its suffix."""
    return path.suffix.lower() in ARRAY_SUFFIXES


class ImageArrays:
    """The arrays of one file; those that `open_data` would take for images are checked, and can be keyed.

    Images are uint8 or float32 `[..., C, H, W]` or `[..., H, W, C]` (grey also `[..., H, W]`), one or many, or clips.

    Args:
        frame: `(C, H, W)` of one image, or of one frame of a clip.

    Raises:
        DataError: damaged, over 16 GiB unpacked, holding objects, without images, or with some of another size
            or range.
    """

    def __init__(self, path: Path, frame: Frame) -> None:
        self.path = path
        self._frame = frame
        self._arrays = _read(path)
        #: Of the arrays of images.
        self.names = [name for name in self._arrays if name in _PICTURES]
        if not self.names:
            raise DataError(f"{path}: no images in it; it holds {', '.join(sorted(self._arrays)) or 'nothing'}")
        for name in self.names:
            for _ in self.batches(name):  # which are checked as they come
                pass

    def batches(self, name: str) -> Iterator[Tensor]:
        """One array's images, or the frames of its clips, float32 `[B, C, H, W]`, as many at a time as are keyed."""
        values = self._channels_first(name).reshape(-1, *self._frame)
        for part in torch.split(torch.from_numpy(values), batch_size(self._frame)):
            images = part.contiguous().float() / (255 if values.dtype == np.uint8 else 1)
            check_images(images, str(self.path))
            yield images

    def clip_length(self, name: str) -> int | None:
        """How many frames each clip of an array has; None if they are images."""
        shape = self._channels_first(name).shape
        return shape[1] if len(shape) == 5 else None

    def write(self, target: Path, keying: Keying) -> None:
        """The same file with its images keyed, in the types and shapes that they came in.

        Raises:
            StorageError: it can't be written.
        """
        arrays = {name: self._rewritten(name, keying) if name in self.names else values
                  for name, values in self._arrays.items()}  # fmt: skip
        with atomic_path(target) as temporary, temporary.open("wb") as stream:
            if self.path.suffix.lower() == ".npy":
                np.save(stream, arrays[_ALONE], allow_pickle=False)
                return
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, values in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, values, allow_pickle=False)

    def _channels_first(self, name: str) -> NDArray[Any]:
        values = self._arrays[name]
        if values.dtype not in (np.uint8, np.float32) or values.ndim < 2:
            raise DataError(f"{self.path}: expected uint8 or float32 images [N, C, H, W]")
        channels, height, width = self._frame
        if values.shape[-3:] == self._frame:
            found = values
        elif values.shape[-3:] == (height, width, channels):
            found = np.moveaxis(values, -1, -3)
        elif channels == 1 and values.ndim <= 3 and values.shape[-2:] == (height, width):
            found = values[..., None, :, :]
        else:
            raise DataError(f"{self.path}: {wrong_size(self._frame, values.shape[-3:])}")
        if found.ndim > 5:
            raise DataError(f"{self.path}: expected images [N, C, H, W] or clips [N, T, C, H, W], got {values.shape}")
        return found

    def _rewritten(self, name: str, keying: Keying) -> NDArray[Any]:
        original = self._arrays[name]
        first = np.empty(self._channels_first(name).shape, np.uint8)
        frames, done = first.reshape(-1, *self._frame), 0
        for batch in self.batches(name):
            frames[done : done + len(batch)] = (keying(batch) * 255).round().to(torch.uint8).numpy()
            done += len(batch)
        last = original.shape[-3:] != self._frame and original.shape == np.moveaxis(first, -3, -1).shape
        values = (np.moveaxis(first, -3, -1) if last else first).reshape(original.shape)
        return np.ascontiguousarray(values if original.dtype == np.uint8 else values.astype(np.float32) / 255)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.suffix.lower() == ".npy":
            found = {_ALONE: np.load(path, allow_pickle=False)}
        else:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MAX_BYTES:
                raise DataError(f"{path}: unpacks to {unpacked} bytes, over the limit of {MAX_BYTES}")
            with np.load(path, allow_pickle=False) as loaded:
                found = {name: loaded[name] for name in loaded.files}
    except _DAMAGED as error:
        raise DataError(f"{path}: not an array that can be read without executing it ({error})") from error
    if not all(isinstance(values, np.ndarray) for values in found.values()):  # an `.npz` called `.npy`, other bytes
        raise DataError(f"{path}: holds something that is no array")
    return found
