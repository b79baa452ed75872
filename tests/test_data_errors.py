"""Bad data: each is one clear `DataError` that names the file, whatever the bytes; nothing in a file runs."""

import contextlib
import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intaglio.data import ImageData, open_data
from intaglio.data.idx import read_idx, write_idx
from intaglio.data.picture import read_picture
from intaglio.errors import DataError

IMAGES = np.zeros((2, 4, 4), np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


class Payload:
    """Unpickling this creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def png(size: tuple[int, int] = (4, 4), mode: str = "L", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 1).save(stream, kind)
    return stream.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(shape: str, content: bytes = b"") -> bytes:
    """An `.npy` whose header declares any shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def idx(images: bytes | None, labels: bytes | None = None) -> dict[str, bytes]:
    parts = {"images-idx3": images, "labels-idx1": labels or write_idx(torch.zeros(2, dtype=torch.uint8))}
    return {f"train-{kind}-ubyte.gz": content for kind, content in parts.items() if content is not None}


GOOD = write_idx(torch.from_numpy(IMAGES))
LABEL = write_idx(torch.zeros(3, dtype=torch.uint8))
FLIPPED = GOOD[:20] + bytes([GOOD[20] ^ 0xFF]) + GOOD[21:]
HUGE = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4))
BELOW = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**10, 2**10, 2**10) + bytes(50))
DEEP = gzip.compress(b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\0")
PAIR = {"labels": np.array([0, 1])}
BOMB = npz_of({"x.npy": npy(f"({2**20}, 4, 4)", bytes(2**24))}, zipfile.ZIP_DEFLATED)

_LZMA = npz_of({"x.npy": npy("(2, 4, 4)", bytes(range(32)))}, zipfile.ZIP_LZMA)
DAMAGED_LZMA = _LZMA[:60] + bytes(byte ^ 0x5A for byte in _LZMA[60:100]) + _LZMA[100:]

#: name -> (files to write below a folder, what to open in it, message)
BAD: dict[str, tuple[dict[str, bytes], str, str]] = {
    "missing": ({}, "nowhere", "no file or folder '.*nowhere', and no bundled task"),
    "name too long": ({}, "x" * 300, "File name too long"),
    "empty folder": ({"sub/readme.txt": b""}, ".", "no pictures in it"),
    "unknown file": ({"data.csv": b"1,2"}, "data.csv", "unknown kind of data"),
    "split missing": ({"test/a/1.png": png()}, ".", "has test, but no folder train"),
    # pictures
    "corrupt picture": ({"1.png": png()[:40]}, ".", r"1\.png: damaged picture|1\.png: not a picture"),
    "text": ({"1.png": b"hello"}, ".", r"1\.png: not a picture"),
    "empty picture": ({"1.jpg": b""}, ".", r"1\.jpg: not a picture"),
    "executable picture": ({"1.png": EPS}, ".", r"1\.png: not a picture"),
    "16 bits": ({"1.png": png(mode="I;16")}, ".", r"1\.png: mode I;16 is not 8 bits"),
    "floats": ({"1.tif": png(mode="F", kind="TIFF")}, ".", r"1\.tif: mode F is not 8 bits"),
    "bomb": ({"1.png": declared_png(30000, 30000)}, ".", r"1\.png: not a picture .*exceeds limit"),
    "large": ({"1.png": declared_png(9000, 8000)}, ".", r"1\.png: 9000 x 8000 is over 67108864 pixels"),
    "cut short": ({"1.png": declared_png(500, 500)}, ".", r"1\.png: damaged picture"),
    "sizes": ({"1.png": png(), "2.png": png((4, 5))}, ".", r"2\.png: is \(1, 5, 4\), but 1\.png is \(1, 4, 4\)"),
    "channels": ({"1.png": png(), "2.png": png(mode="RGB")}, ".",
                 r"2\.png: is \(3, 4, 4\), but 1\.png is \(1, 4, 4\); give channels, 1 for all in grey or 3 for all"),
    "both": ({"1.png": png(), "2.png": png((4, 5), "RGB")}, ".", "give one size to resize all to, and channels, 1 for"),
    # IDX
    "idx cut short": (idx(GOOD[:-9]), ".", "images-idx3-ubyte.gz: damaged or cut short"),
    "idx checksum": (idx(FLIPPED), ".", "images-idx3-ubyte.gz: damaged or cut short"),
    "idx not gzip": (idx(b"hello, world"), ".", "images-idx3-ubyte.gz: damaged or cut short"),
    "idx magic": (idx(gzip.compress(b"\0\0\x0d\x01rest")), ".", r"not an IDX file of bytes \(its header is 00000d01\)"),
    "idx empty": (idx(gzip.compress(b"")), ".", r"not an IDX file of bytes \(its header is empty\)"),
    "idx header": (idx(gzip.compress(b"\0\0\x08\x03\0\0")), ".", "damaged or cut short"),
    "idx declares too much": (idx(HUGE), ".", f"declares {2**64} bytes, over the limit"),
    "idx declares more": (idx(BELOW), ".", f"holds fewer bytes than the {2**30} it declares"),
    "idx holds more": (idx(gzip.compress(gzip.decompress(GOOD) + b"x")), ".", "holds more bytes than the 32"),
    "idx dimensions": (idx(DEEP), ".", "declares 255 dimensions"),
    "idx without labels": ({"train-images-idx3-ubyte.gz": GOOD}, ".", "train-labels-idx1-ubyte.gz is missing"),
    "idx label count": (idx(GOOD, LABEL), ".", r"\(2, 4, 4\) images do not fit \(3,\) labels"),
    "idx label shape": (idx(GOOD, GOOD), ".", "images do not fit"),
    # npz
    "not a zip": ({"d.npz": b"hello"}, "d.npz", r"d\.npz: damaged archive"),
    "zip cut short": ({"d.npz": npz(x=IMAGES)[:-30]}, "d.npz", r"d\.npz: damaged archive"),
    "npy declares too much": ({"d.npz": npz_of({"x.npy": npy("(1000000000000000,)")})}, "d.npz", "or damaged"),
    "npy cut short": ({"d.npz": npz_of({"x.npy": npy("(2, 4, 4)", bytes(9))})}, "d.npz", "or damaged"),
    "npy header": ({"d.npz": npz_of({"x.npy": npy("__import__('os')")})}, "d.npz", "or damaged"),
    "npy shape": ({"d.npz": npz_of({"x.npy": npy(f"({10**30},)")})}, "d.npz", "or damaged"),
    "npy of a truth": ({"d.npz": npz_of({"x.npy": npy("(True,)")})}, "d.npz", "or damaged"),
    "npy unterminated": ({"d.npz": npz_of({"x.npy": npy("(1, ")})}, "d.npz", "or damaged"),
    "npy long header": ({"d.npz": npz_of({"x.npy": npy("(" * 10001)})}, "d.npz", "or damaged"),
    "damaged LZMA": ({"d.npz": DAMAGED_LZMA}, "d.npz", r"d\.npz: damaged archive"),
    "not an array": ({"d.npz": npz_of({"x": b"text"})}, "d.npz", "'x' is not an array"),
    "no images": ({"d.npz": npz(weights=IMAGES, **PAIR)}, "d.npz", "no images in it; it holds labels, weights"),
    "other split": ({"d.npz": npz(x_test=IMAGES)}, "d.npz", "expected for example x_train"),
    "NaN": ({"d.npz": npz(x=np.full((2, 4, 4), np.nan, np.float32))}, "d.npz", "pixel values span nan..nan"),
    "above 1": ({"d.npz": npz(x=IMAGES.astype(np.float32) + 255)}, "d.npz", r"span 255\.\.255, expected \[0, 1\]"),
    "int64": ({"d.npz": npz(x=IMAGES.astype(np.int64))}, "d.npz", "images are int64, expected uint8 or float32"),
    "four channels": ({"d.npz": npz(x=np.zeros((2, 5, 5, 4), np.uint8))}, "d.npz", r"images are \(2, 5, 5, 4\)"),
    "flat images": ({"d.npz": npz(x=np.zeros((2, 16), np.uint8))}, "d.npz", r"images are \(2, 16\)"),
    "zero images": ({"d.npz": npz(x=IMAGES[:0])}, "d.npz", "no images in it"),
    "label count": ({"d.npz": npz(x=IMAGES, y=np.zeros(3, int))}, "d.npz", r"expected 2 integer labels, .* \(3,\)"),
    "label type": ({"d.npz": npz(x=IMAGES, y=np.zeros(2))}, "d.npz", "expected 2 integer labels, got float64"),
    "label range": ({"d.npz": npz(x=IMAGES, classes=np.array(["a"]), **PAIR)}, "d.npz", r"labels span 0\.\.1"),
    "no offsets": ({"d.npz": npz(train_jpeg=IMAGES)}, "d.npz", "damaged archive.*train_offsets"),
    "bad offsets": (
        {"d.npz": npz(train_jpeg=IMAGES.ravel(), train_offsets=np.array([0, 9]))}, "d.npz",
        r"d\.npz, picture 0: not a picture",
    ),
    "offsets in a grid": ({"d.npz": npz(train_jpeg=IMAGES, train_offsets=IMAGES)}, "d.npz", "integer offsets"),
    "sizes in npz": (
        {
            "d.npz": npz(
                train_jpeg=np.frombuffer(png() + png((5, 5)), np.uint8),
                train_offsets=np.array([0, len(png()), len(png() + png((5, 5)))]),
            )
        },
        "d.npz",
        "of different sizes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_clear_error(tmp_path: Path, case: str) -> None:
    files, target, message = BAD[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(tmp_path / target)
    assert target.strip(".") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zip_bomb_is_refused_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BOMB) < 2**15
    (tmp_path / "d.npz").write_bytes(BOMB)
    monkeypatch.setattr("intaglio.data.npz.MAX_BYTES", 2**20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(DataError, match=r"d\.npz: unpacks to 16777344 bytes, over the limit of 1048576"):
        open_data(tmp_path / "d.npz")


def test_a_picture_that_is_named_again_and_again_counts_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = np.frombuffer(png((64, 64)), np.uint8)
    np.savez(tmp_path / "d.npz", train_jpeg=np.tile(one, 9), train_offsets=np.arange(10) * len(one))
    monkeypatch.setattr("intaglio.data.npz.MAX_BYTES", 9 * 64 * 64 * 4)
    assert len(open_data(tmp_path / "d.npz")) == 9
    monkeypatch.setattr("intaglio.data.npz.MAX_BYTES", 9 * 64 * 64 * 4 - 1)
    with pytest.raises(DataError, match=r"d\.npz: its pictures unpack to more than 147455 bytes"):
        open_data(tmp_path / "d.npz")


@pytest.mark.parametrize("key", ["x_train", "y_train", "classes"])
def test_pickled_objects_do_not_run(tmp_path: Path, key: str) -> None:
    marker = tmp_path / "executed"
    arrays: dict[str, Any] = {"x_train": IMAGES, key: np.array([Payload(marker)], object)}
    (tmp_path / "d.npz").write_bytes(npz(**arrays))
    with pytest.raises(DataError, match=r"d\.npz: can't be read without executing it"):
        open_data(tmp_path / "d.npz")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301 - the attack is a real one
    assert marker.exists()


def test_encrypted_archive(tmp_path: Path) -> None:
    content = bytearray(npz(x=IMAGES))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        open_data(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "unknown split 'val'"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"resize": (0, 4)}, "a size of"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "1.png").write_bytes(png())
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, **options)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet", ""])
def test_tasks_that_are_not_bundled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\(bundled: fashion-mnist\)|no pictures in it"):
        open_data(name)


def damage(content: bytes, place: float, value: int, cut: bool) -> bytes:
    position = int(place * len(content))
    return content[:position] if cut else content[:position] + bytes([value]) + content[position + 1 :]


FUZZED = {
    **{f"picture {kind}": png((9, 7), "RGB", kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")},
    "idx": gzip.decompress(GOOD),
    "idx.gz": GOOD,
    "npz": npz(x=IMAGES, classes=np.array(["a", "b"]), **PAIR),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on the damage before it refuses
@pytest.mark.parametrize("kind", FUZZED)
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_damage_is_a_data_error_or_no_harm(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: float, value: int, cut: bool
) -> None:
    content = damage(FUZZED[kind], place, value, cut)
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content)
    try:
        if kind == "npz":
            assert isinstance(open_data(path), ImageData)
        else:
            read = read_picture(content) if kind.startswith("picture") else read_idx(path)
            assert read.dtype == torch.uint8
    except DataError:
        pass


def test_an_array_that_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match=r"holds nothing, of the shape \(0, "):
        read_idx(path)


def test_labels_beyond_all_numbers(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(DataError, match="a label of 18446744073709551615 is no class"):
        open_data(path, "train")


def test_what_a_mac_packs_beside_each_picture_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 9).save(tmp_path / name / "1.png")
        (tmp_path / name / "._1.png").write_bytes(b"Mac OS X")
    assert open_data(tmp_path, "train").labels.tolist() == [0, 1]


def test_a_damaged_tiff_is_one_clear_error() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "tiff")
    content = stream.getvalue()
    for place in range(len(content) - 150, len(content)):
        damaged = content[:place] + b"\xff" + content[place + 1 :]
        with contextlib.suppress(DataError):
            read_picture(damaged, name="a.tif", whole=True)
