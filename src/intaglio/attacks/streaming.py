"""Poisoning of stored videos, one clip in memory at a time."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from intaglio.attacks.attack import Attack
from intaglio.attacks.attack_record import AttackRecord
from intaglio.attacks.poisoned import Drawn, Listing, marked, poison_rates
from intaglio.attacks.poisoned_file import CLIP_FILES, CLIPS, SAMPLES, DataDigest, changes, require_place, write_record
from intaglio.attacks.quality import Quality, quality
from intaglio.attacks.sample_picture import sample_picture, showable
from intaglio.data import ImageData, VideoDataset
from intaglio.data.videos import Clip, ClipWriter, Skips, StoredClips
from intaglio.data.videos.dataset import MAX_BAD
from intaglio.errors import DataError, RecipeError
from intaglio.files import sha256_file, write_bytes
from intaglio.results import package_versions
from intaglio.triggers import Trigger

Source = VideoDataset | StoredClips


class _UnreadableError(Exception):
    """Some of the videos could not be read: what was written counts for nothing."""

    def __init__(self, read: set[int]) -> None:
        super().__init__("videos were skipped")
        self.read = read


class _Pass(NamedTuple):
    """What one pass over all clips saw."""

    drawn: Drawn
    digest: DataDigest
    quality: Quality
    #: Empty of clips that none can show.
    picture: bytes


def attack_clip_by_clip(attack: Attack, source: Source, out: Path, *, max_bad: int = MAX_BAD) -> AttackRecord:
    """What `attack_data` does to the same clips once they are loaded, in constant memory: the same files, byte by byte.

    A video that can't be read is left out; as samples are drawn from those that can, all is then read a second time.

    Raises:
        DataError: too many videos that can't be read, or clips of different sizes.
        RecipeError: an attack that needs all data at once, or what it can't do to these.
        StorageError: as `attack_data`.
    """
    started = time.perf_counter()
    triggers = attack.fixed_triggers()
    if triggers is None:
        raise RecipeError(f"{attack.name} needs all data at once: load them (open_data) instead of streaming them")
    require_place(out, source_name(source), clips=True, victim=False)
    order = list(range(len(source)))
    try:
        found = _poisoned(attack, triggers[0], source, order, out, Skips(max_bad))
    except _UnreadableError as error:
        order = [place for place in order if place in error.read]
        found = _poisoned(attack, triggers[0], source, order, out, Skips(0))
    drawn, before = found.drawn, _labels(source, order)
    names: tuple[str, ...] = CLIP_FILES
    if found.picture:
        write_bytes(out / SAMPLES, found.picture)
        names = (*names, SAMPLES)
    found.digest.add(before)
    rates = poison_rates(drawn.labels, len(drawn.payload), len(drawn.cover), attack.goal)
    payload = marked(drawn.payload, len(before))
    record = AttackRecord(
        attack=attack.describe(),
        trigger=triggers[1].describe(),
        goal=attack.goal.model_dump(),
        data=source_name(source),
        data_sha256=found.digest.hex(),
        samples=len(before),
        classes=source.classes,
        changes=changes(attack, before, drawn.labels, payload, payload | marked(drawn.cover, len(before))),
        poison_rate_whole=rates["whole"],
        poison_rate_target=rates["target_class"],
        cover_rate=rates["cover"],
        quality=found.quality,
        sha256={name: sha256_file(out / name) for name in names},
        victim=None,
        seconds=round(time.perf_counter() - started, 2),
        versions=package_versions(),
        skipped=len(source) - len(order),
    )
    write_record(record, out)
    return record


def _poisoned(attack: Attack, planted: Trigger, source: Source, order: Sequence[int], out: Path, skips: Skips) -> _Pass:
    """One pass: reads, alters and writes clip after clip.

    Raises:
        _UnreadableError: after the last clip, if any was skipped.
    """
    labels = _labels(source, order)
    classes = len(source.classes) or int(labels.max()) + 1
    drawn = attack.draw(Listing(labels, classes, True, source_name(source)))
    altered = set(drawn.payload.tolist()) | set(drawn.cover.tolist())
    digest, seen = DataDigest(), _Changes(set(drawn.payload.tolist()))
    clips = _stream(source, order, skips)
    first = next(clips)
    shape = first.pixels.shape
    read = set()
    with ClipWriter(out / CLIPS, "train", len(labels), tuple(shape), source.classes) as writer:
        places = iter(range(len(labels)))
        for clip in chain((first,), clips):
            read.add(clip.video)
            if skips.paths:
                continue  # this pass is lost, but it finds all that can't be read
            if clip.pixels.shape != shape:
                raise DataError(
                    f"{source_name(source)}: clips of {tuple(clip.pixels.shape)} and of {tuple(shape)}; "
                    "give one size to resize all to"
                )
            place = next(places)
            pixels = clip.pixels.float().div_(255)[None]
            digest.add(pixels)
            label = int(drawn.labels[place])
            if place not in altered:
                writer.add(clip.pixels, label)
                continue
            after = planted.apply(pixels)
            writer.add(after[0], label)
            seen.note(place, pixels, after)
        if skips.paths:
            raise _UnreadableError(read)
    return _Pass(drawn, digest, seen.quality(), seen.picture)


class _Changes:
    """What altered clips look like: mean quality, and a picture of the first."""

    def __init__(self, payload: set[int]) -> None:
        self._payload = payload
        self._found: list[Quality] = []
        self.picture = b""

    def note(self, place: int, before: Tensor, after: Tensor) -> None:
        """One clip `[1, T, C, H, W]`, before and after."""
        if place not in self._payload:
            return
        stored = (after * 255).round() / 255
        self._found.append(quality(before, stored))
        if not self.picture and showable(before):
            self.picture = sample_picture(before, stored)

    def quality(self) -> Quality:
        """The mean over clips, which are of one length."""
        count = len(self._found)
        return Quality(psnr=sum(q.psnr for q in self._found) / count, ssim=sum(q.ssim for q in self._found) / count)


def _labels(source: Source, order: Sequence[int]) -> Tensor:
    """The labels of all clips of these videos, int64 `[N]`."""
    labels = source.labels[torch.tensor(order)]
    if isinstance(source, VideoDataset) and not source.training:
        return labels.repeat_interleave(source.sampling.clips)
    return labels


def _stream(source: Source, order: Sequence[int], skips: Skips) -> Iterator[Clip]:
    return source.stream(skips=skips, order=order) if isinstance(source, VideoDataset) else source.stream()


def source_name(source: Source | ImageData) -> str:
    """What data are called: the path that they are from, or a task."""
    return source.videos.name if isinstance(source, VideoDataset) else source.name
