"""`intaglio bench`: every attack against every detector, in one table."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.everywhere import require_apart
from intaglio.cli.executor import Address, ExecutorName, ExecutorOption, Workers, make_executor
from intaglio.cli.options import Debug, JsonFile, Quiet, RecipeSeed


def bench(
    recipe: Annotated[Path, typer.Argument(help="Attacks, detectors and models.", metavar="RECIPE.yaml")],
    out: Annotated[Path, typer.Option(help="Folder for the models, the cells and the table.")],
    executor: ExecutorOption = ExecutorName.LOCAL,
    workers: Workers = None,
    address: Address = None,
    json: JsonFile = None,
    seed: RecipeSeed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Play (or go on playing) every attack of RECIPE.yaml against every detector. Safe to interrupt and run again."""
    from intaglio.bench import read_bench_recipe, run_bench
    from intaglio.bench.running import RECIPE
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say

    require_apart(json, *(out / name for name in (RECIPE, "table.json", "table.md", "table.svg")))
    require_deliverable(json)
    place = make_executor(executor, workers, address, out)
    plan = read_bench_recipe(recipe)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    with progress_bar(f"bench {plan.name}", quiet=quiet) as progress:
        table = run_bench(plan, out, executor=place, progress=progress)
    deliver_json(table.to_json(), json)
    say(*(out / "table.md").read_text().splitlines(), quiet=quiet, json_to_stdout=json == "-")
    return 0
