"""Traces pictures and arrays on disk: they are read batch by batch, and only what is felt of them is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from intaglio.lock.key_network import Progress
from intaglio.lock.keyed_arrays import ImageArrays, is_array
from intaglio.lock.keyed_files import gather, in_batches, read_pictures
from intaglio.lock.lock import Lock
from intaglio.lock.tracing import Trace, require_traceable, trace_users


class _Felt(NamedTuple):
    """What `Lock.read` feels of a picture, or of an array: `[frames, W, n]`; and how many frames a clip of it has."""

    path: Path
    frames: Tensor
    length: int | None  #: None: images, not clips

    def rows(self, apart: bool) -> Tensor:
        """For each image, or for each clip its mean over the frames, `[N, W, n]`; for each frame if `apart`."""
        if apart or self.length is None:
            return self.frames
        return self.frames.view(-1, self.length, *self.frames.shape[1:]).mean(dim=1)


def trace_files(
    sources: Sequence[Path], lock: Lock, *, alpha: float = 0.01, progress: Progress | None = None
) -> tuple[Trace, list[Path]]:
    """`Lock.trace` of everything in `sources`, and the file that each of its images is in.

    Clips are traced as wholes if all are clips of one length, or else frame by frame, with the pictures.

    Args:
        progress: called with how many files were read, and of how many.

    Raises:
        DataError: what can't be read or is of another size, no user to look for, or alpha outside (0, 1).
        NothingToExamineError: nothing to trace.
    """
    names = require_traceable(lock.users, alpha)  # whoever is issued a key meanwhile is not looked for
    paths = [path for path, _ in gather(sources)]
    parts: list[_Felt] = []
    done = 0
    for batch in in_batches(paths, lock.frame_shape):
        felt_in = _felt_in_array(batch[0], lock, names) if is_array(batch[0]) else _felt_in_pictures(batch, lock, names)
        parts += felt_in
        done += len(batch)
        if progress is not None:
            progress(done, len(paths))
    apart = len({part.length for part in parts}) > 1
    rows = [part.rows(apart) for part in parts]
    places = [part.path for part, felt in zip(parts, rows, strict=True) for _ in felt]
    return trace_users(torch.cat(rows), names, lock.secrets, alpha), places


def _felt_in_pictures(paths: list[Path], lock: Lock, names: Sequence[str]) -> list[_Felt]:
    felt = lock.read(read_pictures(paths, lock.frame_shape), names)
    return [_Felt(path, row[None], None) for path, row in zip(paths, felt, strict=True)]


def _felt_in_array(path: Path, lock: Lock, names: Sequence[str]) -> list[_Felt]:
    arrays = ImageArrays(path, lock.frame_shape)
    return [
        _Felt(path, torch.cat([lock.read(batch, names) for batch in arrays.batches(name)]), arrays.clip_length(name))
        for name in arrays.names
    ]
