"""Every form of data: what is written comes back, pixel for pixel, with its labels and classes."""

import gzip
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from intaglio.data import TASKS, UNLABELLED, ImageData, evenly_spaced, image_data, images_alone, open_data
from intaglio.data.folder import open_image_folder
from intaglio.data.idx import read_idx, write_idx
from intaglio.errors import DataError

BYTES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4) * 10
RGB = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)


def png(pixels: np.ndarray[Any, Any], mode: str | None = None, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- IDX ---------------------------------------------------------------------------------------------------------


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=4, max_side=7)))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray[Any, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "array.gz"
    content = write_idx(torch.from_numpy(array))
    path.write_bytes(content)
    assert torch.equal(read_idx(path), torch.from_numpy(array))
    plain = path.with_suffix("")
    plain.write_bytes(gzip.decompress(content))
    assert torch.equal(read_idx(plain), torch.from_numpy(array))
    assert content == write_idx(torch.from_numpy(array))


def test_idx_bytes_by_hand(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])
    write(tmp_path / "plain", content)
    assert read_idx(tmp_path / "plain").tolist() == [[7, 8, 9]]
    assert gzip.decompress(write_idx(torch.tensor([[7, 8, 9]], dtype=torch.uint8))) == content


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("name", ["mnist", "other"])
def test_idx_folder(tmp_path: Path, compressed: bool, split: str, prefix: str, name: str) -> None:
    unpack = (lambda content: content) if compressed else gzip.decompress
    suffix = ".gz" if compressed else ""
    write(tmp_path / name / f"{prefix}-images-idx3-ubyte{suffix}", unpack(write_idx(BYTES)))
    labels = torch.tensor([4, 0], dtype=torch.uint8)
    write(tmp_path / name / f"{prefix}-labels-idx1-ubyte{suffix}", unpack(write_idx(labels)))
    data = open_data(tmp_path / name, split)
    assert torch.equal(data.images, BYTES[:, None].float() / 255)
    assert data.labels.tolist() == [4, 0]
    assert data.classes == (TASKS["mnist"].classes if name == "mnist" else ())
    assert (data.input_shape, data.num_classes) == ((1, 3, 4), 10 if name == "mnist" else 5)


@pytest.mark.parametrize(("split", "each"), [("train", 1000), ("test", 200)])
def test_bundled_images(split: str, each: int) -> None:
    data = open_data("fashion-mnist", split)
    assert data.images.shape == (10 * each, 1, 28, 28)
    assert data.labels.bincount().tolist() == [each] * 10
    assert data.classes[0] == "T-shirt/top"
    assert data.num_classes == 10
    assert (float(data.images.min()), float(data.images.max())) == (0.0, 1.0)
    assert torch.equal((data.images * 255).round() / 255, data.images)


# --- pictures in folders -----------------------------------------------------------------------------------------

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
COLOUR = np.stack([GREY, GREY.T.reshape(2, 3), 255 - GREY], axis=2)
PICTURES: list[tuple[str, bytes, np.ndarray[Any, Any]]] = [
    ("grey.png", png(GREY), GREY[None]),
    ("rgb.png", png(COLOUR), COLOUR.transpose(2, 0, 1)),
    ("rgba.png", png(np.dstack([COLOUR, GREY])), COLOUR.transpose(2, 0, 1)),
    ("grey_alpha.png", png(np.dstack([GREY, 255 - GREY])), GREY[None]),
    ("palette.png", png(COLOUR, "P"), COLOUR.transpose(2, 0, 1)),
    ("bits.png", png(GREY > 120), ((GREY > 120) * 255)[None]),
    ("rgb.bmp", png(COLOUR, kind="BMP"), COLOUR.transpose(2, 0, 1)),
    ("rgb.TIFF", png(COLOUR, kind="TIFF"), COLOUR.transpose(2, 0, 1)),
    ("grey.pgm", png(GREY, kind="PPM"), GREY[None]),
    ("named_wrongly.jpg", png(COLOUR), COLOUR.transpose(2, 0, 1)),
]


