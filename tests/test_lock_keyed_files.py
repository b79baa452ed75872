"""Files that are keyed: none that was there is lost, none is keyed twice, and few are held at a time."""

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from intaglio.data.picture import read_picture
from intaglio.errors import DataError, IntaglioError, ModelError, NothingToExamineError, StorageError
from intaglio.lock import ExportedKey, Lock
from intaglio.lock.keyed_arrays import ImageArrays
from intaglio.lock.keyed_files import gather, in_batches, key_files, read_pictures
from intaglio.lock.traced_files import trace_files
from intaglio.triggers.batches import batch_size
from lock_models import some_images, tiny_lock

FRAME = (1, 12, 12)


def darker(images: torch.Tensor) -> torch.Tensor:
    return (images - 10 / 255).clamp(0, 1)


def picture(path: Path, level: int = 100, side: int = 12) -> Path:
    """A grey picture of levels from `level` up, no two rows alike."""
    pixels = np.arange(level, level + side, dtype=np.uint8)[:, None].repeat(side, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def level(path: Path) -> int:
    return int(read_picture(path).min())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what is not overwritten -----------------------------------------------------------------------------------------


def test_no_original_beside_an_image_to_key_is_overwritten(tmp_path: Path) -> None:
    """`a.bmp` keyed into its own folder would become `a.png`, which is another original."""
    original = picture(tmp_path / "ph" / "a.png", 7)
    picture(tmp_path / "ph" / "a.bmp", 100)
    before = original.read_bytes()
    with pytest.raises(DataError, match=r"a\.png would be overwritten with the keyed copy of .*a\.bmp: key it into"):
        key_files([tmp_path / "ph" / "a.bmp"], tmp_path / "ph", FRAME, darker)
    assert original.read_bytes() == before
    assert files(tmp_path) == {"ph/a.png", "ph/a.bmp"}


def test_no_image_to_key_is_overwritten_with_anothers_copy(tmp_path: Path) -> None:
    """`one/x.bmp` would become `two/x.png`, which is to be keyed too, into `two/y/x.png`."""
    picture(tmp_path / "one" / "x.bmp", 100)
    other = picture(tmp_path / "two" / "x.png", 7)
    sources = [tmp_path / "one", tmp_path / "two" / ".." / "two" / "x.png"]
    before = other.read_bytes()
    with pytest.raises(DataError, match=r"two/x\.png would be overwritten with the keyed copy of .*one/x\.bmp"):
        key_files(sources, tmp_path / "two", FRAME, darker)
    assert other.read_bytes() == before


def test_nothing_above_the_images_to_key_is_overwritten(tmp_path: Path) -> None:
    original = picture(tmp_path / "ph" / "a.png", 7)
    picture(tmp_path / "ph" / "new" / "a.png", 100)
    with pytest.raises(DataError, match=r"a\.png would be overwritten with the keyed copy of .*new/a\.png"):
        key_files([tmp_path / "ph" / "new"], tmp_path / "ph", FRAME, darker)
    assert level(original) == 7


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "ph" / "a.png", 100)
    (tmp_path / "ph" / "._a.png").write_bytes(b"what macOS leaves on shared drives")
    (tmp_path / "ph" / ".cache").mkdir()
    (tmp_path / "ph" / ".cache" / "b.png").write_bytes(b"")
    key_files([tmp_path / "ph"], tmp_path / "out", FRAME, darker)
    assert files(tmp_path / "out") == {"a.png"}


def test_links_to_originals_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "ph" / "a.png", 100)
    (tmp_path / "alias").symlink_to(tmp_path / "ph")
    for sources, out in (("ph", "alias"), ("alias", "ph")):
        with pytest.raises(DataError, match=r"a\.png would be overwritten"):
            key_files([tmp_path / sources], tmp_path / out, FRAME, darker)
    assert level(tmp_path / "ph" / "a.png") == 100


def test_two_files_that_would_become_one_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.bmp")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.bmp and .*a\.png would both become .*a\.png"):
        key_files([tmp_path / "a.bmp", tmp_path / "a.png"], tmp_path / "out", FRAME, darker)
    assert not (tmp_path / "out").exists()


