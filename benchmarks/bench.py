"""Every attack against every detector, and `auto` against them all.

    python -m benchmarks.bench [--tasks fashion-mnist,cifar10] [--cifar10 PATH] [--workers N] [--cached]

Needs what `benchmarks.stacks` measures and ships. Writes results/bench.json, where other tasks' figures stay, and ships
the stack of `auto`. Models and cells are kept in the cache, so an interrupted run goes on; with --cached nothing is
measured any more, and the file holds what was.

What `auto` says of a model follows from its members' p-values alone, so it is computed from their cells. The stack that
ships learned from the models of the bench, too; the figures of an attack are those of a stack that never saw it.

Where nothing ships for a task, as for CIFAR-10, the bench's own clean models are all there is to rank among, each of
them among the others, and `auto` weighs such ranks: how well detectors tell such models apart. Nothing of it ships.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.calibrations import OUT
from benchmarks.fetch import cache_folder
from benchmarks.results import counted, interval, known, record
from benchmarks.stacks import BASE, PLANS, shipped_p_value, stack
from intaglio.bench import read_bench_recipe, run_bench
from intaglio.bench.cells import Cell, cell_path, read_cell
from intaglio.bench.recipe import CLEAN, BenchRecipe
from intaglio.bench.running import bench_table
from intaglio.bench.table import ALPHA, WORKING, BenchTable
from intaglio.bench.victims import read_victim, victim_folder
from intaglio.data import TASKS as TASKS_KNOWN
from intaglio.errors import DataError
from intaglio.evidence.statistics import auroc, conformal_p_value
from intaglio.populations import LocalExecutor
from intaglio.scan.scanning import DETECTORS
from intaglio.scan.stack import MemberCost, StackTable, Weights, choose_members, fit_weights

RECIPES = Path(__file__).parent / "bench_recipes"
TASKS = ("fashion-mnist", "cifar10")
#: What an auditor holds, and the detectors that can be used then.
HOLDINGS: dict[str, tuple[str, ...]] = {
    "everything": tuple(DETECTORS),
    "the model and clean images": tuple(name for name, kind in DETECTORS.items() if not kind.needs),  # type: ignore[attr-defined]
    "scores only": (BASE, "strip"),
}


#: The figures of a row: over all victims, and over those whose backdoor works.
KINDS = {"auroc": 0.0, "auroc_working": WORKING}
#: Backdoors that work less often teach the stack nothing.
LEAST_ASR = 0.5
#: Seconds of a plain answer, for estimates of what detectors cost; without a budget it decides nothing.
FORWARD = 1e-4


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
    """Every model that all detectors have looked at, ranked among the clean models that ship, or else of the bench."""
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
    return found if recipe.task in PLANS else ranked_among_themselves(found)


def p_value(cell: Cell, task: str) -> float | None:
    """The detector's p-value by what ships today (the signature's by what shipped when its cell was filled: remove the
    cells after another ships); None where it can't be ranked.
    """
    if cell.score is None:
        return None
    ranked = shipped_p_value(cell.detector, task, cell.score, cell.confidence)
    return cell.p_value if ranked is None and cell.calibrated else ranked


def ranked_among_themselves(models: Sequence[Judged]) -> list[Judged]:
    """The models with ranks among the clean ones of them; a clean one is ranked among the others."""
    clean = [model for model in models if model.row == CLEAN]

    def p_values(model: Judged) -> dict[str, float]:
        return {
            name: conformal_p_value(score, [other.scores[name] for other in clean if other is not model])
            for name, score in model.scores.items()
        }

    return [model._replace(p_values=p_values(model)) for model in models]


#: A stack's table by the row that it must not have seen; None: it may see all.
Tables = Callable[[str | None], StackTable]


def tables(recipe: BenchRecipe, models: Sequence[Judged], summary: BenchTable) -> Tables:
    """What `auto` learns from: clean models of populations, or the bench's own; and the bench's backdoors."""
    if recipe.task in PLANS:
        base = stack(recipe.task, [name for name in DETECTORS if all(name in model.p_values for model in models)])
        return lambda row: taught(base, models, row)
    task, names = TASKS_KNOWN[recipe.task], tuple(recipe.detectors)
    costs = {
        row.detector: MemberCost(queries=row.queries, ratio=row.seconds / (row.queries * FORWARD))
        for row in summary.detectors
        if row.queries and row.seconds
    }

    def own(without: str | None) -> StackTable:
        return StackTable(
            task=recipe.task,
            input_shape=task.input_shape,
            num_classes=len(task.classes),
            detectors=names,
            costs=costs,
            clean=tuple(tuple(m.p_values[name] for name in names) for m in models if m.row == CLEAN),
            backdoored=lessons(names, models, without),
        )

    return own


def lessons(detectors: Sequence[str], models: Sequence[Judged], without: str | None) -> tuple[tuple[float, ...], ...]:
    """The p-values of the bench's working backdoors; those of one row may be left out."""
    return tuple(
        tuple(model.p_values[name] for name in detectors)
        for model in models
        if model.row not in (CLEAN, without) and model.asr >= LEAST_ASR
    )


