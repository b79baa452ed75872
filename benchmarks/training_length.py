"""Do detectors accuse clean models for having been trained longer than those that they are ranked among?

    python -m benchmarks.training_length [--models 4] [--cached]

Most clean models of Fashion-MNIST whose scores ship were trained for a few passes, since there had to be many of them;
a user's model was trained until it was good. Here the bench's networks learn for 5, 15 and 45 passes over the same
images, with mirrored or shifted copies or none in turn. And each of the clean models that ship is ranked among the
others, as before among the briefly trained ones alone, and as now among those that are as sure of their answers; this
needs the population of longer training, to know which these are. Writes results/training_length.json.

Models are kept, and so is what the shipped calibrations said of them, until others ship.
"""

import argparse
import hashlib
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.bench import RECIPES
from benchmarks.calibrations import OUT
from benchmarks.cells import Cells
from benchmarks.clean_models import ALPHA, TASK, clean_model
from benchmarks.left_out import shipped
from benchmarks.results import counted, record
from intaglio.attacks import accuracy
from intaglio.bench import BenchRecipe, read_bench_recipe
from intaglio.classifiers import Sidecar, open_classifier, save_classifier
from intaglio.evidence.statistics import conformal_p_value
from intaglio.populations.population import load_splits
from intaglio.scan import scan
from intaglio.scan.fitting_scores import ASKED
from intaglio.scan.scanning import DETECTORS as DETECTORS_KNOWN
from intaglio.seeds import derive_seed

PASSES = (5, 15, 45)
AUGMENTATIONS = ("none", "flip", "shift")
#: What an auditor can ask who holds the model and clean images.
DETECTORS = ("one-pixel-signature", "neural-cleanse", "mm-bd", "final-layer", "ban", "trodo", "auto")

cell = Cells("training-length")


def examined(recipe: BenchRecipe, passes: int, index: int) -> dict[str, Any]:
    """One clean model: its accuracy, and every detector's p-value."""

    def measure() -> dict[str, Any]:
        data, test = load_splits(recipe.source, recipe.samples)
        seed = derive_seed(recipe.seed, "training length", index)
        augmentation = AUGMENTATIONS[index % len(AUGMENTATIONS)]
        weights = cell.folder / f"{passes}-{index:03d}.safetensors"
        if not weights.exists():
            made = clean_model(recipe, index, data, seed, epochs=passes, augmentation=augmentation)
            architecture = recipe.network(index, data.input_shape, data.num_classes)
            save_classifier(made.module, weights, Sidecar(architecture=architecture))
        classifier = open_classifier(weights)
        clean = test.images[ASKED:]
        p_values = {name: scan(classifier, clean, TASK, seed=seed, detector=name).p_value for name in DETECTORS}
        return {"accuracy": accuracy(classifier.predict, test), "p_values": p_values}

    return cell(f"{passes}-{index:03d}-{shipped_digest()}", measure)


@cache
def shipped_digest() -> str:
    """Of all calibrations that ship."""
    digest = hashlib.sha256()
    for path in sorted(OUT.rglob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def left_out() -> dict[str, Any]:
    """By detector: false alarms of shipped clean models of longer and of brief training, each ranked among others."""
    found = {}
    for name in DETECTORS_KNOWN:
        known = shipped(name)
        late, scores = known.late, np.asarray(known.task.scores)
        alarms = {
            kind: {"brief": 0, "longer": 0} for kind in ("ranked among the briefly trained", "ranked by confidence")
        }
        for place, score in enumerate(known.task.scores):
            brief = scores[(np.arange(len(scores)) != place) & ~late].tolist()
            ranks = (conformal_p_value(score, brief), known.p_value(place))
            for kind, p_value in zip(alarms.values(), ranks, strict=True):
                kind["longer" if late[place] else "brief"] += p_value <= ALPHA
        sizes = {"brief": int((~late).sum()), "longer": int(late.sum())}
        found[name] = {
            kind: {group: counted(events, sizes[group]) for group, events in groups.items()}
            for kind, groups in alarms.items()
        }
    return found


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and false alarms of clean models that were trained for as many passes."""
    alarms = {name: sum(row["p_values"][name] <= ALPHA for row in rows) for name in DETECTORS}
    return {
        "models": len(rows),
        "accuracy": round(sum(row["accuracy"] for row in rows) / len(rows), 4),
        "false_alarms": {name: counted(events, len(rows)) for name, events in alarms.items()},
        "p_values": {name: sorted(round(row["p_values"][name], 4) for row in rows) for name in DETECTORS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4, help="for each number of passes")
    parser.add_argument("--cached", action="store_true", help="write what was measured so far; measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell.cached_only = options.cached
    recipe = read_bench_recipe(RECIPES / f"{TASK}.yaml")
    found: dict[str, Any] = {"left_out": left_out()}
    for passes in PASSES:
        rows = [row for index in range(options.models) if (row := examined(recipe, passes, index))]
        if rows:
            found[str(passes)] = figures(rows)
    print(record("training_length", found))


if __name__ == "__main__":
    main()