def test_copies_elsewhere_are_made_anew(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", 100)
    key_files([source], tmp_path / "out", FRAME, darker)
    picture(source, 120)
    key_files([source], tmp_path / "out", FRAME, darker)
    assert (level(source), level(tmp_path / "out" / "a.png")) == (120, 110)


# --- what is not keyed twice -----------------------------------------------------------------------------------------


def test_a_folder_is_keyed_into_one_below_it_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    picture(photos / "b.png", 100)
    picture(photos / "trip" / "c.bmp", 50)
    np.save(photos / "d.npy", np.full((2, 12, 12), 80, np.uint8))
    expected = {"b.png", "trip/c.bmp", "d.npy", "keyed/b.png", "keyed/trip/c.png", "keyed/d.npy"}
    monkeypatch.chdir(photos)
    for source, out in ((photos, photos / "keyed"), (Path(), Path("keyed")), (Path("../photos"), photos / "keyed")):
        key_files([source], out, FRAME, darker)
        assert files(photos) == expected
        assert (level(photos / "b.png"), level(photos / "keyed" / "b.png")) == (100, 90)
        assert level(photos / "keyed" / "trip" / "c.png") == 40


def test_only_what_lies_in_out_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "keyed/a.png", "keyed-too/a.png", "keyed.png"):
        picture(tmp_path / name)
    names = [str(name) for _, name in gather([tmp_path], tmp_path / "keyed")]
    assert names == ["a.png", "keyed-too/a.png", "keyed.png"]
    everything = ["a.png", "keyed/a.png", "keyed-too/a.png", "keyed.png"]
    for out in (None, tmp_path, tmp_path.parent):  # a folder that holds the source is no product of it
        assert sorted(str(name) for _, name in gather([tmp_path], out)) == sorted(everything)
    (tmp_path / "only" / "keyed").mkdir(parents=True)
    picture(tmp_path / "only" / "keyed" / "a.png")
    with pytest.raises(NothingToExamineError, match="no pictures in"):
        gather([tmp_path / "only"], tmp_path / "only" / "keyed")


# --- batch by batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "size"),
    [((1, 12, 12), 256), ((3, 64, 64), 256), ((3, 64, 65), 252), ((3, 224, 224), 20), ((3, 2000, 3000), 1)],
)
def test_large_images_come_in_small_batches(frame: tuple[int, int, int], size: int) -> None:
    assert batch_size(frame) == size


def test_arrays_come_alone_between_batches_of_pictures() -> None:
    names = [*(f"{number}.png" for number in range(40)), "a.npy", "b.npz", "c.png"]
    batches = in_batches([Path(name) for name in names], (1, 224, 224))
    assert [[path.name for path in batch] for batch in batches] == [
        names[:20], names[20:40], ["a.npy"], ["b.npz"], ["c.png"]
    ]  # fmt: skip


def test_no_more_than_a_batch_is_keyed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.lock.keyed_files.batch_size", lambda frame: 3)
    monkeypatch.setattr("intaglio.lock.keyed_arrays.batch_size", lambda frame: 3)
    for number in range(7):
        picture(tmp_path / "in" / f"{number}.png", 20 + 10 * number)
    clips = np.random.default_rng(0).integers(20, 256, (2, 4, 12, 12, 1), np.uint8)
    np.save(tmp_path / "in" / "clips.npy", clips)
    sizes: list[int] = []
    steps: list[tuple[int, int]] = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return darker(images)

    out = tmp_path / "out"
    written = key_files(
        [tmp_path / "in"], out, FRAME, counted, progress=lambda done, total: steps.append((done, total))
    )
    assert sizes == [3, 3, 1, 3, 3, 2]
    assert [path.name for path in written] == [*(f"{number}.png" for number in range(7)), "clips.npy"]
    assert [level(out / f"{number}.png") for number in range(7)] == [10 + 10 * number for number in range(7)]
    assert np.array_equal(np.load(out / "clips.npy", allow_pickle=False), clips - 10)
    assert [done for done, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 16]
    assert {total for _, total in steps} == {16}


