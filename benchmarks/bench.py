"""Every attack against every detector, and `auto` against them all.

    python -m benchmarks.bench [--tasks fashion-mnist,cifar10] [--cifar10 PATH] [--workers N] [--cached]

Needs what `benchmarks.stacks` ships. Writes results/bench.json. Models and cells are kept in the cache, so an
interrupted run goes on; with --cached nothing is measured any more, and the file holds what was.

What `auto` says of a model follows from its members' p-values alone, so it is computed from their cells.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.fetch import cache_folder
from benchmarks.results import interval, record
from benchmarks.stacks import BASE
from intaglio.bench import read_bench_recipe, run_bench
from intaglio.bench.cells import Cell, cell_path, read_cell
from intaglio.bench.recipe import CLEAN, BenchRecipe
from intaglio.bench.running import bench_table
from intaglio.bench.table import ALPHA, WORKING
from intaglio.bench.victims import read_victim, victim_folder
from intaglio.errors import DataError
from intaglio.evidence.statistics import auroc, conformal_p_value, proportion
from intaglio.populations import LocalExecutor
from intaglio.scan.clean_scores import shipped_clean_scores
from intaglio.scan.scanning import DETECTORS
from intaglio.scan.stack import choose_members, fit_weights, shipped_table

RECIPES = Path(__file__).parent / "bench_recipes"
TASKS = ("fashion-mnist", "cifar10")
#: What an auditor holds, and the detectors that can be used then.
HOLDINGS: dict[str, tuple[str, ...]] = {
    "everything": tuple(DETECTORS),
    "the model and clean images": tuple(name for name, kind in DETECTORS.items() if not kind.needs),  # type: ignore[attr-defined]
    "scores only": (BASE, "strip"),
}


class Judged(NamedTuple):
    """A model of the bench with every detector's p-value and score."""

    row: str
    asr: float
    p_values: dict[str, float]
    scores: dict[str, float]


def folder(task: str) -> Path:
    """Where a task's bench lies."""
    return cache_folder() / "bench" / task


def judged(recipe: BenchRecipe, out: Path) -> list[Judged]:
    """Every model that all detectors have looked at."""
    found = []
    for row, count in recipe.rows():
        for index in range(count):
            victim = read_victim(victim_folder(out, row, index))
            paths = {name: cell_path(out, name, row, index) for name in recipe.detectors}
            if victim is None or victim.failed or not all(path.exists() for path in paths.values()):
                continue
            cells = {name: read_cell(path) for name, path in paths.items()}
            if any(cell.score is None for cell in cells.values()):
                continue
            p_values = {name: p for name, cell in cells.items() if (p := p_value(cell, recipe.task)) is not None}
            scores = {name: float(cell.score) for name, cell in cells.items() if cell.score is not None}
            found.append(Judged(row, victim.asr or 0.0, p_values, scores))
    return found


def p_value(cell: Cell, task: str) -> float | None:
    """The detector's p-value by what ships today; None where it can't be ranked."""
    shipped = shipped_clean_scores(cell.detector)
    if shipped is None:
        return cell.p_value if cell.calibrated else None
    mine = next((entry for entry in shipped.tasks if entry.task == task), None)
    return None if mine is None or cell.score is None else conformal_p_value(cell.score, mine.scores)


def auto(task: str, models: Sequence[Judged], allowed: Sequence[str]) -> dict[str, Any]:
    """What `auto` makes of these detectors: AUROC a row and in the mean, and its false alarms."""
    table = shipped_table(task)
    if table is None:
        raise DataError(f"no stack ships for {task}: run benchmarks.stacks")
    usable = [name for name in table.detectors if name in allowed and all(name in m.p_values for m in models)]
    members = choose_members(table, usable, forward=1e-4, budget=None)
    weights = fit_weights(table, members)
    clean = [m for m in models if m.row == CLEAN]
    alarms = sum(weights.p_value(weights.score(m.p_values)) <= ALPHA for m in clean)
    return {
        "members": dict(zip(members, (round(float(w), 3) for w in weights.weights), strict=True)),
        "false_alarms": interval(proportion(alarms, len(clean))) | {"events": alarms, "trials": len(clean)},
        **areas(models, lambda model: weights.score(model.p_values)),
    }


def areas(models: Sequence[Judged], score: Callable[[Judged], float]) -> dict[str, Any]:
    """AUROC of each row against the clean models, over all victims and over working ones; and the means over rows."""
    clean = [score(m) for m in models if m.row == CLEAN]
    found: dict[str, Any] = {}
    for name, least in (("auroc", 0.0), ("auroc_working", WORKING)):
        rows = {}
        for row in dict.fromkeys(m.row for m in models if m.row != CLEAN):
            mine = [score(m) for m in models if m.row == row and m.asr >= least]
            if mine:
                rows[row] = interval(auroc(mine, clean)) | {"models": len(mine)}
        found[name] = rows
        found[f"mean_{name}"] = round(sum(area["value"] for area in rows.values()) / len(rows), 4) if rows else None
    return found


def figures(recipe: BenchRecipe, out: Path) -> dict[str, Any]:
    """The bench's table, `auto` by what the auditor holds, and each detector alone on the same models."""
    models = judged(recipe, out)
    kept: dict[str, Any] = {"recipe": recipe.model_dump(mode="json", exclude={"data"})}
    kept["table"] = bench_table(recipe, out).model_dump(mode="json", exclude={"versions"})
    if any(m.row == CLEAN for m in models) and any(m.row != CLEAN for m in models):
        kept["auto"] = {holding: auto(recipe.task, models, allowed) for holding, allowed in HOLDINGS.items()}
        kept["alone"] = {name: areas(models, lambda m, name=name: m.scores[name]) for name in recipe.detectors}  # type: ignore[misc]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cached", action="store_true", help="measure nothing; write what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for task in options.tasks.split(","):
        recipe = read_bench_recipe(RECIPES / f"{task}.yaml")
        if task == "cifar10":
            if options.cifar10 is None:
                raise DataError("cifar10 is not packaged anywhere: give its .npz with --cifar10")
            recipe = recipe.model_copy(update={"data": str(options.cifar10.resolve())})

        def show(done: int, total: int, task: str = task) -> None:
            print(f"\r{task}: {done} of {total}", end="", flush=True)

        if not options.cached:
            run_bench(recipe, folder(task), executor=LocalExecutor(options.workers), progress=show)
            print()
        found[task] = figures(recipe, folder(task))
    print(record("bench", found))


if __name__ == "__main__":
    main()
