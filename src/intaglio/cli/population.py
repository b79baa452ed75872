"""`intaglio population`: build many models from a recipe, and fit a detector to them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from intaglio.cli.everywhere import require_apart
from intaglio.cli.executor import Address, ExecutorName, ExecutorOption, Workers, make_executor
from intaglio.cli.options import Debug, JsonFile, Quiet, RecipeSeed, Seed

population_app = typer.Typer(
    name="population", no_args_is_help=True, help="Build populations of models; fit detectors."
)


@population_app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The population's recipe.", metavar="RECIPE.yaml")],
    out: Annotated[Path, typer.Option(help="Folder for the models and their manifest.")],
    data: Annotated[str | None, typer.Option(help="Data set to use instead of the recipe's.")] = None,
    executor: ExecutorOption = ExecutorName.LOCAL,
    workers: Workers = None,
    address: Address = None,
    json: JsonFile = None,
    seed: RecipeSeed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Build (or go on building) the population of RECIPE.yaml in --out. Safe to interrupt and run again."""
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.populations import build_population, read_failures, read_recipe
    from intaglio.populations.population import RECIPE

    require_apart(json, out / RECIPE, out / "manifest.json")
    require_deliverable(json)
    place = make_executor(executor, workers, address, out)
    plan = read_recipe(recipe)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    with progress_bar(f"building {plan.name}", quiet=quiet) as progress:
        records = build_population(plan, out, data=data, executor=place, progress=progress)
    deliver_json((out / "manifest.json").read_text(), json)
    backdoored = [record.asr for record in records if record.asr is not None]
    failed = ", ".join(str(failure.index) for failure in read_failures(out))
    say(
        f"{out}: {len(records)} models, {len(backdoored)} of them backdoored "
        f"({sum(asr >= 0.9 for asr in backdoored)} with an attack success rate of 0.9 or more)"
        + (f"; not built (see failed.json): {failed}" if failed else ""),
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    return 0


@population_app.command()
def fit(
    folders: Annotated[list[Path], typer.Argument(help="One or more populations.", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="Folder for the detector and its calibration.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="A population to measure on, never learned from; may be repeated.")
    ] = None,
    task_free: Annotated[
        bool, typer.Option(help="Learn only what carries over to tasks not in the populations.")
    ] = False,
    probes: Annotated[
        Literal["stored", "clouds", "data"] | None,
        typer.Option(help="Probe with images of the task, with synthetic clouds, or with the user's clean images."),
    ] = None,
    models: Annotated[int | None, typer.Option(min=1, help="Use only the first so many of each population.")] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="Score the clean models with this detector instead, for `scan --detector NAME`."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Learn nothing: keep the networks of this calibration (a folder, or the name of a shipped one: "
            "fashion-mnist, task-free, task-free-data) and rank against the clean models of DIR, too.",
            metavar="CALIBRATION",
        ),
    ] = None,
    json: JsonFile = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Fit a detector to populations; `scan --calibration OUT` then uses it.

    The one-pixel signature learns from clean and backdoored models; with --base it takes what was learned elsewhere,
    and clean models are enough. Other detectors (--detector) learn nothing: their scores of the clean models are what
    a suspect is ranked among.
    """
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.scan.calibration import open_calibration
    from intaglio.scan.fitting import fit_calibration, join_calibration
    from intaglio.scan.fitting_scores import fit_clean_scores

    require_deliverable(json)
    if detector is not None:
        if task_free or probes is not None or base is not None:
            raise typer.BadParameter(
                "--task-free, --probes and --base are for the one-pixel signature", param_hint="--detector"
            )
        with progress_bar(f"scoring clean models with {detector}", quiet=quiet) as progress:
            scores = fit_clean_scores(detector, folders, out, test=test or [], models=models, progress=progress)
        deliver_json(scores.to_json(), json)
        counts = ", ".join(f"{len(task.scores)} clean models of {task.task}" for task in scores.tasks)
        say(f"{out}: {detector} scores of {counts}", quiet=quiet, json_to_stdout=json == "-")
        return 0
    if base is not None and (task_free or probes is not None):
        raise typer.BadParameter("--task-free and --probes are those of --base", param_hint="--base")
    kept = None if base is None else open_calibration(base)
    with progress_bar("measuring signatures", quiet=quiet) as progress:
        if kept is not None:
            calibration = join_calibration(kept, folders, out, test=test or [], models=models, progress=progress)
        else:
            calibration = fit_calibration(
                folders,
                out,
                test=test or [],
                task_free=task_free,
                probes=probes,
                models=models,
                seed=seed,
                progress=progress,
            )
    deliver_json(calibration.to_json(), json)
    say(f"{out}: {calibration.statement}", quiet=quiet, json_to_stdout=json == "-")
    return 0