@pytest.mark.parametrize("values", [np.arange(144 * 5) % 256, np.arange(144 * 5) / 719])
@pytest.mark.parametrize("shape", [(5, 12, 12), (5, 1, 12, 12), (5, 12, 12, 1), (1, 5, 1, 12, 12), (5, 1, 12, 12, 1)])
def test_arrays_are_the_same_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: np.ndarray, shape: tuple[int, ...]
) -> None:
    kept = values.astype(np.uint8 if values.dtype.kind == "i" else np.float32).reshape(shape)
    np.save(tmp_path / "a.npy", kept)
    monkeypatch.setattr("intaglio.lock.keyed_arrays.batch_size", lambda frame: 2)
    arrays = ImageArrays(tmp_path / "a.npy", FRAME)
    assert [len(batch) for batch in arrays.batches("images")] == [2, 2, 1]
    arrays.write(tmp_path / "same.npy", lambda images: images)
    again = np.load(tmp_path / "same.npy", allow_pickle=False)
    assert (again.dtype, again.shape) == (kept.dtype, kept.shape)
    assert np.abs(again.astype(float) - kept).max() <= (0 if kept.dtype == np.uint8 else 0.51 / 255)


def test_an_array_is_checked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.lock.keyed_arrays.batch_size", lambda frame: 2)
    values = np.zeros((5, 1, 12, 12), np.float32)
    values[4, 0, 3, 3] = 2
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "none.npy", values[:0])
    for name, message in (("a.npy", r"a\.npy: pixel values span 0..2"), ("none.npy", "there are no images in it")):
        with pytest.raises(DataError, match=message):
            ImageArrays(tmp_path / name, FRAME)


@pytest.mark.parametrize(
    ("name", "message"), [("cut.png", "damaged picture"), ("large.png", "got 1x20x20"), ("z.npy", "no images in it")]
)
def test_the_last_file_is_checked_before_the_first_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("intaglio.lock.keyed_files.batch_size", lambda frame: 1)
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png")
    last = tmp_path / "in" / "z" / name
    picture(last.with_suffix(".png"), side=20 if name == "large.png" else 12)
    if name == "cut.png":
        last.write_bytes(last.read_bytes()[:-30])
    elif name == "z.npy":
        last.with_suffix(".png").unlink()
        np.save(last, np.zeros((0, 1, 12, 12), np.uint8))
        message = "there are no images in it"
    with pytest.raises(DataError, match=message):
        key_files([tmp_path / "in"], tmp_path / "out", FRAME, darker)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="can't write"):
        key_files([tmp_path / "broken.png"], tmp_path / "out", FRAME, darker)


# --- tracing files ---------------------------------------------------------------------------------------------------


def test_files_are_traced_as_their_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.lock.keyed_files.batch_size", lambda frame: 2)
    monkeypatch.setattr("intaglio.lock.keyed_arrays.batch_size", lambda frame: 2)
    lock, images = tiny_lock(), some_images(8)
    for name in ("alice", "bob"):
        lock.issue(name)
    pixels = (images * 255).to(torch.uint8).numpy()
    for number in range(5):
        Image.fromarray(pixels[number, 0]).save(tmp_path / f"{number}.png")
    np.savez(tmp_path / "rest.npz", allow_pickle=False, x_train=pixels[5:7], x_test=pixels[7:])
    sizes: list[int] = []
    read = Lock.read

    def counted(self: Lock, batch: torch.Tensor, users: Sequence[str]) -> torch.Tensor:
        sizes.append(len(batch))
        return read(self, batch, users)

    monkeypatch.setattr(Lock, "read", counted)
    steps: list[tuple[int, int]] = []
    found, places = trace_files([tmp_path], lock, progress=lambda done, total: steps.append((done, total)))
    assert sizes == [2, 2, 1, 2, 1]
    assert steps == [(2, 6), (4, 6), (5, 6), (6, 6)]
    assert [path.name for path in places] == [*(f"{number}.png" for number in range(5)), *["rest.npz"] * 3]
    expected = lock.trace(images)
    assert [match.p_value for match in found.images] == pytest.approx(
        [match.p_value for match in expected.images], rel=1e-4
    )
    assert [match.nearest for match in found.images] == [match.nearest for match in expected.images]
    assert found.together.p_value == pytest.approx(expected.together.p_value, rel=1e-4)


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_pictures_of_several_frames_are_not_taken_for_their_first(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.full((12, 12), 80 * number, np.uint8)) for number in range(3)]
    frames[0].save(tmp_path / f"all.{suffix}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / f"one.{suffix}")
    assert read_pictures([tmp_path / f"one.{suffix}"], FRAME).shape == (1, *FRAME)
    with pytest.raises(DataError, match=rf"all\.{suffix}: holds 3 frames"):
        read_pictures([tmp_path / f"all.{suffix}"], FRAME)


def test_a_cameras_second_copy_is_no_other_picture(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((12, 12), level, np.uint8)) for level in (200, 10))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[second])
    assert float(read_pictures([tmp_path / "photo.jpg"], FRAME).mean()) == pytest.approx(200 / 255, abs=0.01)


