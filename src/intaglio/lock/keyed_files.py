"""Keys pictures on disk: files, folders of files (the frames of a clip, for example), and arrays."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from intaglio.data.folder import SUFFIXES
from intaglio.data.picture import read_picture
from intaglio.errors import DataError, NothingToExamineError
from intaglio.files import write_bytes
from intaglio.lock.frames import Frame, frames, wrong_size
from intaglio.lock.keyed_arrays import ARRAY_SUFFIXES, ImageArrays, Keying


def gather(sources: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every picture and array among `sources`, and below those that are folders, with its name below its source.

    Raises:
        DataError: a source that doesn't exist or is of another kind.
        NothingToExamineError: nothing found.
    """
    known = SUFFIXES | ARRAY_SUFFIXES
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


def read_images(path: Path, frame: Frame) -> Tensor:
    """One picture as `[1, C, H, W]`, or an array's images `[N, C, H, W]` or clips `[N, T, C, H, W]`, float32 in [0, 1].

    Arrays: see `ImageArrays`; of several in one file, all images or frames. Grey pictures are widened to colour, and
    colour reduced to grey, where `frame` `(C, H, W)` wants it.

    Raises:
        DataError: damaged, or of another size.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return _read_picture(path, frame)
    return torch.cat(_alike(ImageArrays(path, frame).images))


def read_all(paths: Sequence[Path], frame: Frame) -> list[Tensor]:
    """`read_images` of every file; as frames, if they are not all images, or all clips of one length.

    Raises:
        DataError: damaged, or of another size.
    """
    return _alike([read_images(path, frame) for path in paths])


def key_files(sources: Sequence[Path], out: Path, frame: Frame, keying: Keying) -> list[Path]:
    """Writes a keyed copy of everything in `sources` below `out`: pictures as PNG, arrays as they came.

    The frames of a clip may be pictures in a folder: whatever is one by one is keyed one by one. Everything is read
    before anything is written.

    Raises:
        DataError: what can't be read, is of another size, two files that would become one, or one that
            would be overwritten.
        NothingToExamineError: nothing to key.
        StorageError: `out` can't be written.
    """
    found: dict[Path, tuple[Path, Tensor | ImageArrays]] = {}
    for path, name in gather(sources):
        is_array = name.suffix.lower() in ARRAY_SUFFIXES
        target = out / (name if is_array else name.with_suffix(".png"))
        if target in found:
            raise DataError(f"{found[target][0]} and {path} would both become {target}: key them into two folders")
        if target.exists() and target.samefile(path):
            raise DataError(f"{path} would be overwritten with its keyed copy: key it into another folder")
        found[target] = (path, ImageArrays(path, frame) if is_array else _read_picture(path, frame))
    for target, (_, content) in found.items():
        if isinstance(content, ImageArrays):
            content.write(target, keying)
        else:
            write_bytes(target, _png((keying(content) * 255).round().to(torch.uint8)[0]))
    return list(found)


def _read_picture(path: Path, frame: Frame) -> Tensor:
    image = read_picture(path, mode="L" if frame[0] == 1 else "RGB")[None].float() / 255
    if tuple(image.shape[1:]) != frame:
        raise DataError(f"{path}: {wrong_size(frame, image.shape[1:])}")
    return image


def _alike(parts: list[Tensor]) -> list[Tensor]:
    return parts if len({part.shape[1:] for part in parts}) == 1 else [frames(part) for part in parts]


def _png(pixels: Tensor) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()).save(
        stream, "PNG"
    )
    return stream.getvalue()
