"""Fits what `detector="auto"` needs and ships it: every detector's scores of clean models, and each task's stack.

    python -m benchmarks.stacks [--workers N] [--detectors NAME,...]

Needs the populations of `benchmarks.populations`. A detector is ranked among clean models of one population; the stack
learns from verdicts on models of another. The trigger families of that other population are patches, pixels and
blends; `benchmarks.bench` adds those of its own. Nothing ships for CIFAR-10: the clean models of its population do not
stand for others of the task (docs/bench.md).

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
from benchmarks.populations import folder
from intaglio.classifiers import open_classifier
from intaglio.data import ImageData
from intaglio.evidence.canonical import canonical_json
from intaglio.evidence.statistics import conformal_p_value
from intaglio.files import write_json
from intaglio.populations import LocalExecutor, ModelRecord, model_folder, open_population, population_data, read_recipe
from intaglio.populations.population import load_splits
from intaglio.scan import scan
from intaglio.scan.auto import seconds_per_answer
from intaglio.scan.clean_scores import CleanModelScores, TaskScores
from intaglio.scan.detector import Request
from intaglio.scan.fitting_scores import ASKED
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.scanning import DETECTORS, make_detector
from intaglio.scan.score_detector import ScoreDetector
from intaglio.scan.stack import MemberCost, StackTable, fit_weights

BASE = OnePixelSignature.name


class Plan(NamedTuple):
    """Where a task's stack comes from: the first so many clean models of `ranked` rank the detectors; `learned` teaches
    the weights, with so many clean and backdoored models. Backdoors with a lower ASR are left out: they aren't there.
    """

    ranked: str
    clean: int
    learned: str
    taught: int
    backdoored: int
    least_asr: float = 0.5


PLANS = {
    "fashion-mnist": Plan("fashion-vaccine", 60, "fashion-virus", 40, 45),
}


class Examination(NamedTuple):
    """What a worker is sent: one model of a population, and the detector that looks at it."""

    population: str
    number: int
    detector: str

    @property
    def path(self) -> Path:
        """Where its outcome is kept."""
        made = make_detector(self.detector)
        settings = made.settings() if isinstance(made, ScoreDetector) else {}
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
    verdict = scan(classifier, clean, seed=record.seed, detector=job.detector, training=training, inputs=asked)
    seconds = time.process_time() - started
    write_json(
        job.path,
        {
            "score": verdict.score,
            "p_value": verdict.p_value,
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


def chosen(plan: Plan) -> tuple[list[ModelRecord], list[ModelRecord], list[ModelRecord]]:
    """(clean models that are ranked against, clean ones to learn from, backdoored ones to learn from)."""
    ranked = [record for record in open_population(folder(plan.ranked)) if not record.backdoored][: plan.clean]
    learned = open_population(folder(plan.learned))
    quiet = [record for record in learned if not record.backdoored][: plan.taught]
    working = [record for record in learned if (record.asr or 0) >= plan.least_asr][: plan.backdoored]
    return ranked, quiet, working


def ship_scores(detector: str) -> None:
    """Writes a detector's scores of the clean models of every task that is measured."""
    tasks = []
    made = make_detector(detector)
    assert isinstance(made, ScoreDetector)
    for task, plan in PLANS.items():
        ranked = chosen(plan)[0]
        if not all(Examination(plan.ranked, r.index, detector).path.exists() for r in ranked):
            continue  # not measured yet
        tasks.append(
            TaskScores(
                task=task,
                input_shape=ranked[0].architecture.input_shape,
                num_classes=ranked[0].architecture.num_classes,
                scores=tuple(Examination(plan.ranked, r.index, detector).outcome["score"] for r in ranked),
            )
        )
    CleanModelScores(detector=detector, settings=made.settings(), tasks=tuple(tasks)).save(OUT / "_scores" / detector)


def stack(task: str, detectors: list[str]) -> StackTable:
    """A task's table, from the verdicts that there are."""
    plan = PLANS[task]
    ranked, quiet, working = chosen(plan)

    def p_value(record: ModelRecord, detector: str) -> float:
        outcome = Examination(plan.learned, record.index, detector).outcome
        if detector == BASE:
            return float(outcome["p_value"])
        clean = [Examination(plan.ranked, r.index, detector).outcome["score"] for r in ranked]
        return conformal_p_value(outcome["score"], clean)

    costs = {}
    for name in detectors:
        found = [Examination(plan.learned, record.index, name).outcome for record in [*quiet, *working]]
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
        clean=tuple(tuple(p_value(record, name) for name in detectors) for record in quiet),
        backdoored=tuple(tuple(p_value(record, name) for name in detectors) for record in working),
    )


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
        ranked, quiet, working = chosen(plan)
        jobs = [Examination(plan.ranked, r.index, name) for name in detectors if name != BASE for r in ranked]
        jobs += [Examination(plan.learned, r.index, name) for name in detectors for r in [*quiet, *working]]
        missing = [job for job in dict.fromkeys(jobs) if not job.path.exists()]
        for number, _ in enumerate(executor.map(examine, missing), 1):
            print(f"\r{task}: {number} of {len(missing)}", end="", flush=True)
        print()
        table = stack(task, detectors)
        table.save(OUT / "_stacks" / f"{task}.json")  # until benchmarks.bench teaches it more attacks
        for names in (detectors, *([name] for name in detectors)):
            weights = fit_weights(table, names)
            print(task, ", ".join(names), [round(float(w), 2) for w in weights.weights], f"AUROC {weights.auroc:.3f}")
        for name in detectors:
            if name != BASE:
                ship_scores(name)


if __name__ == "__main__":
    main()
