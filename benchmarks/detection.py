"""How well the detector tells backdoored models from clean ones it never saw, task by task and across tasks.

    python -m benchmarks.detection

Needs the populations of `benchmarks.populations`. Writes results/detection.json: for each setting the AUROC (all
attempted backdoors, and those with an attack success rate of at least 0.9), by family, true positives at 5 % false
positives, target-class hits, and false alarms at alpha = 0.05, over several seeds of the fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.populations import measured
from benchmarks.results import interval, record
from intaglio.evidence.statistics import auroc, proportion
from intaglio.populations import ModelRecord
from intaglio.scan.calibration import ProbeKind
from intaglio.scan.ensemble import (
    LEARNABLE_ASR,
    Ensemble,
    Examples,
    assign_folds,
    concatenate,
    fit_ensemble,
    out_of_fold,
)
from intaglio.scan.fitting import LEVEL, Measured, fit_tasks, p_values

SEEDS = (0, 1, 2)
#: Of each of the three tasks.
CLASSES = 10
WORKING = 0.9
#: Which populations the task-free detectors are fitted on, by what they probe with.
TASK_FREE: dict[ProbeKind, dict[str, tuple[str, ...]]] = {
    "stored": {"fashion-mnist": ("fashion-vaccine", "fashion-virus"), "mnist": ("mnist",), "cifar10": ("cifar10",)},
    "clouds": {"fashion-mnist": ("fashion-virus",), "mnist": ("mnist",), "cifar10": ("cifar10",)},
}


def groups(records: list[ModelRecord]) -> dict[str, list[bool]]:
    """Which backdoored models each row of the table is about."""
    found = {
        "all": [entry.backdoored for entry in records],
        "all-to-one and source-specific": [r.backdoored and not r.family.endswith("to-all") for r in records],
        f"ASR >= {WORKING}": [(entry.asr or 0) >= WORKING for entry in records],
        f"ASR >= {LEARNABLE_ASR}": [(entry.asr or 0) >= LEARNABLE_ASR for entry in records],
        "all-to-all": [entry.family.endswith("all-to-all") for entry in records],
    }
    for family in sorted({entry.family for entry in records if entry.backdoored}):
        found[family] = [entry.family == family for entry in records]
    return {name: chosen for name, chosen in found.items() if any(chosen)}


def areas(scores: Tensor, records: list[ModelRecord]) -> dict[str, Any]:
    """AUROC of each group against the clean models, with its interval and the number of backdoored models."""
    clean = [float(s) for s, entry in zip(scores, records, strict=True) if not entry.backdoored]
    rows = {}
    for name, chosen in groups(records).items():
        positive = [float(score) for score, take in zip(scores, chosen, strict=True) if take]
        rows[name] = {"models": len(positive), **interval(auroc(positive, clean))}
    return rows


def true_positives(scores: Tensor, records: list[ModelRecord], rate: float = LEVEL) -> dict[str, float]:
    """Share of all backdoored models above the score that `rate` of the clean ones exceed."""
    backdoored = torch.tensor([entry.backdoored for entry in records])
    threshold = float(np.quantile(scores[~backdoored].numpy(), 1 - rate, method="higher"))
    return interval(proportion(int((scores[backdoored] > threshold).sum()), int(backdoored.sum())))


def target_hits(suspicions: Tensor, examples: Examples) -> dict[str, float]:
    """Share of models with one target and an ASR of 0.5 or more whose most suspicious class is that target."""
    chosen = (examples.target >= 0) & (examples.asr >= 0.5)
    hits = suspicions[chosen].argmax(dim=1) == examples.target[chosen]
    return interval(proportion(int(hits.sum()), int(chosen.sum())))


def false_alarms(p: Tensor, examples: Examples) -> dict[str, float]:
    """Share of clean models with p <= 0.05."""
    quiet = ~examples.backdoored
    return interval(proportion(int((p[quiet] <= LEVEL).sum()), int(quiet.sum())))


def score_with(ensemble: Ensemble, examples: Examples) -> tuple[Tensor, Tensor]:
    """Mean member scores and suspicions."""
    with torch.inference_mode():
        scores, suspicions = ensemble(examples.features, examples.classes)
    return scores.mean(dim=1), suspicions


def evaluate(train: Mapping[str, Examples], test: Measured, seed: int) -> dict[str, Any]:
    """Fits on `train` and measures on `test`, a population of the same one task or of another."""
    classes = CLASSES if test.task in train else None
    ensemble, clean, _ = fit_tasks(dict(train), seed, classes=classes, by_confidence=classes is not None)
    scores, suspicions = score_with(ensemble, test.examples)
    return {
        "auroc": areas(scores, test.records),
        "true_positives_at_5_percent": true_positives(scores, test.records),
        "target_named": target_hits(suspicions, test.examples),
        "false_alarms_at_5_percent": false_alarms(p_values(ensemble, clean, test.examples), test.examples),
    }


def cross_validated(population: Measured, seed: int) -> dict[str, Any]:
    """Out-of-fold figures of one population."""
    folds = assign_folds(population.examples.backdoored, 8, seed)
    ensemble = fit_ensemble(population.examples, folds, seed=seed, classes=CLASSES)
    scores, suspicions = out_of_fold(ensemble, population.examples, folds)
    return {
        "auroc": areas(scores, population.records),
        "true_positives_at_5_percent": true_positives(scores, population.records),
        "target_named": target_hits(suspicions, population.examples),
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first seed's figures with intervals, and every seed's AUROC over all models."""
    return {**runs[0], "auroc_all_by_seed": [run["auroc"]["all"]["value"] for run in runs]}


