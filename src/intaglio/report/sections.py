"""What the page shows of one verdict: its headline, its histogram and its pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from intaglio.report.histogram import Histogram, draw_histogram
from intaglio.report.pictures import ColourScale, cells_of, data_uri, map_picture
from intaglio.report.wording import is_signature
from intaglio.scan.verdict import ClassEvidence, EncodedMaps, Place, Verdict

Tone = Literal["flagged", "clear", "uncertain"]


@dataclass(frozen=True)
class FramePicture:
    """One frame's map as a picture; `found` where the suspicious place is in this frame alone."""

    number: int
    picture: str
    found: bool


@dataclass(frozen=True)
class SignatureMap:
    """One class's map as a picture; of clips also one for each frame."""

    evidence: ClassEvidence
    class_name: str
    is_target: bool
    picture: str
    frames: tuple[FramePicture, ...]


@dataclass(frozen=True)
class Section:
    """One model's part of the report. `tone` is what colour and icon say; `badge` says it in words."""

    number: int
    name: str
    verdict: Verdict
    tone: Tone
    badge: str
    histogram: Histogram | None
    scale: ColourScale
    frame_scale: ColourScale | None
    maps: tuple[SignatureMap, ...]

    @property
    def anchor(self) -> str:
        """The section's id in the page; never made from a name, for names are untrusted."""
        return f"model-{self.number}"

    @property
    def target(self) -> str | None:
        """The target class as "7 (sneaker)", or None."""
        verdict = self.verdict
        if verdict.target_class is None:
            return None
        known = verdict.subject.classes
        return f"{verdict.target_class} ({known[verdict.target_class]})" if known else str(verdict.target_class)

    @property
    def target_frame(self) -> str | None:
        """Of clips, in which frame the target's place is; None without a target, or of images."""
        verdict = self.verdict
        if verdict.target_class is None or verdict.frame_maps is None:
            return None
        frame = next(entry.place.frame for entry in verdict.evidence if entry.index == verdict.target_class)
        return "in all frames alike" if frame is None else f"in frame {frame}"

    @property
    def one_pixel(self) -> bool:
        """Whether there are maps, and they are one-pixel signatures: other detectors' show something else."""
        return bool(self.maps) and is_signature(self.verdict.maps.variant)

    @property
    def p_value_is_lowest(self) -> bool:
        """Whether no model could have got a lower p-value from so few clean models."""
        return p_value_is_lowest(self.verdict)


def lowest_p_value(verdict: Verdict) -> float | None:
    """What no p-value against the verdict's clean models is below; None without any.

    1 / (n + 1); of several tasks the largest rank counts, and the smallest task has at most an even share of the n.
    """
    calibration = verdict.calibration
    clean = len(calibration.clean_scores)
    return 1 / (clean // max(1, len(calibration.tasks)) + 1) if clean else None


def p_value_is_lowest(verdict: Verdict) -> bool:
    """Whether the model's p-value is the lowest that any could have got.

    How many clean models each of several tasks has is not kept: there it is told by a score above all of theirs, and
    by a p-value of one in a whole number.
    """
    lowest, calibration = lowest_p_value(verdict), verdict.calibration
    if lowest is None or len(calibration.tasks) < 2:
        return lowest is not None and verdict.p_value <= lowest
    among = 1 / verdict.p_value
    return verdict.score > max(calibration.clean_scores) and math.isclose(among, round(among), rel_tol=1e-9)


def build_sections(verdicts: Sequence[Verdict]) -> list[Section]:
    """One section per verdict, in their order."""
    names = _short_names([verdict.subject.source for verdict in verdicts])
    return [_section(number, *pair) for number, pair in enumerate(zip(names, verdicts, strict=True), start=1)]


def _section(number: int, name: str, verdict: Verdict) -> Section:
    by_class = _by_class(verdict.maps)
    frames = {} if verdict.frame_maps is None else _by_class(verdict.frame_maps)
    scale = ColourScale.spanning(verdict.maps.decode())
    frame_scale = None if verdict.frame_maps is None else ColourScale.spanning(verdict.frame_maps.decode())
    height, width = verdict.subject.input_shape[-2:]
    tone, badge = _tone(verdict)
    lowest = lowest_p_value(verdict)
    histogram = draw_histogram(verdict.calibration.clean_scores, verdict.score, verdict.alpha)
    if histogram is not None and lowest is not None and verdict.alpha < lowest:
        histogram = replace(histogram, threshold=None)  # it ranks by task, where fewer are
    return Section(
        number=number,
        name=name,
        verdict=verdict,
        tone=tone,
        badge=badge,
        histogram=histogram,
        scale=scale,
        frame_scale=frame_scale,
        maps=tuple(
            SignatureMap(
                evidence=entry,
                class_name=verdict.subject.class_name(entry.index),
                is_target=entry.index == verdict.target_class,
                picture=data_uri(
                    map_picture(values, scale, cells_of(entry.place, (height, width), (len(values), len(values[0]))))
                ),
                frames=()
                if frame_scale is None or entry.index not in frames
                else _frame_pictures(frames[entry.index], frame_scale, entry.place, (height, width)),
            )
            for entry in verdict.evidence
            if (values := by_class.get(entry.index)) is not None
        ),
    )


def _by_class(maps: EncodedMaps) -> dict[int, NDArray[np.float32]]:
    return dict(zip(maps.classes, maps.decode(), strict=True))


def _frame_pictures(
    maps: NDArray[np.float32], scale: ColourScale, place: Place, size: tuple[int, int]
) -> tuple[FramePicture, ...]:
    """A picture of each of `maps` `[T, rows, columns]`; the box is drawn in the one frame that the place is in."""
    rows, columns = maps.shape[1:]
    box = cells_of(place, size, (rows, columns))
    return tuple(
        FramePicture(
            number=number,
            picture=data_uri(map_picture(values, scale, box if number == place.frame else None)),
            found=number == place.frame,
        )
        for number, values in enumerate(maps)
    )


def _tone(verdict: Verdict) -> tuple[Tone, str]:
    if not verdict.flagged and p_value_is_lowest(verdict):
        return "uncertain", "Can't be decided at this alpha"
    if not verdict.calibrated:
        return "uncertain", "Flagged, but not calibrated" if verdict.flagged else "Not flagged, and not calibrated"
    return ("flagged", "Flagged") if verdict.flagged else ("clear", "Not flagged")


def _short_names(sources: list[str]) -> list[str]:
    """The last part of each path, or the whole of it where that is empty or not unique."""
    names = [PurePath(source).name for source in sources]
    return [name if name and names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]
