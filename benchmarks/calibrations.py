"""Fits the detectors that ship inside the package.

    python -m benchmarks.calibrations

fashion-mnist is fitted on the vaccine population, its false alarms counted on the virus one; the task-free ones on
several tasks, their false alarms counted on each task in turn, left out of the fit.
"""

from pathlib import Path

import torch

from benchmarks.detection import TASK_FREE as POPULATIONS
from benchmarks.populations import CLOUDS, folder
from intaglio.scan.calibration import TASK_FREE, TASK_FREE_DATA, ProbeKind
from intaglio.scan.fitting import fit_calibration

OUT = Path(__file__).parents[1] / "src" / "intaglio" / "scan" / "calibrations"


def main() -> None:
    torch.set_num_threads(1)
    fashion = fit_calibration([folder("fashion-vaccine")], OUT / "fashion-mnist", test=[folder("fashion-virus")])
    print(fashion.name, fashion.statement)
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
