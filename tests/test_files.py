"""Files that are whole or absent, results that survive JSON, and seeds that name their streams."""

import errno
import hashlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intaglio.errors import DataError, StorageError
from intaglio.files import (
    atomic_path,
    require_writable,
    sha256_file,
    write_bytes,
    write_json,
    write_private,
    write_text,
)
from intaglio.results import Result, package_versions
from intaglio.seeds import derive_seed, python_random, torch_generator


class Finding(Result):
    score: float
    classes: tuple[int, ...] = ()


def refuse(code: int) -> Callable[..., Any]:
    """A function that fails as the operating system does."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("write", "content", "expected"),
    [
        (write_bytes, b"\0\xff", b"\0\xff"),
        (write_bytes, b"", b""),
        (write_text, "größer", "größer".encode()),
        (write_json, {"a": [1, None, 0.5]}, b'{\n "a": [\n  1,\n  null,\n  0.5\n ]\n}\n'),
    ],
)
def test_writers_write_and_overwrite(
    tmp_path: Path, write: Callable[[Path, Any], None], content: Any, expected: bytes
) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write(path, content)
    assert path.read_bytes() == expected
    path.write_bytes(b"older and longer content" * 9)
    write(path, content)
    assert path.read_bytes() == expected
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the new cont")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"x")
        assert os.umask(umask) == umask  # as it was found
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("os.fsync", errno.ENOSPC, "No space left on device"),
        ("tempfile.mkstemp", errno.EACCES, "Permission denied"),
        ("pathlib.Path.replace", errno.EROFS, "Read-only file system"),
    ],
)
def test_what_the_system_refuses_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, message: str
) -> None:
    monkeypatch.setattr(function, refuse(code))
    with pytest.raises(StorageError, match=rf"can't write .*file: {message}"):
        write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with largest_file(1000), pytest.raises(StorageError, match=r"can't write .*file: File too large"):
        write_bytes(path, bytes(5000))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("function", [require_writable, lambda path: write_bytes(path, b"x")])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (".", "folder|directory"),
        ("file/below/it", "Not a directory|File exists"),
        ("/proc/intaglio/file", "No such file or directory"),
    ],
)
def test_targets_that_cannot_be_written(
    tmp_path: Path, function: Callable[[Path], None], target: str, message: str
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(StorageError, match=message):
        function(tmp_path / target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a regular file"):
        write_text(pipe, "content")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_device_is_no_place_for_a_file() -> None:
    for function in (require_writable, lambda path: write_text(path, "content")):
        with pytest.raises(StorageError, match="can't write /dev/null: it is not a regular file"):
            function("/dev/null")


def test_what_is_writable_can_be_written(tmp_path: Path) -> None:
    """The longest name there may be, and links to a file and to none."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "new" / "file")
    for name in ("x" * 255, "ö" * 127, "link", "dangling"):
        require_writable(tmp_path / name)
        write_bytes(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for function in (require_writable, lambda path: write_bytes(path, b"content")):
        with pytest.raises(StorageError, match="Too many levels of symbolic links"):
            function(tmp_path / "loop")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        write_bytes(tmp_path / ("x" * 300), b"x")


def test_require_writable_makes_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "newer" / "file")
    assert list(tmp_path.iterdir()) == []
    for target in (tmp_path / ("x" * 300) / "file", tmp_path / ("x" * 256), tmp_path / "new" / ("x" * 256)):
        with pytest.raises(StorageError, match="File name too long"):
            require_writable(target)


@given(st.binary(max_size=3000))
def test_sha256_is_that_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


@given(st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers(-9, 9)))
def test_results_survive_json(score: float, classes: list[int]) -> None:
    result = Finding(score=score, classes=tuple(classes))
    assert Finding.from_json(result.to_json()) == result
    assert result.to_dict() == {"score": score, "classes": classes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"score": "high"}', "not a Finding: score: Input should be a valid number"),
        ('{"score": 1, "extra": 2}', "not a Finding: extra: Extra inputs"),
        ('{"score": 1, "classes": [0, "x"]}', r"not a Finding: classes\.1: "),
        ('{"score": NaN}', "not a Finding: score: "),
        ('{"score"', "not a Finding: Invalid JSON"),
    ],
)
def test_what_is_no_result_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Finding.from_json(text)


def test_results_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Finding(score=1.0).score = 2.0  # type: ignore[misc]


def test_versions_name_what_is_installed() -> None:
    assert package_versions()["torch"] == torch.__version__


def test_seeds_are_the_hash_of_their_path() -> None:
    assert derive_seed(7, "a", 3) == int.from_bytes(hashlib.sha256(b"7/a/3").digest()[:8], "big") >> 1
    assert torch_generator(7, "a", 3).initial_seed() == derive_seed(7, "a", 3)
    assert python_random(7, "a").random() == python_random(7, "a").random() != python_random(7, "b").random()


@given(st.integers(), st.lists(st.text("ab", max_size=3) | st.integers(0, 99), max_size=3))
def test_seeds_fit_every_generator(seed: int, names: list[str | int]) -> None:
    assert 0 <= derive_seed(seed, *names) < 2**63


def test_streams_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.rand(9, generator=torch_generator(1, "x"))
    assert torch.equal(torch.rand(3), expected)


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    """A key that is re-encrypted through a link would else stay readable, under its old passphrase, where it lies."""
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe" / "owner.key").write_text("old")
    (tmp_path / "owner.key").symlink_to(tmp_path / "safe" / "owner.key")
    write_private(tmp_path / "owner.key", b"new")
    assert (tmp_path / "owner.key").is_symlink()
    assert (tmp_path / "safe" / "owner.key").read_text() == "new"
    assert [path.name for path in (tmp_path / "safe").iterdir()] == ["owner.key"]