@pytest.mark.parametrize(("name", "content", "expected"), PICTURES, ids=[name for name, *_ in PICTURES])
def test_pictures_of_every_mode(tmp_path: Path, name: str, content: bytes, expected: np.ndarray[Any, Any]) -> None:
    if name == "palette.png":  # conversion to a palette picks nearest colours: compare with what Pillow shows
        expected = np.array(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    write(tmp_path / name, content)
    data = open_data(tmp_path)
    assert torch.equal(data.images[0], torch.from_numpy(expected.copy()).float() / 255)
    assert (data.labels.tolist(), data.classes, data.name) == ([UNLABELLED], (), str(tmp_path))
    assert open_data(tmp_path, channels=1).input_shape == (1, 2, 3)
    assert open_data(tmp_path, channels=3).input_shape == (3, 2, 3)


def shade(value: int) -> bytes:
    return png(np.full((2, 2), value, np.uint8))


#: files (name -> grey value) and, per split, the values read, their labels and the classes
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, tuple[list[int], list[int], tuple[str, ...]]]]] = {
    "by class": (
        {"b/1.png": 30, "a/2.png": 20, "a/1.PNG": 10, "a/notes.txt": 0, ".cache/x.png": 9},
        dict.fromkeys(("train", "test"), ([10, 20, 30], [0, 0, 1], ("a", "b"))),
    ),
    "split, by class": (
        {"train/a/1.png": 10, "train/b/1.png": 20, "test/b/1.png": 30, "readme.txt": 0},
        {"train": ([10, 20], [0, 1], ("a", "b")), "test": ([30], [1], ("a", "b"))},
    ),
    "val stands in for test": (
        {"train/a/1.png": 10, "val/a/1.png": 20},
        {"train": ([10], [0], ("a",)), "test": ([20], [0], ("a",))},
    ),
    "split, unlabelled": (
        {"train/1.png": 10, "test/2.png": 20},
        {"train": ([10], [-1], ()), "test": ([20], [-1], ())},
    ),
    "flat": (
        {"2.png": 20, "10.png": 10, "1.png": 30},
        dict.fromkeys(("train", "test"), ([30, 10, 20], [-1, -1, -1], ())),
    ),
    "a class called train": (
        {"car/1.png": 10, "train/1.png": 20},
        dict.fromkeys(("train", "test"), ([10, 20], [0, 1], ("car", "train"))),
    ),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_layouts(tmp_path: Path, layout: str, split: str) -> None:
    files, expected = LAYOUTS[layout]
    for name, value in files.items():
        write(tmp_path / name, shade(value))
    data = open_data(tmp_path, split)
    values, labels, classes = expected[split]
    assert (data.images[:, 0, 0, 0] * 255).round().int().tolist() == values
    assert (data.labels.tolist(), data.classes) == (labels, classes)


@pytest.mark.parametrize(
    ("files", "warned"),
    [
        (("b/1.png", "c/1.png", "__MACOSX/._1", "annotations/b.xml"), "__MACOSX, annotations"),
        (("train/b/1.png", "train/c/1.png", "test/c/1.png", "train/__MACOSX/._1", "test/a/note"), "__MACOSX, a"),
        (("b/1.png", "c/1.png", *(f"n{number}/note" for number in range(12))), "n0, n1, n10, .* n7 and 2 more"),
    ],
)
def test_folders_without_pictures_are_no_classes(tmp_path: Path, files: tuple[str, ...], warned: str) -> None:
    for name in files:
        write(tmp_path / name, shade(10))
    with pytest.warns(UserWarning, match=f"no classes, for there are no pictures in them: {warned}$") as caught:
        data = open_data(tmp_path)
    assert (data.labels.tolist(), data.classes, len(caught)) == ([0, 1], ("b", "c"), 1)


def test_of_many_pictures_no_more_are_read_than_asked_for(tmp_path: Path) -> None:
    for name, value in {"a/1": 10, "a/2": 20, "a/3": 30, "a/4": 40, "b/1": 50, "b/2": 60, "c/1": 70}.items():
        write(tmp_path / f"{name}.png", shade(value))
    write(tmp_path / "a" / "5.png", b"never decoded")
    data = open_image_folder(tmp_path, "test", most=5)
    assert (data.images[:, 0, 0, 0] * 255).round().int().tolist() == [10, 20, 50, 60, 70]
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1, 1, 2], ("a", "b", "c"))
    flat = open_image_folder(tmp_path / "a", "test", most=3)
    assert ((flat.images[:, 0, 0, 0] * 255).round().int().tolist(), flat.labels.tolist()) == ([10, 20, 30], [-1] * 3)
    with pytest.raises(DataError, match=r"5\.png"):
        open_image_folder(tmp_path, "test", most=8)


