"""What the commands print: progress on standard error, results on standard output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from intaglio.files import write_text

errors = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def progress_bar(description: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function (done, total) that moves a bar with an estimate of the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def say(*lines: Any, quiet: bool, json_to_stdout: bool = False) -> None:
    """Prints for a person; to standard error when standard output carries JSON."""
    if not quiet:
        for line in lines:
            rich.print(line, file=errors.file if json_to_stdout else None)


def deliver_json(text: str, target: str | None) -> None:
    """Writes JSON to a file, or to standard output for "-"."""
    if target == "-":
        Console(soft_wrap=True, highlight=False, markup=False, emoji=False).out(text, end="", highlight=False)
    elif target is not None:
        write_text(target, text)
