"""What is written of an attack: the poisoned samples without loss, which of them were changed, and digests."""

import hashlib
import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from intaglio.attacks.attack import Attack
from intaglio.attacks.attack_record import AttackRecord, Change
from intaglio.classifiers.sidecar import sidecar_path
from intaglio.data import ImageData
from intaglio.data.videos import ClipWriter
from intaglio.data.videos.storage import holds_stored_clips
from intaglio.errors import StorageError
from intaglio.files import require_other, require_writable, write_bytes, write_text

POISONED, MANIFEST, SAMPLES, VICTIM = "poisoned.npz", "manifest.json", "samples.png", "victim.safetensors"
#: Where clips go, and the files that `ClipWriter` makes of them.
CLIPS = "poisoned"
CLIP_FILES = (f"{CLIPS}/train_clips.npy", f"{CLIPS}/train_labels.npy")
_VICTIM_FILES = (VICTIM, sidecar_path(Path(VICTIM)).name)
#: What every version of the manifest holds.
_RECORDED = {"attack", "trigger", "goal", "data_sha256", "sha256"}


def require_place(out: Path, *sources: str, clips: bool, victim: bool) -> None:
    """Fails before the work if an attack can't write its files into the folder `out`, or would lose others by it.

    Args:
        sources: names of the data sets that are read; those that are no paths are passed over.
        clips: whether clips will be written, not images.
        victim: whether a victim will be.

    Raises:
        StorageError: the folder can't be written; a file to be written, or to be removed with an earlier attack, is one
            of the sources or lies in a folder of theirs; or there is a manifest of something else.
    """
    written = {MANIFEST, SAMPLES, *(CLIP_FILES if clips else (POISONED,)), *(_VICTIM_FILES if victim else ())}
    for name in sorted(written):
        require_writable(out / name)
    before = _named_before(out / MANIFEST)
    for source in sources:
        for name in sorted(written | before):
            require_other(out / name, source)
            if _holds(source, out / name, ours=name in before or name == MANIFEST):
                raise StorageError(
                    f"can't write {out / name}: it is there already, in {source}, which is read here; choose another "
                    "folder"
                )
    if os.path.lexists(out / MANIFEST) and not _is_record(out / MANIFEST):
        raise StorageError(f"can't write {out / MANIFEST}: what is there is no attack's record; choose another folder")


def _holds(folder: str, path: Path, *, ours: bool) -> bool:
    """Whether a file is in a folder of data, and perhaps of them: pictures or videos may have any name.

    Stored clips have theirs, whoever wrote them; of the rest, what an attack wrote (`ours`) is not the data.
    """
    if not os.path.isdir(folder) or not path.is_file():
        return False
    if holds_stored_clips(Path(folder)):
        return path.suffix == ".npy" and path.parent.samefile(folder)
    return not ours and path.resolve().is_relative_to(Path(folder).resolve())


def _is_record(manifest: Path) -> bool:
    """Whether a file looks like the manifest of an attack, of whichever version."""
    try:
        document = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.keys() >= _RECORDED


def written_set(data: ImageData, out: Path) -> tuple[str, ...]:
    """Writes a poisoned set into the folder `out` and returns the names of its files; `open_data` reads it.

    Images become `poisoned.npz`; clips uint8 arrays in the folder `poisoned`.
    """
    if data.images.ndim == 4:
        write_bytes(out / POISONED, _archive(data))
        return (POISONED,)
    with ClipWriter(out / CLIPS, "train", len(data), data.input_shape, data.classes) as writer:
        for clip, label in zip(data.images, data.labels.tolist(), strict=True):
            writer.add(clip, label)
    return CLIP_FILES


def write_record(record: AttackRecord, out: Path) -> None:
    """Writes the manifest; what an earlier attack's manifest in `out` names, and this one doesn't, is removed.

    Raises:
        StorageError: it can't be.
    """
    before = _named_before(out / MANIFEST)
    write_text(out / MANIFEST, record.to_json())
    for name in sorted(before - _named(record)):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"can't remove {out / name}, of an attack before this: {error.strerror}") from error


def _named_before(manifest: Path) -> set[str]:
    """The files that a manifest names; none where there is none that can be read."""
    try:
        return _named(AttackRecord.model_validate_json(manifest.read_bytes()))
    except (OSError, ValidationError):
        return set()


def _named(record: AttackRecord) -> set[str]:
    """The files that a record names, of those that an attack writes."""
    victim = set(_VICTIM_FILES) if record.victim else set()
    return victim | ({POISONED, SAMPLES, *CLIP_FILES} & set(record.sha256))


def changes(attack: Attack, before: Tensor, after: Tensor, payload: Tensor, poisoned: Tensor) -> tuple[Change, ...]:
    """Which samples were changed to what end, from labels `[N]` before and after and boolean masks `[N]`."""
    label = "altered, its label as it was" if attack.clean_label else "carries the trigger and the wanted label"
    reasons = {
        "poisoned": (payload, f"teaches the wanted answer: {label}"),
        "cover": (poisoned & ~payload, "teaches when not to answer: carries a trigger, label kept"),
    }
    return tuple(
        Change(
            role=role,
            why=why,
            indices=tuple(mask.nonzero().flatten().tolist()),
            labels_before=tuple(before[mask].tolist()),
            labels_after=tuple(after[mask].tolist()),
        )
        for role, (mask, why) in reasons.items()
        if bool(mask.any())
    )


class DataDigest:
    """SHA-256 of all images as float32, in their order, and then of all labels as int64."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, tensor: Tensor) -> None:
        """The next images, or, at the end, the labels."""
        self._digest.update(tensor.contiguous().numpy().tobytes())

    def hex(self) -> str:
        """Of what was added so far."""
        return self._digest.hexdigest()

    @classmethod
    def of(cls, data: ImageData) -> str:
        """Of a whole set."""
        digest = cls()
        digest.add(data.images)
        digest.add(data.labels)
        return digest.hex()


def _archive(data: ImageData) -> bytes:
    """A set as `.npz`, images as uint8 `[N, C, H, W]`; the same set gives the same bytes."""
    arrays = {
        "x_train": (data.images * 255).round().numpy().astype(np.uint8),
        "y_train": data.labels.numpy(),
    }
    if data.classes:
        arrays["classes"] = np.array(data.classes)
    stream = BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
