"""NumPy archives: plain arrays, or JPEG bytes with offsets. Never unpickled."""

import itertools
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.data.images import UNLABELLED, ImageData
from intaglio.data.picture import read_picture
from intaglio.errors import DataError, one_line

MAX_BYTES = 16 * 2**30

#: What zipfile and what it unpacks with say of damaged archives; RuntimeError also of encrypted ones.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError)
#: How NumPy refuses to unpickle, and what it says of headers that are damaged, or declare what can't be.
DAMAGED_ARRAY = (
    ValueError, MemoryError, TokenError, SyntaxError, TypeError, OverflowError, AttributeError, LookupError,
)  # fmt: skip

#: Accepted names, in order of preference; `{s}` is the split.
IMAGE_KEYS = ("x_{s}", "{s}_images", "X_{s}", "images_{s}", "images", "x", "X", "data")
LABEL_KEYS = ("y_{s}", "{s}_labels", "Y_{s}", "labels_{s}", "labels", "y", "Y", "target")


def open_npz(path: Path, split: str) -> ImageData:
    """Reads images and labels of a split out of an `.npz`.

    Images: uint8 (divided by 255) or float32 in [0, 1], `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` with C of 1 or
    3, videos `[N, T, H, W, C]` or `[N, T, C, H, W]`; or JPEG/PNG bytes as `{split}_jpeg` uint8 with `{split}_offsets`
    int64 `[N + 1]`. Labels optional. An array `classes` of strings names the classes.

    Raises:
        DataError: damaged, over 16 GiB unpacked (pictures as float32), encrypted, holding pickled objects, or without
            images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_BYTES:
            raise DataError(f"{path}: unpacks to {unpacked} bytes, over the limit of {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            classes = tuple(str(name) for name in _array(arrays, "classes").flat) if "classes" in names else ()
            if f"{split}_jpeg" in names:
                images = _decode(_array(arrays, f"{split}_jpeg"), _array(arrays, f"{split}_offsets"), path)
            else:
                images = _to_nchw(_array(arrays, _first(path, names, IMAGE_KEYS, split)), path)
            keys = [key.format(s=split) for key in LABEL_KEYS if key.format(s=split) in names]
            labels = _array(arrays, keys[0]) if keys else np.full(len(images), UNLABELLED)
    except (*DAMAGED_ARCHIVE, KeyError) as error:
        raise DataError(f"{path}: damaged archive ({one_line(str(error))})") from error
    except DAMAGED_ARRAY as error:
        reason = one_line(str(error))
        raise DataError(f"{path}: can't be read without executing it, or damaged ({reason})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: expected {len(images)} integer labels, got {labels.dtype} {labels.shape}")
    if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: a label of {int(labels.max())} is no class")
    return ImageData(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes, str(path))


def _array(arrays: Mapping[str, Any], name: str) -> NDArray[Any]:
    value = arrays[name]
    if not isinstance(value, np.ndarray):  # numpy hands out the bytes of members that are no arrays
        raise ValueError(f"'{name}' is not an array")
    return value


def _first(path: Path, names: set[str], keys: tuple[str, ...], split: str) -> str:
    for key in keys:
        if key.format(s=split) in names:
            return key.format(s=split)
    wanted = ", ".join(key.format(s=split) for key in keys[:3])
    raise DataError(f"{path}: no images in it; it holds {', '.join(sorted(names))}, expected for example {wanted}")


def _decode(content: NDArray[Any], offsets: NDArray[Any], path: Path) -> NDArray[np.float32]:
    if content.dtype != np.uint8 or offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
        raise DataError(f"{path}: pictures need uint8 bytes and a list of integer offsets")
    raw = content.tobytes()
    pictures: list[NDArray[Any]] = []
    unpacked = 0
    for index, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        pictures.append(read_picture(raw[start:stop], name=f"{path}, picture {index}").numpy())
        unpacked += pictures[-1].size * np.dtype(np.float32).itemsize
        if unpacked > MAX_BYTES:  # a picture of one colour is a few bytes, and many entries may be of the same one
            raise DataError(f"{path}: its pictures unpack to more than {MAX_BYTES} bytes")
    if len({picture.shape for picture in pictures}) > 1:
        raise DataError(f"{path}: its pictures are of different sizes or channels")
    return (np.stack(pictures) / np.float32(255)).astype(np.float32)


def _to_nchw(images: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    if images.dtype not in (np.uint8, np.float32, np.float64):
        raise DataError(f"{path}: images are {images.dtype}, expected uint8 or float32")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim in (4, 5) and images.shape[-3] not in (1, 3) and images.shape[-1] in (1, 3):
        images = np.moveaxis(images, -1, -3)
    if images.ndim not in (4, 5) or images.shape[-3] not in (1, 3):
        raise DataError(f"{path}: images are {shape}, expected [N, H, W] or 1 or 3 channels before or after H and W")
    scaled = images.astype(np.float32)
    return np.ascontiguousarray(scaled / 255 if images.dtype == np.uint8 else scaled)
