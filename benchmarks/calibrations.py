"""Fits the detectors that ship inside the package.

    python -m benchmarks.calibrations

fashion-mnist is fitted on the vaccine population, its false alarms counted on the virus one; the task-free ones on
several tasks, their false alarms counted on each task in turn, left out of the fit.
"""

from pathlib import Path

import torch

from benchmarks.detection import TASK_FREE as POPULATIONS
from benchmarks.populations import CLOUDS, folder
from intaglio.scan.calibration import TASK_FREE, TASK_FREE_DATA
from intaglio.scan.fitting import fit_calibration

OUT = Path(__file__).parents[1] / "src" / "intaglio" / "scan" / "calibrations"


def main() -> None:
    torch.set_num_threads(1)
    fashion = fit_calibration([folder("fashion-vaccine")], OUT / "fashion-mnist", test=[folder("fashion-virus")])
    print(fashion.name, fashion.statement)
    with_images = fit_calibration(
        [folder(name) for name in POPULATIONS["stored"].values()],
        OUT / TASK_FREE_DATA,
        task_free=True,
        probes="data",
        name=TASK_FREE_DATA,
    )
    print(with_images.name, with_images.statement)
    without = fit_calibration(
        [folder(name) for name in POPULATIONS["clouds"].values()],
        OUT / TASK_FREE,
        task_free=True,
        probes="clouds",
        name=TASK_FREE,
        models=CLOUDS,
    )
    print(without.name, without.statement)


if __name__ == "__main__":
    main()