def leave_one_architecture_out(vaccine: Measured, virus: Measured) -> dict[str, Any]:
    """For each architecture: fitted without it, tested on it; and all such scores pooled."""
    rows: dict[str, Any] = {}
    pooled: list[float] = []
    labels: list[bool] = []
    names = sorted({entry.architecture.name for entry in vaccine.records})
    for name in names:
        others = torch.tensor([entry.architecture.name != name for entry in vaccine.records])
        mine = torch.tensor([entry.architecture.name == name for entry in virus.records])
        ensemble, _, _ = fit_tasks({vaccine.task: vaccine.examples.take(others)}, 0, classes=CLASSES)
        scores, _ = score_with(ensemble, virus.examples.take(mine))
        truth = virus.examples.backdoored[mine]
        rows[name] = {
            "models": len(scores),
            **interval(auroc(scores[truth].tolist(), scores[~truth].tolist())),
        }
        pooled += scores.tolist()
        labels += truth.tolist()
    positive = [score for score, label in zip(pooled, labels, strict=True) if label]
    negative = [score for score, label in zip(pooled, labels, strict=True) if not label]
    rows["mean"] = round(float(np.mean([rows[name]["value"] for name in names])), 4)
    rows["pooled"] = {"models": len(pooled), **interval(auroc(positive, negative))}
    return rows


def by_size(vaccine: Measured, virus: Measured) -> dict[str, Any]:
    """AUROC over all test models for fits on the first n models."""
    rows = {}
    for count in (50, 100, 200, len(vaccine.records)):
        first = torch.arange(len(vaccine.records)) < count
        ensemble, _, _ = fit_tasks({vaccine.task: vaccine.examples.take(first)}, 0, classes=CLASSES)
        scores, _ = score_with(ensemble, virus.examples)
        rows[str(count)] = areas(scores, virus.records)["all"]
    return rows


def population_facts(population: Measured) -> dict[str, Any]:
    """How many models of which kind, how accurate, and how well their backdoors work."""
    asr = [entry.asr for entry in population.records if entry.asr is not None]
    accuracy = {
        kind: [entry.clean_accuracy for entry in population.records if entry.backdoored == backdoored]
        for kind, backdoored in (("clean", False), ("backdoored", True))
    }
    return {
        "models": len(population.records),
        "backdoored": len(asr),
        "working": sum(value >= WORKING for value in asr),
        "median_asr": round(float(np.median(asr)), 3),
        "clean_accuracy": {kind: round(float(np.mean(values)), 4) for kind, values in accuracy.items()},
        "architectures": sorted({entry.architecture.name for entry in population.records}),
    }


def together(names: Sequence[str], kind: ProbeKind) -> Measured:
    """Populations of one task as one."""
    parts = [measured(name, kind) for name in names]
    records = [entry for part in parts for entry in part.records]
    return Measured(parts[0].task, concatenate([part.examples for part in parts]), records)


def main() -> None:
    torch.set_num_threads(1)
    names = ("fashion-vaccine", "fashion-virus", "mnist", "cifar10")
    populations = {name: measured(name) for name in names}
    vaccine, virus = populations["fashion-vaccine"], populations["fashion-virus"]
    figures: dict[str, Any] = {"populations": {name: population_facts(populations[name]) for name in names}}
    figures["fashion-mnist"] = over_seeds(
        [evaluate({"fashion-mnist": vaccine.examples}, virus, seed) for seed in SEEDS]
    )
    figures["leave_one_architecture_out"] = leave_one_architecture_out(vaccine, virus)
    figures["fitted_on"] = by_size(vaccine, virus)
    for name in ("mnist", "cifar10"):
        figures[f"{name} cross-validated"] = over_seeds([cross_validated(populations[name], seed) for seed in SEEDS])
    kinds: dict[str, ProbeKind] = {"task-free with images": "stored", "task-free without images": "clouds"}
    for label, kind in kinds.items():
        tasks = {task: together(names, kind) for task, names in TASK_FREE[kind].items()}
        for left_out, test in tasks.items():
            train = {task: part.examples for task, part in tasks.items() if task != left_out}
            figures[f"{label}, {left_out} left out"] = evaluate(train, test, SEEDS[0])
    print(record("detection", figures))


if __name__ == "__main__":
    main()
