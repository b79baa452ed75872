"""What the page shows of one verdict: its headline, its histogram and its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from intaglio.report.histogram import Histogram, draw_histogram
from intaglio.report.pictures import ColourScale, cells_of, data_uri, map_picture
from intaglio.scan.verdict import ClassEvidence, Verdict

Tone = Literal["flagged", "clear", "uncertain"]


@dataclass(frozen=True)
class SignatureMap:
    """One class's map as a picture."""

    evidence: ClassEvidence
    class_name: str
    is_target: bool
    picture: str


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
    def p_value_is_lowest(self) -> bool:
        """Whether no model could have got a lower p-value from so few clean models."""
        clean = len(self.verdict.calibration.clean_scores)
        return clean > 0 and self.verdict.p_value <= 1 / (clean + 1)


def build_sections(verdicts: Sequence[Verdict]) -> list[Section]:
    """One section per verdict, in their order."""
    names = _short_names([verdict.subject.source for verdict in verdicts])
    return [_section(number, *pair) for number, pair in enumerate(zip(names, verdicts, strict=True), start=1)]


def _section(number: int, name: str, verdict: Verdict) -> Section:
    maps = verdict.maps.decode()
    scale = ColourScale.spanning(maps)
    by_class = dict(zip(verdict.maps.classes, maps, strict=True))
    height, width = verdict.subject.input_shape[-2:]
    tone, badge = _tone(verdict)
    return Section(
        number=number,
        name=name,
        verdict=verdict,
        tone=tone,
        badge=badge,
        histogram=draw_histogram(verdict.calibration.clean_scores, verdict.score, verdict.alpha),
        scale=scale,
        maps=tuple(
            SignatureMap(
                evidence=entry,
                class_name=verdict.subject.class_name(entry.index),
                is_target=entry.index == verdict.target_class,
                picture=data_uri(
                    map_picture(values, scale, cells_of(entry.place, (height, width), (len(values), len(values[0]))))
                ),
            )
            for entry in verdict.evidence
            if (values := by_class.get(entry.index)) is not None
        ),
    )


def _tone(verdict: Verdict) -> tuple[Tone, str]:
    if not verdict.calibrated:
        return "uncertain", "Flagged, but not calibrated" if verdict.flagged else "Not flagged, and not calibrated"
    return ("flagged", "Flagged") if verdict.flagged else ("clear", "Not flagged")


def _short_names(sources: list[str]) -> list[str]:
    """The last part of each path, or the whole of it where that is empty or not unique."""
    names = [PurePath(source).name for source in sources]
    return [name if name and names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]