def taught(base: StackTable, models: Sequence[Judged], without: str | None = None) -> StackTable:
    """The task's stack, taught by the bench's working backdoors as well."""
    return base.model_copy(update={"backdoored": base.backdoored + lessons(base.detectors, models, without)})


def auto(table: Tables, models: Sequence[Judged], allowed: Sequence[str], *, own: bool) -> dict[str, Any]:
    """What `auto` makes of these detectors: AUROC a row, by weights that never saw this attack; the means over rows;
    the most false alarms of any of these fits; and the weights of a stack that saw all.

    Args:
        own: the clean models are those of the bench: each is scored by weights that never saw it, and false alarms are
            as many as ranking them among themselves makes.
    """
    clean = [model for model in models if model.row == CLEAN]
    found: dict[str, Any] = {"auroc": {}, "auroc_working": {}}
    most = 0
    for row in dict.fromkeys(model.row for model in models if model.row != CLEAN):
        weights = weighed(table(row), allowed)
        quiet = list(weights.clean_scores) if own else [weights.score(model.p_values) for model in clean]
        most = max(most, sum(weights.p_value(score) <= ALPHA for score in quiet))
        for name, least in KINDS.items():
            mine = [weights.score(m.p_values) for m in models if m.row == row and m.asr >= least]
            if mine:
                found[name][row] = interval(auroc(mine, quiet)) | {"models": len(mine)}
    shipped = weighed(table(None), allowed)
    return {
        "members": dict(zip(shipped.detectors, (round(float(w), 3) for w in shipped.weights), strict=True)),
        "false_alarms": None if own else counted(most, len(clean)),
        **found,
        **{f"mean_{name}": mean(found[name]) for name in KINDS},
    }


def weighed(table: StackTable, allowed: Sequence[str]) -> Weights:
    """As `auto` does it with these detectors, and with all the time it likes."""
    usable = [name for name in table.detectors if name in allowed]
    return fit_weights(table, choose_members(table, usable, forward=FORWARD, budget=None))


def mean(rows: dict[str, dict[str, float]]) -> float | None:
    """Of the AUROCs of all rows."""
    return round(sum(area["value"] for area in rows.values()) / len(rows), 4) if rows else None


def alone(name: str, models: Sequence[Judged], *, own: bool) -> dict[str, Any]:
    """A detector by itself; false alarms where it is ranked among other clean models than the bench's own."""
    found = areas(models, lambda model: model.scores[name])
    ranked = [model.p_values[name] for model in models if model.row == CLEAN and name in model.p_values]
    alarms = sum(p <= ALPHA for p in ranked)
    return {"false_alarms": counted(alarms, len(ranked)) if ranked and not own else None, **found}


def areas(models: Sequence[Judged], score: Callable[[Judged], float]) -> dict[str, Any]:
    """AUROC of each row against the clean models, over all victims and over working ones; and the means over rows."""
    clean = [score(m) for m in models if m.row == CLEAN]
    found: dict[str, Any] = {}
    for name, least in KINDS.items():
        rows = {}
        for row in dict.fromkeys(m.row for m in models if m.row != CLEAN):
            mine = [score(m) for m in models if m.row == row and m.asr >= least]
            if mine:
                rows[row] = interval(auroc(mine, clean)) | {"models": len(mine)}
        found[name] = rows
        found[f"mean_{name}"] = mean(rows)
    return found


def figures(recipe: BenchRecipe, out: Path) -> dict[str, Any]:
    """The bench's table, `auto` by what the auditor holds, and each detector alone on the same models.

    Ships the stack that all of them taught, if it is one of populations.
    """
    models = judged(recipe, out)
    kept: dict[str, Any] = {"recipe": recipe.model_dump(mode="json", exclude={"data"})}
    summary = bench_table(recipe, out)
    kept["table"] = summary.model_dump(mode="json", exclude={"versions"})
    own = recipe.task not in PLANS
    if any(m.row == CLEAN for m in models) and any(m.row != CLEAN for m in models):
        table = tables(recipe, models, summary)
        if not own:
            table(None).save(OUT / "_stacks" / f"{recipe.task}.json")
        kept["auto"] = {holding: auto(table, models, allowed, own=own) for holding, allowed in HOLDINGS.items()}
        kept["alone"] = {name: alone(name, models, own=own) for name in recipe.detectors}
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cached", action="store_true", help="measure nothing; write what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = known("bench")
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
