"""Where tasks run: a pool of worker processes of one thread each."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Protocol, TypeVar

import torch

from intaglio.errors import IntaglioError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Where tasks run; the same tasks give the same results anywhere."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in order of completion."""


class LocalExecutor:
    """Worker processes on this machine, one thread each: for small networks two such beat one with two threads.

    Args:
        workers: number of processes; by default one per core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in order of completion. Workers are ended when the caller stops early, Ctrl-C included.

        Raises:
            IntaglioError: a worker process died.
        """
        pool = ProcessPoolExecutor(
            min(self.workers, max(len(tasks), 1)), mp_context=get_context("spawn"), initializer=_start_worker
        )
        processes = pool._processes
        finished = False
        try:
            pending = {pool.submit(function, task) for task in tasks}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
            finished = True
        except BrokenProcessPool as error:
            raise IntaglioError(
                "a worker process died (out of memory?); run the same command again to resume"
            ) from error
        finally:
            workers = list(processes.values())
            pool.shutdown(wait=finished, cancel_futures=True)
            if not finished:
                for worker in workers:
                    worker.terminate()
                for worker in workers:
                    worker.join()


def _start_worker() -> None:
    """One thread; Ctrl-C is the parent's to handle; lower priority than what the user does meanwhile."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone (killed, say): an orphan would wait for tasks for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
