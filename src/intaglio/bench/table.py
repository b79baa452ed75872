"""The table of a bench: how well each detector tells each attack's victims from clean models."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from intaglio.bench.cells import Cell
from intaglio.bench.recipe import CLEAN, BenchRecipe
from intaglio.bench.victims import VictimRecord
from intaglio.errors import one_line
from intaglio.evidence.statistics import Interval, auroc, proportion
from intaglio.files import write_text
from intaglio.results import Result, package_versions
from intaglio.scan import ScoreDetector
from intaglio.scan.scanning import make_detector
from intaglio.scan.verdict import ErrorRate

#: A backdoor that works: what most detectors are made for.
WORKING = 0.9
ALPHA = 0.05
#: The version of a package where a model or a cell doesn't say: those from before it was kept.
_UNKNOWN = "unknown"


class Estimate(Result):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        """The same, rounded to 4 digits."""
        return cls(**{name: round(float(value), 4) for name, value in interval._asdict().items()})


class AttackSummary(Result):
    """A row's attack: means over its victims. `working` of them reach an attack success rate of 0.9."""

    row: str
    victims: int
    failed: int
    reasons: tuple[str, ...]
    working: int
    clean_accuracy: float | None
    accuracy_loss: float | None
    asr: float | None
    asr_unpoisoned: float | None
    robust_accuracy: float | None
    poison_rate: float | None
    target_class_rate: float | None
    psnr: float | None
    ssim: float | None


class Entry(Result):
    """One attack against one detector: AUROC against the clean models, over all victims and over working ones.

    `models` are the victims that it scored, of the row's `victims`; `failed` cells could not be filled, others aren't
    yet. `of` says what was compared: scores, or p-values where scores are of several kinds. `named` is the share of
    victims whose target is the detector's first guess.
    """

    row: str
    detector: str
    models: int
    victims: int | None = None  #: older tables don't say
    failed: int
    of: Literal["scores", "p-values"] = "scores"
    auroc: Estimate | None
    auroc_working: Estimate | None
    named: float | None


class DetectorSummary(Result):
    """A detector: costs a model (medians), and its false alarms among clean models where its p-value is calibrated.

    `mean_auroc` is that over all rows; None unless it has an AUROC in each: over fewer it would compare other rows.
    `peak_memory_mb` is that of the whole process while the detector ran (see `Cell`); None where no system could say.
    """

    detector: str
    clean_models: int
    failed: int
    reasons: tuple[str, ...]
    false_alarms: ErrorRate | None
    seconds: float | None
    queries: float | None
    peak_memory_mb: float | None
    mean_auroc: float | None


class BenchTable(Result):
    """All of it against all of it."""

    kind: str = "intaglio.bench/1"
    name: str
    task: str
    attacks: tuple[AttackSummary, ...]
    detectors: tuple[DetectorSummary, ...]
    entries: tuple[Entry, ...]
    versions: dict[str, str]

    def entry(self, row: str, detector: str) -> Entry:
        """One cell of the table."""
        return next(entry for entry in self.entries if (entry.row, entry.detector) == (row, detector))

    def write(self, out: Path) -> None:
        """Writes `table.json`, `table.md` and the picture `table.svg`."""
        for name in ("md", "svg"):
            write_text(out / f"table.{name}", _templates().get_template(f"table.{name}.j2").render(table=self))
        write_text(out / "table.json", self.to_json())


def make_table(recipe: BenchRecipe, victims: Sequence[VictimRecord], cells: Sequence[Cell]) -> BenchTable:
    """The table of finished models and cells."""
    clean = [victim for victim in victims if victim.row == CLEAN]
    targets = {(victim.row, victim.index): victim.target for victim in victims}
    asr = {(victim.row, victim.index): victim.asr or 0.0 for victim in victims}
    by_key: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_key.setdefault((cell.row, cell.detector), []).append(cell)
    measured = {detector for detector in recipe.detectors if _measures(detector)}
    entries = []
    for row in recipe.attacks:
        for detector in recipe.detectors:
            mine = by_key.get((row.title, detector), [])
            scored = [cell for cell in mine if cell.score is not None]
            negative = [cell for cell in by_key.get((CLEAN, detector), []) if cell.score is not None]
            comparable = detector in measured or len({cell.by for cell in (*scored, *negative)}) <= 1
            working = [cell for cell in scored if asr[cell.row, cell.index] >= WORKING]
            aimed = [cell for cell in scored if targets[cell.row, cell.index] is not None]
            entries.append(
                Entry(
                    row=row.title,
                    detector=detector,
                    models=len(scored),
                    victims=recipe.models,
                    failed=len(mine) - len(scored),
                    of="scores" if comparable else "p-values",
                    auroc=_auroc(scored, negative, comparable=comparable),
                    auroc_working=_auroc(working, negative, comparable=comparable),
                    named=_mean([float(cell.guess == targets[cell.row, cell.index]) for cell in aimed]),
                )
            )
    return BenchTable(
        name=recipe.name,
        task=recipe.task,
        attacks=tuple(
            _attack(row.title, [victim for victim in victims if victim.row == row.title], clean)
            for row in recipe.attacks
        ),
        detectors=tuple(_detector(name, by_key.get((CLEAN, name), []), entries) for name in recipe.detectors),
        entries=tuple(entries),
        versions=_versions([*victims, *cells]),
    )


