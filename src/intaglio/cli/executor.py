"""Options that say where models are built and examined: processes of this machine, or a Ray cluster."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from intaglio.populations import Executor


class ExecutorName(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    RAY = "ray"


ExecutorOption = Annotated[ExecutorName, typer.Option("--executor", help="Where jobs run.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Jobs at a time; by default one a core.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="For ray: host:port of a cluster whose machines all see --out and the data; by default a local one."
    ),
]


def make_executor(name: ExecutorName, workers: int | None, address: str | None, out: Path) -> "Executor":
    """The executor that the options ask for; `out` must be seen by all its workers.

    Raises:
        typer.BadParameter: an address without Ray.
        IntaglioError: Ray is not installed.
    """
    from intaglio.populations import LocalExecutor
    from intaglio.populations.ray_executor import RayExecutor

    if name is ExecutorName.RAY:
        return RayExecutor(address, workers, shared=out)
    if address is not None:
        raise typer.BadParameter("a cluster's address goes with --executor ray", param_hint="--address")
    return LocalExecutor(workers)
