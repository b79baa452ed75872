"""Fits what `detector="auto"` needs and ships it: every detector's scores of clean models, and each task's stack.

    python -m benchmarks.stacks [--workers N] [--detectors NAME,...]

Needs the populations of `benchmarks.populations`. A detector is ranked among clean models of some populations, briefly
trained ones and ones trained for longer; the stack learns from verdicts on models of another, and from what the clean
models of longer training would be told, each ranked among the others. The trigger families of that other population
are patches, pixels and blends; `benchmarks.bench` adds those of its own. Nothing ships for CIFAR-10: the clean models
of its population do not stand for others of the task (docs/bench.md).

Every verdict is kept in the cache as soon as it is there, so an interrupted run goes on.
"""

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.calibrations import OUT
from benchmarks.fetch import cache_folder
from benchmarks.left_out import shipped
from benchmarks.populations import folder
from intaglio.classifiers import open_classifier
from intaglio.data import TASKS, ImageData
from intaglio.errors import DataError
from intaglio.evidence.canonical import canonical_json
from intaglio.files import write_json
from intaglio.populations import LocalExecutor, ModelRecord, model_folder, open_population, population_data, read_recipe
from intaglio.populations.population import load_splits
from intaglio.scan import scan
from intaglio.scan.auto import seconds_per_answer
from intaglio.scan.calibration import META
from intaglio.scan.clean_scores import choose_reference
from intaglio.scan.detector import Request
from intaglio.scan.fitting_scores import ASKED, fit_clean_scores
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.scanning import DETECTORS, make_detector
from intaglio.scan.score_detector import ScoreDetector
from intaglio.scan.stack import MemberCost, StackTable, fit_weights

BASE = OnePixelSignature.name


class Plan(NamedTuple):
    """Where a task's stack comes from: the first so many clean models of each population of `ranked` rank the
    detectors; `learned` teaches the weights, with so many clean and backdoored models. Backdoors with a lower ASR are
    left out: they aren't there.
    """

    ranked: tuple[str, ...]
    clean: int
    learned: str
    taught: int
    backdoored: int
    least_asr: float = 0.5


PLANS = {
    "fashion-mnist": Plan(("fashion-vaccine", "fashion-longer"), 60, "fashion-virus", 40, 45),
}


class Examination(NamedTuple):
    """What a worker is sent: one model of a population, and the detector that looks at it."""

    population: str
    task: str
    number: int
    detector: str

    @property
    def path(self) -> Path:
        """Where its outcome is kept: by the detector's settings, or by the calibration that the signature ranks by."""
        made = make_detector(self.detector)
        settings: Any = None
        if isinstance(made, ScoreDetector):
            settings = made.settings()
        else:
            settings = json.loads((OUT / self.task / META).read_text())
        digest = hashlib.sha256(canonical_json(settings)).hexdigest()[:12]
        return cache_folder() / "verdicts" / self.population / f"{self.detector}-{digest}" / f"{self.number:05d}.json"

    @property
    def outcome(self) -> dict[str, Any]:
        """What `examine` wrote."""
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


def examine(job: Examination) -> None:
    """One verdict, with all that the detector may be given: the training set as it was poisoned, and images asked."""
    out = folder(job.population)
    record = next(record for record in open_population(out) if record.index == job.number)
    training, asked, clean = given(job.population, record)
    classifier = open_classifier(model_folder(out, job.number) / "model.safetensors")
    forward = seconds_per_answer(classifier, Request(clean, seed=record.seed))
    started = time.process_time()
    verdict = scan(
        classifier, clean, job.task, seed=record.seed, detector=job.detector, training=training, inputs=asked
    )
    seconds = time.process_time() - started
    write_json(
        job.path,
        {
            "score": verdict.score,
            "p_value": verdict.p_value,
            "confidence": verdict.calibration.confidence,
            "queries": verdict.queries,
            "seconds": round(seconds, 3),
            "ratio": round(seconds / (verdict.queries * forward), 3),
        },
    )