def _versions(parts: Sequence[VictimRecord | Cell]) -> dict[str, str]:
    """Those that models and cells were made with: several of one package where it was updated meanwhile."""
    names = dict.fromkeys(name for part in parts for name in part.versions) or package_versions()
    return {name: ", ".join(sorted({part.versions.get(name, _UNKNOWN) for part in parts})) for name in names}


def _attack(title: str, victims: list[VictimRecord], clean: list[VictimRecord]) -> AttackSummary:
    made = [victim for victim in victims if victim.failed is None]
    usual = {
        victim.architecture.model_dump_json(): _mean(
            [
                other.clean_accuracy
                for other in clean
                if other.architecture == victim.architecture and other.clean_accuracy is not None
            ]
        )
        for victim in made
    }
    losses = [
        expected - victim.clean_accuracy
        for victim in made
        if (expected := usual[victim.architecture.model_dump_json()]) is not None and victim.clean_accuracy is not None
    ]
    return AttackSummary(
        row=title,
        victims=len(made),
        failed=len(victims) - len(made),
        reasons=tuple(sorted({victim.failed for victim in victims if victim.failed is not None})),
        working=sum((victim.asr or 0.0) >= WORKING for victim in made),
        clean_accuracy=_mean([victim.clean_accuracy for victim in made]),
        accuracy_loss=_mean(losses),
        asr=_mean([victim.asr for victim in made]),
        asr_unpoisoned=_mean([victim.asr_unpoisoned for victim in made]),
        robust_accuracy=_mean([victim.robust_accuracy for victim in made]),
        poison_rate=_mean([victim.poison_rates["whole"] for victim in made if victim.poison_rates]),
        target_class_rate=_mean([victim.poison_rates["target_class"] for victim in made if victim.poison_rates]),
        psnr=_mean([victim.psnr for victim in made]),
        ssim=_mean([victim.ssim for victim in made]),
    )


def _detector(name: str, clean: list[Cell], entries: list[Entry]) -> DetectorSummary:
    scored = [cell for cell in clean if cell.score is not None]
    ranked = [cell.p_value for cell in scored if cell.calibrated and cell.p_value is not None]
    alarms = sum(p <= ALPHA for p in ranked)
    rate = Estimate.of(proportion(alarms, len(ranked))) if ranked else None
    areas = [entry.auroc.value if entry.auroc else None for entry in entries if entry.detector == name]
    return DetectorSummary(
        detector=name,
        clean_models=len(scored),
        failed=len(clean) - len(scored),
        reasons=tuple(sorted({cell.failed for cell in clean if cell.failed is not None})),
        false_alarms=None
        if rate is None
        else ErrorRate(events=alarms, trials=len(ranked), rate=rate.value, low=rate.low, high=rate.high),
        seconds=_median([cell.seconds for cell in scored]),
        queries=_median([cell.queries for cell in scored]),
        peak_memory_mb=_median([cell.peak_memory_mb for cell in scored if cell.peak_memory_mb is not None]),
        mean_auroc=_mean(areas) if None not in areas else None,
    )


def _measures(detector: str) -> bool:
    """Whether a detector's scores are all of one kind, calibrated or not: networks are fitted, and several."""
    return isinstance(make_detector(detector), ScoreDetector)


def _auroc(positive: list[Cell], negative: list[Cell], *, comparable: bool) -> Estimate | None:
    """Of scores if they are all of one kind, of p-values if not: these are comparable, if coarse."""
    if not positive or not negative:
        return None

    def suspicions(cells: list[Cell]) -> list[float]:
        found = [cell.score if comparable or cell.p_value is None else 1 - cell.p_value for cell in cells]
        return [value for value in found if value is not None]

    return Estimate.of(auroc(suspicions(positive), suspicions(negative)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 4) if known else None


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 3) if values else None


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("intaglio.bench"),
        autoescape=lambda name: name is not None and ".svg" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"percent": _percent, "number": _number, "colour": _colour, "cell": _cell})
    return environment


def _cell(text: str) -> str:
    """What a row is called, or why it failed, as it may stand in a cell of a table."""
    return one_line(text).replace("|", "\\|")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _colour(value: float | None) -> str:
    """From white at an AUROC of 0.5 (or less) to a deep blue at 1; grey where there is none."""
    if value is None:
        return "#dddddd"
    depth = min(max(2 * value - 1, 0.0), 1.0)
    return "#" + "".join(f"{round(255 - depth * (255 - end)):02x}" for end in (22, 82, 140))
