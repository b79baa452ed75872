"""What the commands print: progress on standard error, results on standard output."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from intaglio.errors import StorageError, printable
from intaglio.files import require_writable, write_text

errors = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def progress_bar(description: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function (done, total) that moves a bar with an estimate of the time left."""
    columns = (
        TextColumn("{task.description}", markup=False),
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


def say(*lines: str | RenderableType, quiet: bool, json_to_stdout: bool = False) -> None:
    """Prints for a person; to standard error when standard output carries JSON. A string is one line, as it is."""
    if not quiet:
        for line in lines:
            console = Console(stderr=json_to_stdout, highlight=False)
            shown = printable(line) if isinstance(line, str) else line
            console.print(shown, soft_wrap=isinstance(line, str), markup=False, emoji=False)


def require_deliverable(*targets: Path | str | None) -> None:
    """Fails before any work if a file can't be written; standard output ("-"), devices and pipes can.

    Raises:
        StorageError: with the first that can't.
    """
    for target in targets:
        if target not in (None, "-") and _is_plain(Path(target)):
            require_writable(target)


def deliver_json(text: str, target: str | None) -> None:
    """Writes JSON to a file, or to standard output for "-"."""
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    elif target is not None:
        deliver_file(text, Path(target))


def deliver_file(text: str, path: Path) -> None:
    """Writes a file atomically; a device or a pipe, which must not be replaced by a file, directly.

    Raises:
        StorageError: it can't be written.
    """
    if _is_plain(path):
        write_text(path, text)
        return
    try:
        with path.open("w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error


def _is_plain(path: Path) -> bool:
    """A file or a folder, or nothing yet."""
    return path.is_file() or path.is_dir() or not path.exists()