def test_pictures_are_resized_to_one_size(tmp_path: Path) -> None:
    write(tmp_path / "1.png", png(np.full((4, 9), 40, np.uint8)))
    write(tmp_path / "2.png", png(np.kron([[0, 200]], np.ones((2, 4))).astype(np.uint8)))
    data = open_data(tmp_path, resize=(2, 4))
    assert data.input_shape == (1, 2, 4)
    assert torch.equal(data.images[0], torch.full((1, 2, 4), 40 / 255))
    row = data.images[1, 0, 0] * 255
    assert row.tolist() == sorted(row.tolist())  # dark left, bright right
    assert float(row.mean()) == pytest.approx(100, abs=1)


# --- npz ---------------------------------------------------------------------------------------------------------

NCHW = torch.from_numpy(RGB.transpose(0, 3, 1, 2).copy()).float() / 255
JPEGS = [png(RGB[0]), png(RGB[1])]
NPZ: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "uint8 N H W": ({"x_train": RGB[..., 0]}, NCHW[:, :1]),
    "uint8 N H W C": ({"train_images": RGB}, NCHW),
    "uint8 N C H W": ({"X_train": RGB.transpose(0, 3, 1, 2)}, NCHW),
    "float32 N C H W": ({"images": NCHW.numpy()}, NCHW),
    "float64 N H W C": ({"x": RGB / 255}, NCHW),
    "one channel last": ({"data": RGB[..., :1]}, NCHW[:, :1]),
    "pictures": (
        {
            "train_jpeg": np.frombuffer(b"".join(JPEGS), np.uint8),
            "train_offsets": np.array([0, *itertools.accumulate(map(len, JPEGS))]),
        },
        NCHW,
    ),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels_key", ["y_train", "train_labels", "labels", "target", None])
@pytest.mark.parametrize("form", NPZ)
def test_npz_forms(tmp_path: Path, form: str, labels_key: str | None, save: Callable[..., None]) -> None:
    arrays, expected = NPZ[form]
    extra = {labels_key: np.array([1, 0], np.uint8), "classes": np.array(["no", "yes"])} if labels_key else {}
    save(tmp_path / "data.npz", **arrays, **extra)
    data = open_data(tmp_path / "data.npz")
    assert torch.allclose(data.images, expected, atol=1e-7)
    assert data.images.is_contiguous()
    assert data.labels.tolist() == ([1, 0] if labels_key else [UNLABELLED] * 2)
    assert data.classes == (("no", "yes") if labels_key else ())


def test_npz_splits_are_told_apart(toy_file: Path, toy: ImageData, toy_test: ImageData) -> None:
    for split, expected in (("train", toy), ("test", toy_test)):
        data = open_data(str(toy_file), split)
        assert torch.equal(data.images, expected.images)
        assert torch.equal(data.labels, expected.labels)
        assert data.classes == expected.classes


