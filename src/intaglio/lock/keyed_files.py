"""Keys pictures on disk: files, folders of files (the frames of a clip, for example), and arrays."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from intaglio.data.folder import SUFFIXES
from intaglio.data.picture import read_picture
from intaglio.errors import DataError, NothingToExamineError
from intaglio.files import require_writable, write_bytes
from intaglio.lock.frames import Frame, wrong_size
from intaglio.lock.key_network import Progress
from intaglio.lock.keyed_arrays import ARRAY_SUFFIXES, ImageArrays, Keying, is_array
from intaglio.triggers.batches import batch_size


def gather(sources: Sequence[Path], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Every picture and array among `sources`, and below those that are folders, with its name below its source.

    What lies in `out`, where that is a folder below a source, was made of the rest, and is left out; so is what is
    hidden by a dot before its name.

    Raises:
        DataError: a source that doesn't exist or is of another kind.
        NothingToExamineError: nothing found.
    """
    known = SUFFIXES | ARRAY_SUFFIXES
    found: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            made = _seen_below(source, out)
            files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in known)
            found += [
                (path, name)
                for path in files
                if not _hidden(name := path.relative_to(source)) and (made is None or made not in path.parents)
            ]
        elif not source.is_file():
            raise DataError(f"no such file or folder: {source}")
        elif source.suffix.lower() not in known:
            raise DataError(f"{source}: neither a picture nor an array ({', '.join(sorted(known))})")
        else:
            found.append((source, Path(source.name)))
    if not found:
        raise NothingToExamineError(f"no pictures in {', '.join(str(source) for source in sources)}")
    return found


def _hidden(name: Path) -> bool:
    """Whether it is one of the files that systems leave beside a user's own, such as `._a.png`."""
    return any(part.startswith(".") for part in name.parts)


def in_batches(paths: Sequence[Path], frame: Frame) -> Iterator[list[Path]]:
    """`paths` in their order: as many pictures at a time as are worked on at once, and each file of arrays alone."""
    for of_arrays, group in groupby(paths, is_array):
        members, size = list(group), 1 if of_arrays else batch_size(frame)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def read_pictures(paths: Sequence[Path], frame: Frame) -> Tensor:
    """Pictures as `[N, C, H, W]`, float32 in [0, 1].

    Grey pictures are widened to colour, and colour reduced to grey, where `frame` `(C, H, W)` wants it.

    Raises:
        DataError: damaged, or of another size.
    """
    return torch.stack([_read_picture(path, frame) for path in paths])


def key_files(
    sources: Sequence[Path], out: Path, frame: Frame, keying: Keying, *, progress: Progress | None = None
) -> list[Path]:
    """Writes a keyed copy of everything in `sources` below `out`: pictures as PNG, arrays as they came.

    The frames of a clip may be pictures in a folder: whatever is one by one is keyed one by one. Everything is read
    and checked before anything is written, and then read again batch by batch, so that no more than a batch of
    pictures, or one file of arrays, is held at a time.

    No file is overwritten in a folder that images are taken from. Elsewhere, copies that were keyed before are; so
    they are in an `out` below a source, whose content is not keyed (see `gather`).

    Args:
        progress: called with how many files were checked and keyed, and of how many; each counts twice.

    Raises:
        DataError: what can't be read, is of another size, two files that would become one, or one that must not be
            overwritten.
        NothingToExamineError: nothing to key.
        StorageError: `out` can't be written.
    """
    planned = _planned(gather(sources, out), out)
    targets = list(planned)
    require_writable(targets[0])
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, 2 * len(planned))

    for path in planned.values():
        _check(path, frame)
        advance(1)
    for batch in in_batches(targets, frame):
        if is_array(batch[0]):
            ImageArrays(planned[batch[0]], frame).write(batch[0], keying)
        else:
            _key_pictures([(planned[target], target) for target in batch], frame, keying)
        advance(len(batch))
    return targets


def _seen_below(source: Path, out: Path | None) -> Path | None:
    """`out` by its name below `source`; None where it is none of the folders in it."""
    if out is None or source.resolve() not in out.resolve().parents:
        return None
    return source / out.resolve().relative_to(source.resolve())


def _planned(found: Sequence[tuple[Path, Path]], out: Path) -> dict[Path, Path]:
    """What is to be written, and from which file."""
    inputs = {path.resolve() for path, _ in found}
    near = {folder for path, _ in found for folder in path.resolve().parents}
    planned: dict[Path, Path] = {}
    for path, name in found:
        target = out / (name if is_array(name) else name.with_suffix(".png"))
        if target in planned:
            raise DataError(f"{planned[target]} and {path} would both become {target}: key them into two folders")
        # Whatever lies beside an image to key, or above it, may be as much of an original, if not one of those to key.
        if target.resolve() in inputs or (target.exists() and target.parent.resolve() in near):
            raise DataError(f"{target} would be overwritten with the keyed copy of {path}: key it into another folder")
        planned[target] = path
    return planned


def _check(path: Path, frame: Frame) -> None:
    if is_array(path):
        ImageArrays(path, frame)
    else:
        _read_picture(path, frame)


def _key_pictures(pairs: Sequence[tuple[Path, Path]], frame: Frame, keying: Keying) -> None:
    keyed = keying(read_pictures([path for path, _ in pairs], frame))
    for (_, target), pixels in zip(pairs, (keyed * 255).round().to(torch.uint8), strict=True):
        write_bytes(target, _png(pixels))


def _read_picture(path: Path, frame: Frame) -> Tensor:
    image = read_picture(path, mode="L" if frame[0] == 1 else "RGB", whole=True).float() / 255
    if tuple(image.shape) != frame:
        raise DataError(f"{path}: {wrong_size(frame, image.shape)}")
    return image


def _png(pixels: Tensor) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()).save(
        stream, "PNG"
    )
    return stream.getvalue()
