"""The IDX format of MNIST and its descendants: a small header, then raw bytes; often gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intaglio.data.images import ImageData
from intaglio.errors import DataError

#: More than this is not an image data set that fits in memory, but a damaged or hostile header.
MAX_BYTES = 2 * 2**30
MAX_DIMENSIONS = 4
CHUNK = 2**24


def read_idx(path: Path | str) -> Tensor:
    """The uint8 array in an IDX file, gzipped or not, with the shape its header declares.

    Raises:
        DataError: not IDX, not uint8, shorter or longer than its header says.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            magic = stream.read(4)
            if len(magic) != 4 or magic[:3] != b"\0\0\x08":
                raise DataError(f"{path}: not an IDX file of bytes (its header is {magic.hex() or 'empty'})")
            if magic[3] > MAX_DIMENSIONS:
                raise DataError(f"{path}: its header declares {magic[3]} dimensions, more than {MAX_DIMENSIONS}")
            shape = struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3]))
            size = int(np.prod(shape, dtype=object))
            if size > MAX_BYTES:
                raise DataError(f"{path}: its header declares {size} bytes, over the limit of {MAX_BYTES}")
            content = bytearray()
            while len(content) <= size and (chunk := stream.read(min(CHUNK, size + 1 - len(content)))):
                content += chunk  # in chunks: a header that lies costs no more memory than the file holds
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DataError(f"{path}: damaged or cut short ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(content) != size:
        raise DataError(f"{path}: holds {'more' if len(content) > size else 'fewer'} bytes than the {size} it declares")
    if not size:
        raise DataError(f"{path}: holds nothing, of the shape {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def write_idx(array: Tensor) -> bytes:
    """A uint8 tensor as gzipped IDX; the same tensor gives the same bytes."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.contiguous().numpy().tobytes(), compresslevel=9, mtime=0)


def open_idx_folder(folder: Path, split: str, classes: tuple[str, ...] = ()) -> ImageData:
    """Reads `train-` or `t10k-images-idx3-ubyte[.gz]` and the labels beside it.

    Raises:
        DataError: a file is missing or damaged, or images and labels differ in number.
    """
    prefix = "train" if split == "train" else "t10k"
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        names = [folder / f"{prefix}-{kind}-ubyte{suffix}" for suffix in (".gz", "")]
        path = next((name for name in names if name.is_file()), None)
        if path is None:
            raise DataError(f"{folder}: {names[0].name} is missing")
        found.append(read_idx(path))
    images, labels = found
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{folder}: {tuple(images.shape)} images do not fit {tuple(labels.shape)} labels")
    return ImageData(images[:, None].float() / 255, labels.long(), classes, str(folder))