@settings(max_examples=40, deadline=None)
@given(
    npst.arrays(np.uint8, st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(4, 6), st.integers(4, 6))),
    st.randoms(use_true_random=False),
)
def test_npz_round_trip(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray[Any, Any], random: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round.npz"
    labels = np.array([random.randrange(5) for _ in pixels])
    np.savez(path, x_train=pixels, y_train=labels, allow_pickle=False)
    images, found = open_data(path)
    assert np.array_equal((images * 255).round().numpy().astype(np.uint8), pixels)
    assert found.tolist() == labels.tolist()


# --- ImageData ---------------------------------------------------------------------------------------------------


def test_image_data_takes_and_unpacks(toy: ImageData) -> None:
    images, labels = toy
    assert images is toy.images
    assert labels is toy.labels
    assert len(toy) == 96
    last = toy.take(torch.tensor([5, 0]))
    assert torch.equal(last.images, toy.images[[5, 0]])
    assert last.labels.tolist() == [2, 0]
    assert toy.take(toy.labels == 1).labels.tolist() == [1] * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 2, 2, dtype=torch.float64)}, "expected float32 images"),
        ({"images": torch.zeros(2, 2, 2)}, r"expected float32 images \[N, C, H, W\], got torch.float32 \(2, 2, 2\)"),
        ({"images": torch.zeros(0, 1, 2, 2)}, "no images"),
        ({"images": torch.zeros(2, 1, 0, 2)}, "no images"),
        ({"images": torch.full((2, 1, 2, 2), 1.001)}, r"span 1.001..1.001, expected \[0, 1\]"),
        ({"images": torch.full((2, 1, 2, 2), -0.001)}, "expected"),
        ({"images": torch.tensor([0, float("nan")]).reshape(2, 1, 1, 1)}, "span nan..nan"),
        ({"images": torch.tensor([0, float("inf")]).reshape(2, 1, 1, 1)}, "span 0..inf"),
        ({"labels": torch.tensor([0])}, "expected 2 int64 labels"),
        ({"labels": torch.tensor([0.0, 1.0])}, "expected 2 int64 labels"),
        ({"labels": torch.tensor([0, -2])}, r"labels span -2\.\.0"),
        ({"labels": torch.tensor([0, 3])}, r"labels span 0\.\.3, but there are 3 classes"),
    ],
)
def test_image_data_refuses(change: dict[str, torch.Tensor], message: str) -> None:
    parts = {"images": torch.zeros(2, 1, 2, 2), "labels": torch.tensor([0, 1])} | change
    with pytest.raises(DataError, match=f"^mine: .*{message}"):
        ImageData(parts["images"], parts["labels"], ("a", "b", "c"), "mine")


def test_labelled_images_are_image_data_or_a_pair() -> None:
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    data = ImageData(images, labels, ("a", "b", "c"))
    assert image_data(data) is data
    pair = image_data((images, labels))
    assert (pair.images is images, pair.labels is labels) == (True, True)
    for wrong in (images, (images,), (images, labels, labels), (images, [0, 1, 2]), None):
        with pytest.raises(DataError, match="wanted images with labels, a pair of tensors, got a "):
            image_data(wrong)  # type: ignore[arg-type]
    assert images_alone(None, "some") is None
    assert images_alone(images, "some") is images
    assert images_alone(data, "some") is images
    assert images_alone((images, labels), "some") is images
    with pytest.raises(DataError, match="some: "):
        images_alone(images * 2, "some")


@pytest.mark.parametrize(
    ("count", "most", "places"), [(10, 4, [0, 3, 6, 9]), (3, 5, [0, 1, 2]), (1, 3, [0]), (7, 1, [0]), (5, 2, [0, 4])]
)
def test_evenly_spaced_places(count: int, most: int, places: list[int]) -> None:
    assert evenly_spaced(count, most).tolist() == places
