"""What is written of an attack: the poisoned samples without loss, which of them were changed, and digests."""

import hashlib
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
from intaglio.errors import StorageError
from intaglio.files import write_bytes, write_text

POISONED, MANIFEST, SAMPLES, VICTIM = "poisoned.npz", "manifest.json", "samples.png", "victim.safetensors"
#: Where clips go, and the files that `ClipWriter` makes of them.
CLIPS = "poisoned"
CLIP_FILES = (f"{CLIPS}/train_clips.npy", f"{CLIPS}/train_labels.npy")


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
    victim = {VICTIM, sidecar_path(Path(VICTIM)).name} if record.victim else set()
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
