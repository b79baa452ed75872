"""Builds the populations of the benchmarks, and measures their models. Resumable; takes hours on 2 cores.

python -m benchmarks.populations [NAME ...] [--cifar10 PATH]
"""

import argparse
from pathlib import Path

from benchmarks.fetch import cache_folder, mnist
from intaglio.errors import DataError
from intaglio.populations import build_population, read_recipe
from intaglio.scan.calibration import ProbeKind
from intaglio.scan.fitting import Measured, measure_population

RECIPES = Path(__file__).parent / "recipes"
NAMES = ("fashion-vaccine", "fashion-virus", "fashion-longer", "mnist", "cifar10")


def folder(name: str) -> Path:
    """Where a population lies."""
    return cache_folder() / "populations" / name


#: Probing with synthetic clouds is measured on the first so many models of each population.
CLOUDS = 70


def measured(name: str, kind: ProbeKind = "stored") -> Measured:
    """A population's features, measured now if need be."""
    return measure_population(folder(name), kind, models=CLOUDS if kind == "clouds" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz (plain arrays, or JPEG bytes and offsets)")
    options = parser.parse_args()
    for name in options.names:
        data: Path | None = None
        if name == "mnist":
            data = mnist()
        elif name == "cifar10":
            if options.cifar10 is None:
                raise DataError("cifar10 is not packaged anywhere: give its .npz with --cifar10")
            data = options.cifar10.resolve()
        recipe = read_recipe(RECIPES / f"{name}.yaml")

        def show(done: int, total: int, name: str = name) -> None:
            print(f"\r{name}: {done} of {total}", end="", flush=True)

        build_population(recipe, folder(name), data=data, progress=show)
        print()
        kinds: tuple[ProbeKind, ...] = (
            ("stored",) if name in ("fashion-vaccine", "fashion-longer") else ("stored", "clouds")
        )
        for kind in kinds:
            print(f"{name}: measured {len(measured(name, kind).records)} models ({kind})")


if __name__ == "__main__":
    main()
