"""`run_bench`: trains what is missing, examines what is missing, and writes the table of what is there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intaglio.bench.cells import CELLS, Cell, CellJob, cell_path, fill_cell, read_cell, without_model
from intaglio.bench.recipe import AttackRow, BenchRecipe, slug
from intaglio.bench.table import BenchTable, make_table
from intaglio.bench.victims import VictimJob, VictimRecord, build_victim, read_victim, victim_folder
from intaglio.errors import DataError, RecipeError
from intaglio.files import holding, write_json
from intaglio.populations import Executor, LocalExecutor
from intaglio.populations.population import (
    claimed,
    load_splits,
    require_data,
    require_images,
    settled,
    splits_digest,
)
from intaglio.scan.scanning import make_detector

RECIPE = "bench.json"
#: Called with (models and cells finished, models and cells in all).
Progress = Callable[[int, int], None]


def run_bench(
    recipe: BenchRecipe,
    out: Path | str,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> BenchTable:
    """Fills what is missing of the bench in `out` and returns its table. Safe to interrupt and run again.

    A cell that its detector refuses (too little access, say) is kept with the reason, and counted in the table; remove
    its file to try again.

    Raises:
        RecipeError: `out` holds a bench of another recipe, or models of a row with other options; an unknown detector.
        DataError: the images can't be read, or have no test images of their own; or a file of the bench is damaged.
        StorageError: `out` can't be written, or another run is at work in it.
    """
    out, executor = Path(out), executor or LocalExecutor()
    for name in recipe.detectors:
        make_detector(name)
    _, test = load_splits(recipe.source, recipe.samples)  # a bad data set is reported once, here
    if len(test) < 2 * recipe.asked:
        raise DataError(f"{recipe.source}: {len(test)} test images, fewer than twice the {recipe.asked} of `asked`")
    with holding(out, wait=False):  # two runs would remove each other's half-built models
        _claim(out, recipe)
        return _fill(recipe, out, executor, progress)


def _fill(recipe: BenchRecipe, out: Path, executor: Executor, progress: Progress | None) -> BenchTable:
    models, victims = _models(recipe), _victims(recipe, out)
    missing = [key for key in models if key not in victims]
    for key in missing:
        _forget(out, *key)
    unmade = {key for key, victim in victims.items() if victim.failed is not None}
    cells = [(detector, row, index) for detector in recipe.detectors for row, index in models]
    unfilled = [key for key in cells if not (key[1:] in unmade or cell_path(out, *key).exists())]
    total = len(models) + len(cells)
    finished = total - len(missing) - len(unfilled)

    def work(function: Callable[[Any], Any], jobs: list[Any]) -> None:
        nonlocal finished
        for _ in executor.map(function, jobs) if jobs else ():
            finished += 1
            if progress is not None:
                progress(finished, total)

    if progress is not None:
        progress(finished, total)
    try:
        clean, _ = recipe.rows()[0]
        for first in (True, False):  # clean models first: victims' triggers are tried on them
            jobs = [VictimJob(recipe, recipe.source, *key, out) for key in missing if (key[0] == clean) is first]
            work(build_victim, jobs)
        work(fill_cell, [CellJob(recipe, recipe.source, *key, out) for key in unfilled])
    finally:
        for scratch in out.glob("models/*/.building-*"):
            shutil.rmtree(scratch, ignore_errors=True)
        table = bench_table(recipe, out)  # of what is finished, if it was interrupted
    return table


def bench_table(recipe: BenchRecipe, out: Path) -> BenchTable:
    """The table of what is finished, written as `table.json`, `table.md` and `table.svg`."""
    models, victims = _models(recipe), _victims(recipe, out)
    cells: list[Cell] = []
    for detector in recipe.detectors:
        for key in models:
            victim, path = victims.get(key), cell_path(out, detector, *key)
            if victim is not None and victim.failed is not None:
                cells.append(without_model(detector, *key, victim.failed))
            elif path.exists():
                cells.append(read_cell(path))
    table = make_table(recipe, list(victims.values()), cells)
    table.write(out)
    return table


def _models(recipe: BenchRecipe) -> list[tuple[str, int]]:
    """All models that a bench is to have, by row and number."""
    return [(row, index) for row, count in recipe.rows() for index in range(count)]


def _victims(recipe: BenchRecipe, out: Path) -> dict[tuple[str, int], VictimRecord]:
    """Those that are there, and those that could not be made."""
    found = {key: read_victim(victim_folder(out, *key)) for key in _models(recipe)}
    return {key: victim for key, victim in found.items() if victim is not None}


def _claim(out: Path, recipe: BenchRecipe) -> None:
    """Writes the recipe into the folder, with all rows that it ever had; one that would make other models is refused.

    Raises:
        RecipeError: the folder is another recipe's, or has a row of that title with other options.
        DataError: it doesn't say.
    """
    path = out / RECIPE
    rows, data = recipe.specifications(), settled(recipe.source)
    images = splits_digest(recipe.source, recipe.samples)
    if claimed(path, recipe.digest, "bench"):
        require_data(json.loads(path.read_text()).get("data", data), data, path)  # older files don't say
        require_images(path, images)
        before = _rows(path)
        folders = {slug(title): (title, row) for title, row in before.items()}
        for title, row in rows.items():
            if folders.get(slug(title), (title, row)) != (title, row):
                raise RecipeError(
                    f"{out}: the models of row '{title}' were made with other options, or under a name that differs in "
                    "capitals or punctuation alone: give the row a label of its own, or choose another folder"
                )
        rows = before | rows
    content = {"recipe": recipe.model_dump(mode="json"), "sha256": recipe.digest, "data": data, "rows": rows}
    write_json(path, content | {"images": images})


def _forget(out: Path, row: str, index: int) -> None:
    """Removes the cells of a model that is not there, all detectors': they are those of another."""
    for path in (out / CELLS).glob(f"*/{slug(row)}/{index:03d}.json"):
        path.unlink()


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Every attack's row that the bench ever had, by title; files from before they were kept have those of the last."""
    try:
        content = json.loads(path.read_text())
        last = [AttackRow.model_validate(row) for row in content["recipe"]["attacks"]]
        known: dict[str, dict[str, Any]] = content.get("rows", {})
        return {row.title: row.model_dump(mode="json") for row in last} | known
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: does not say which rows the bench has ({error})") from error
