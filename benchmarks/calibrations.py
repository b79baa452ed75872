"""Fits the detectors that ship inside the package.

    python -m benchmarks.calibrations [--keep-networks]

fashion-mnist is fitted on the vaccine population; clean models that were trained for longer join its ranks, and false
alarms are counted on the virus population. The task-free ones are fitted on several tasks, their false alarms counted
on each task in turn, left out of the fit.

With --keep-networks those of fashion-mnist stay as they ship and nothing else is fitted: its clean models alone are
measured anew. Of the vaccine population clean models are enough for that, and as many are ranked against as there are;
each is scored by the networks that never saw it, or the same model trained on another kind of processor.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.detection import TASK_FREE as POPULATIONS
from benchmarks.populations import CLOUDS, RECIPES, folder
from intaglio.populations import read_recipe
from intaglio.scan.calibration import TASK_FREE, TASK_FREE_DATA, Calibration, CleanScores, ProbeKind, load_calibration
from intaglio.scan.ensemble import FOLDS, assign_folds, out_of_fold
from intaglio.scan.fitting import fit_calibration, join_calibration, measure_population

OUT = Path(__file__).parents[1] / "src" / "intaglio" / "scan" / "calibrations"
FASHION, VACCINE, LONGER, VIRUS = "fashion-mnist", "fashion-vaccine", "fashion-longer", "fashion-virus"


def measured_anew(base: Calibration) -> Calibration:
    """The calibration ranked against the vaccine population's clean models as they are now."""
    recipe = read_recipe(RECIPES / f"{VACCINE}.yaml")
    plans = [recipe.plan(index) for index in range(recipe.models)]
    folds = assign_folds(torch.tensor([plan.attack is not None for plan in plans]), FOLDS, 0)  # as in the fit
    population = measure_population(folder(VACCINE), base.meta.probes, clean_only=True)
    examples, fold = population.examples, folds[[record.index for record in population.records]]
    scores, _ = out_of_fold(base.ensemble, examples, fold)
    known = CleanScores.by_fold(population.task, FOLDS, fold, scores, examples.confidence)
    return replace(base, meta=base.meta.model_copy(update={"clean": (known,)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep-networks", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.keep_networks:
        base = measured_anew(load_calibration(OUT / FASHION))
    else:
        with TemporaryDirectory() as scratch:
            fit_calibration([folder(VACCINE)], Path(scratch))
            base = load_calibration(Path(scratch))
    fashion = join_calibration(base, [folder(LONGER)], OUT / FASHION, test=[folder(VIRUS)])
    print(fashion.name, fashion.statement)
    if options.keep_networks:
        return
    kinds: dict[ProbeKind, str] = {"stored": TASK_FREE_DATA, "clouds": TASK_FREE}
    for kind, name in kinds.items():
        fitted = fit_calibration(
            [folder(part) for parts in POPULATIONS[kind].values() for part in parts],
            OUT / name,
            task_free=True,
            probes="data" if kind == "stored" else "clouds",
            name=name,
            models=CLOUDS if kind == "clouds" else None,
        )
        print(fitted.name, fitted.statement)


if __name__ == "__main__":
    main()
