"""Where tasks run: the machines of a Ray cluster, or a cluster of this machine's own."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from intaglio.errors import IntaglioError, StorageError

Task = TypeVar("Task")
Result = TypeVar("Result")

#: A worker that dies costs its task so many further tries, each on another worker.
_RETRIES = 3


class RayExecutor:
    """Tasks on a Ray cluster, one thread and one core each; takes the place of a `LocalExecutor`.

    The same tasks give the same results: every random choice flows from the task's own seed. (On processors of another
    kind sums may differ in their last digits.) Every machine needs intaglio in the same version and sees the
    folder that this is started in, the output folder and the data under the same paths.

    Args:
        address: of a running cluster: host:port, or "auto" for the one that this machine is part of; by default a
            cluster of this machine's own, for as long as it is needed.
        workers: tasks at a time; by default one per core of the cluster.
        shared: a folder that every worker must see as this machine does: checked before a worker's first result.

    Raises:
        IntaglioError: Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, *, shared: Path | str | None = None
    ) -> None:
        self.workers = workers
        self.address = address
        self.shared = None if shared is None else Path(shared).resolve()
        _ray()

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in order of completion. A worker that dies, killed say, costs its task another try elsewhere.

        Raises:
            IntaglioError: no cluster at the address, or one that can't run tasks; or a task whose workers died at every
                try: the others' results come first.
            StorageError: a worker doesn't see the shared folder.
        """
        if not tasks:
            return
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray, len(tasks))
        token = self._token()
        running: dict[Any, Task] = {}
        waiting, lost = list(reversed(tasks)), 0
        try:
            remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run_task)
            here = Path.cwd()
            window = self.workers or len(tasks)
            while waiting or running:
                while waiting and len(running) < window:
                    task = waiting.pop()
                    running[remote.remote(function, task, here, token)] = task
                (done,), _ = ray.wait(list(running), num_returns=1)
                del running[done]
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:  # what the task itself raised, as it raised it
                    raise (error.cause if isinstance(error.cause, Exception) else error) from None
                except (
                    ray.exceptions.WorkerCrashedError,
                    ray.exceptions.NodeDiedError,
                    ray.exceptions.OutOfMemoryError,
                    ray.exceptions.ObjectLostError,
                ):
                    lost += 1
                    continue
                except ray.exceptions.RayError as error:  # a machine without intaglio, for example
                    raise IntaglioError(f"Ray: {' '.join(str(error).split())[:300]}") from error
                yield result
            if lost:
                raise IntaglioError(
                    f"{lost} of {len(tasks)} tasks were lost: their worker died {_RETRIES + 1} times (out of memory?); "
                    "run the same command again to resume"
                )
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if token is not None:
                token.unlink(missing_ok=True)
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any, tasks: int) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report on the user to its makers
        try:
            if self.address is None:
                ray.init(
                    num_cpus=min(self.workers or len(os.sched_getaffinity(0)), tasks),
                    num_gpus=0,
                    include_dashboard=False,
                    **quiet,
                )
            else:
                ray.init(address=self.address, **quiet)
        except Exception as error:  # a node that doesn't start in time is a plain Exception
            where = "a local Ray cluster can't be started" if self.address is None else f"no Ray cluster {self.address}"
            raise IntaglioError(f"{where}: {' '.join(str(error).split())[:200]}") from error

    def _token(self) -> Path | None:
        """A file in the shared folder by which workers tell that it is this one."""
        if self.shared is None:
            return None
        path = self.shared / f".shared-{uuid.uuid4().hex}"
        try:
            self.shared.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StorageError(f"can't write {self.shared}: {error.strerror or error}") from error
        return path


def _run_task(function: Callable[[Task], Result], task: Task, here: Path, token: Path | None) -> Result:
    """One task, in a worker, in one thread and in the caller's folder. (Ray gives workers a low priority itself.)"""
    torch.set_num_threads(1)
    machine = os.uname().nodename
    try:
        os.chdir(here)  # paths in tasks may be relative to it
    except OSError as error:
        raise StorageError(f"{here}: a worker on {machine} can't go there: start in a folder that all share") from error
    if token is not None and not token.exists():
        raise StorageError(f"{token.parent}: a worker on {machine} sees another folder: share it with all")
    return function(task)


def _ray() -> Any:
    """Ray, imported when it is needed.

    Raises:
        IntaglioError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise IntaglioError("this executor needs Ray, which is not installed: pip install 'intaglio[ray]'") from error
    return ray
