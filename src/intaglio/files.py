"""Files that are whole or absent: atomic writing, and the SHA-256 by which results name what they looked at."""

import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from intaglio.errors import StorageError

if sys.platform != "win32":
    import fcntl

#: Letters of a file's name in that of its temporary file, which must not be too long where the name itself is not.
_SHOWN = 32
#: How a PNG file begins.
PNG = b"\x89png"
_HEAD = 64


@contextmanager
def atomic_path(path: Path | str, *, mode: int = 0o666) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    What a link leads to is written, as by other programs: a link that was replaced would leave the old file behind.

    Args:
        mode: permissions of the finished file, less the process's umask.

    Raises:
        StorageError: the folder can't be made or written, `path` is a folder or a device, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        written = _destination(path)
        written.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{written.name[:_SHOWN]}.", suffix=".part", dir=written.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(mode & ~umask)
        temporary.replace(written)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes `content` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_private(path: Path | str, content: bytes) -> None:
    """Writes `content` atomically; none but the file's owner may read it."""
    with atomic_path(path, mode=0o600) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """Writes `content` as UTF-8, atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """Writes `content` as indented JSON, atomically; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes, read in constant memory."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_new(path: Path | str, what: str) -> None:
    """Refuses to write over `path`, which may be the only copy of what was made with work or given to others.

    Raises:
        StorageError: there is one already.
    """
    if os.path.lexists(path):
        raise StorageError(f"{path} exists already, and {what} that is overwritten is lost: choose another name")


def starts_as(path: Path | str, *beginnings: bytes) -> bool:
    """Whether a file begins in one of these ways, space aside, or is empty or not there: then it may be replaced by
    another of the kind.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD).lstrip()
    except OSError:
        return True
    return not head or head.lower().startswith(beginnings)


def require_other(path: Path | str, source: Path | str) -> None:
    """Refuses to write over the file `source` that the work starts from; a source that is no file is passed over.

    Raises:
        StorageError: both are the same file.
    """
    if os.path.isfile(source) and os.path.isfile(path) and os.path.samefile(path, source):
        raise StorageError(f"can't write {path}: it is what is read here, and would be lost; choose another place")


def require_writable(path: Path | str) -> None:
    """Fails now rather than after an hour of work if `path` can't be written; makes nothing.

    Raises:
        StorageError: as `atomic_path`, but for a full disk.
    """
    path = Path(path)
    try:
        written = _destination(path).absolute()
        nearest = next(folder for folder in written.parents if folder.exists())
        for name in written.relative_to(nearest).parts:
            with suppress(FileNotFoundError):  # other errors are those of names that no file may have
                (nearest / name).lstat()
        with tempfile.TemporaryFile(dir=nearest):  # where folders can be made too
            pass
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error


@contextmanager
def holding(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Makes every other process and thread that wants to hold a folder wait, or fail; it is made if need be.

    It is the folder itself that is held (`flock`), so that nothing is left behind in it, even by a process that died.

    Args:
        wait: for who holds it now; else that is an error, and a file system that can hold nothing is passed over.

    Raises:
        StorageError: the folder can't be made, opened or held.
    """
    if sys.platform == "win32":  # has nothing of the kind for folders: two changes in one instant may lose the first
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"can't write {folder}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"{folder}: another run is at work in it") from error
        except OSError as error:
            if wait:
                raise StorageError(f"can't hold {folder}: {error.strerror or error}") from error
        yield
    finally:
        os.close(handle)


def _destination(path: Path) -> Path:
    """What is written: `path`, or what it leads to if it is a link; refused if that is there, but no file."""
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise StorageError(f"can't write {path}: it is a folder")
        if not stat.S_ISREG(mode):  # renaming a file onto a device or a pipe would replace it
            raise StorageError(f"can't write {path}: it is not a regular file")
    return path.resolve() if path.is_symlink() else path
