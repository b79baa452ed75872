"""Do detectors accuse clean models whose classes are unequal? Dirty-label poison makes its target class larger, too.

    python -m benchmarks.imbalance [--models 12]

A detector that answers to the size of a class would look good in `benchmarks.bench` and accuse innocent models. Here
clean models learn from sets in which one class is about twice as large as every other, as after poisoning 8 % of a set;
networks and settings are those of the bench, whose clean models they are compared with. Writes results/imbalance.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import RECIPES, folder
from benchmarks.cells import Cells
from benchmarks.clean_models import ALPHA, TASK, clean_model
from benchmarks.results import counted, interval, record
from benchmarks.stacks import shipped_p_value
from intaglio.attacks import accuracy
from intaglio.bench import BenchRecipe, read_bench_recipe
from intaglio.bench.cells import cell_path, read_cell
from intaglio.bench.recipe import CLEAN
from intaglio.data import ImageData
from intaglio.evidence.statistics import auroc
from intaglio.populations.population import load_splits
from intaglio.scan import scan
from intaglio.scan.fitting_scores import ASKED
from intaglio.seeds import derive_seed, torch_generator

#: What is left of every class but one: 1,000 and nine times 510 images.
SHARE = 0.51

cell = Cells("imbalance")


def unequal(data: ImageData, favoured: int, seed: int) -> ImageData:
    """The data with all of one class and about half of every other."""
    kept = torch.rand(len(data), generator=torch_generator(seed, "imbalance")) < SHARE
    return data.take(kept | (data.labels == favoured))


def examined(recipe: BenchRecipe, index: int) -> dict[str, Any]:
    """One model: trained on as many steps as the bench's, and looked at by every detector."""

    def measure() -> dict[str, Any]:
        data, test = load_splits(recipe.source, recipe.samples)
        seed = derive_seed(recipe.seed, "imbalance", index)
        favoured = index % data.num_classes
        mine = unequal(data, favoured, seed)
        epochs = round(recipe.training.epochs * len(data) / len(mine))
        classifier = clean_model(recipe, index, mine, seed, epochs=epochs)
        found: dict[str, Any] = {"favoured": favoured, "accuracy": accuracy(classifier.predict, test), "detectors": {}}
        for name in recipe.detectors:
            started = time.process_time()
            verdict = scan(
                classifier,
                test.images[ASKED:],
                TASK,
                seed=seed,
                detector=name,
                training=mine,
                inputs=test.images[:ASKED],
            )
            found["detectors"][name] = {
                "score": verdict.score,
                "p_value": verdict.p_value,
                "confidence": verdict.calibration.confidence,
                "guess": verdict.evidence[0].index,
                "seconds": round(time.process_time() - started, 2),
            }
        return found

    return cell(f"{index:03d}", measure)


def figures(recipe: BenchRecipe, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """For each detector: AUROC of these clean models against the bench's (0.5 is right), and false alarms."""
    found: dict[str, Any] = {"models": len(rows), "accuracy": round(sum(r["accuracy"] for r in rows) / len(rows), 4)}
    for name in recipe.detectors:
        mine = [row["detectors"][name] for row in rows]
        paths = [cell_path(out, name, CLEAN, index) for index in range(recipe.clean)]
        equal = [cell.score for path in paths if path.exists() and (cell := read_cell(path)).score is not None]
        ranks = [shipped_p_value(name, TASK, m["score"], m["confidence"]) for m in mine]
        alarms = sum((m["p_value"] if rank is None else rank) <= ALPHA for m, rank in zip(mine, ranks, strict=True))
        found[name] = {
            "auroc": interval(auroc([m["score"] for m in mine], [score for score in equal if score is not None])),
            "false_alarms": counted(alarms, len(mine)),
            "names_the_large_class": sum(m["guess"] == row["favoured"] for m, row in zip(mine, rows, strict=True)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_bench_recipe(RECIPES / f"{TASK}.yaml")
    rows = []
    for index in range(options.models):
        rows.append(examined(recipe, index))
        print(index, {name: round(row["p_value"], 3) for name, row in rows[-1]["detectors"].items()}, flush=True)
    print(record("imbalance", figures(recipe, rows, folder(TASK))))


if __name__ == "__main__":
    main()