def given(population: str, record: ModelRecord) -> tuple[ImageData, Tensor, Tensor]:
    """(training set, images asked, clean images). The poison is planted again, as the recipe says; half of the images
    asked carry the trigger.
    """
    out = folder(population)
    recipe = read_recipe(Path(__file__).parent / "recipes" / f"{population}.yaml")
    data, test = load_splits(population_data(out), recipe.samples)
    asked, clean = test.images[:ASKED].clone(), test.images[ASKED:]
    attack = recipe.plan(record.index).build_attack(data.num_classes)
    if attack is not None:
        poisoned = attack.poison(data)
        half = torch.arange(ASKED) >= ASKED // 2
        affected = half & poisoned.goal.affected(test.labels[:ASKED])
        asked[affected] = poisoned.trigger.apply(asked[affected])
        data = poisoned.data
    return data, asked, clean


def chosen(plan: Plan) -> tuple[list[ModelRecord], list[ModelRecord]]:
    """(clean models to learn from, backdoored ones to learn from)."""
    learned = open_population(folder(plan.learned))
    quiet = [record for record in learned if not record.backdoored][: plan.taught]
    working = [record for record in learned if (record.asr or 0) >= plan.least_asr][: plan.backdoored]
    return quiet, working


def shipped_p_value(detector: str, task: str, score: float, confidence: float | None) -> float | None:
    """The rank of a score among the clean models that ship for the task; None if there are none."""
    made, known = make_detector(detector), TASKS[task]
    if not isinstance(made, ScoreDetector):
        return None
    reference = choose_reference(detector, made.settings(), task, known.input_shape, len(known.classes))
    if reference is None or not reference.same_task:
        return None
    if reference.by_confidence and confidence is None:
        raise DataError(f"{detector}: a score without the model's confidence, of an earlier version; remove its cache")
    return reference.p_value(score, confidence)


def stack(task: str, detectors: list[str]) -> StackTable:
    """A task's table, from the verdicts that there are."""
    plan = PLANS[task]
    quiet, working = chosen(plan)

    def p_value(record: ModelRecord, detector: str) -> float:
        outcome = Examination(plan.learned, task, record.index, detector).outcome
        ranked = shipped_p_value(detector, task, outcome["score"], outcome["confidence"])
        return float(outcome["p_value"]) if ranked is None else ranked

    costs = {}
    for name in detectors:
        found = [Examination(plan.learned, task, record.index, name).outcome for record in [*quiet, *working]]
        costs[name] = MemberCost(
            queries=statistics.median(row["queries"] for row in found),
            ratio=statistics.median(row["ratio"] for row in found),
        )
    return StackTable(
        task=task,
        input_shape=quiet[0].architecture.input_shape,
        num_classes=quiet[0].architecture.num_classes,
        detectors=tuple(detectors),
        costs=costs,
        clean=tuple(tuple(p_value(record, name) for name in detectors) for record in quiet) + longer_trained(detectors),
        backdoored=tuple(tuple(p_value(record, name) for name in detectors) for record in working),
    )


def longer_trained(detectors: list[str]) -> tuple[tuple[float, ...], ...]:
    """p-values of the clean models of longer training, each among the other clean models that ship."""
    known = [shipped(name) for name in detectors]
    count = known[0].longer
    return tuple(tuple(part.p_value(len(part.task.scores) - count + index) for part in known) for index in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--detectors", default=",".join(DETECTORS), help="comma-separated")
    parser.add_argument("--tasks", default=",".join(PLANS), help="comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    detectors = options.detectors.split(",")
    executor = LocalExecutor(options.workers)
    for task in options.tasks.split(","):
        plan = PLANS[task]
        ranked = [folder(name) for name in plan.ranked]
        for name in detectors:
            if name != BASE:
                print(f"{task}: scoring clean models with {name}", flush=True)
                fit_clean_scores(name, ranked, OUT / "_scores" / name, models=plan.clean, executor=executor)
        quiet, working = chosen(plan)
        jobs = [Examination(plan.learned, task, r.index, name) for name in detectors for r in [*quiet, *working]]
        missing = [job for job in dict.fromkeys(jobs) if not job.path.exists()]
        for number, _ in enumerate(executor.map(examine, missing), 1):
            print(f"\r{task}: {number} of {len(missing)}", end="", flush=True)
        print()
        table = stack(task, detectors)
        table.save(OUT / "_stacks" / f"{task}.json")  # until benchmarks.bench teaches it more attacks
        for names in (detectors, *([name] for name in detectors)):
            weights = fit_weights(table, names)
            print(task, ", ".join(names), [round(float(w), 2) for w in weights.weights], f"AUROC {weights.auroc:.3f}")


if __name__ == "__main__":
    main()