def test_transparent_pictures_are_refused_and_opaque_ones_with_alpha_are_read(tmp_path: Path) -> None:
    pixels = np.full((12, 12, 4), 255, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    pixels[3, 4, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    assert read_pictures([tmp_path / "opaque.png"], FRAME).min() == 1
    with pytest.raises(DataError, match=r"glass\.png: is transparent in parts"):
        read_pictures([tmp_path / "glass.png"], FRAME)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_that_says_it_is_larger_than_it_is(tmp_path: Path, suffix: str) -> None:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3, 32, 32)})
    content = header.getvalue() + bytes(100)
    path = tmp_path / f"bomb.{suffix}"
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
    with pytest.raises(DataError, match=r"bomb\.np[yz]: not an array that can be read"):
        ImageArrays(path, (3, 32, 32))


def test_files_that_cannot_be_traced(tmp_path: Path) -> None:
    lock = tiny_lock()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no user was ever issued a key"):  # before anything is read
        trace_files([tmp_path], lock)
    lock.issue("alice")
    with pytest.raises(DataError, match="alpha lies between 0 and 1"):
        trace_files([tmp_path], lock, alpha=2)
    with pytest.raises(DataError, match=r"broken\.png: not a picture"):
        trace_files([tmp_path], lock)


# --- key networks that answer nonsense -------------------------------------------------------------------------------


def network(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, many: bool = False) -> bytes:
    """A key network of one's own making: `images` -> `keyed`, of some kind, one tensor or `many`."""
    value = helper.make_tensor_sequence_value_info if many else helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "key",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *FRAME])],
        [value("keyed", kind, None)],
    )
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


ZERO = helper.make_node("Sub", ["images", "images"], ["zero"])
CASES: dict[str, tuple[bytes, str]] = {
    "NaN": (network(ZERO, helper.make_node("Div", ["zero", "zero"], ["keyed"])), "with NaN or infinity"),
    "infinity": (network(ZERO, helper.make_node("Div", ["images", "zero"], ["keyed"])), "with NaN or infinity"),
    "strings": (
        network(helper.make_node("Cast", ["images"], ["keyed"], to=TensorProto.STRING), kind=TensorProto.STRING),
        r"answers images \(2, 1, 12, 12\) with object \(2, 1, 12, 12\)",
    ),
    "doubles": (
        network(helper.make_node("Cast", ["images"], ["keyed"], to=TensorProto.DOUBLE), kind=TensorProto.DOUBLE),
        "with float64",
    ),
    "another size": (
        network(helper.make_node("Flatten", ["images"], ["keyed"])),
        r"answers images \(2, 1, 12, 12\) with float32 \(2, 144\)",
    ),
    "one for all": (
        network(helper.make_node("ReduceMean", ["images"], ["keyed"], axes=[0], keepdims=1)),
        r"with float32 \(1, 1, 12, 12\)",
    ),
    "a list": (
        network(helper.make_node("SplitToSequence", ["images"], ["keyed"], axis=0), many=True),
        "with list",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_key_networks_that_answer_no_images_are_told_of(name: str) -> None:
    content, message = CASES[name]
    exported = ExportedKey(content, "their.onnx")
    for images in (some_images(2), some_images(2)[:, None]):
        with pytest.raises(ModelError, match=message) as told:
            exported(images)
        assert isinstance(told.value, IntaglioError)
        assert str(told.value).startswith("their.onnx: ")


def test_exported_keys_take_batches_of_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.lock.key_export.batch_size", lambda frame: 2)
    exported = ExportedKey(network(helper.make_node("Mul", ["images", "images"], ["keyed"])), "their.onnx")
    sizes, session = [], exported._session

    class Counting:
        def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.append(len(given["images"]))
            answers: list[np.ndarray] = session.run(names, given)
            return answers

    exported._session = Counting()
    images = some_images(5)
    assert torch.allclose(exported(images), images.square())
    assert sizes == [2, 2, 1]
