"""Sets of videos: lazy and in memory alike, the same seed the same clips, and bad videos that are counted."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from intaglio.data import ImageData, Sampling, VideoData, VideoDataset, open_data, open_videos
from intaglio.data.videos import Skips
from intaglio.errors import DataError
from intaglio.training import TrainingSettings, train
from video_files import encode, places

FOUR = Sampling("dense", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two videos; b is shorter than the others, d is of another size."""
    root = tmp_path_factory.mktemp("set")
    encode(root / "run" / "a.mp4", 20)
    encode(root / "run" / "b.avi", 3)
    encode(root / "walk" / "c.mkv", 20, codec="libx264", start=4)
    encode(root / "walk" / "d.webm", 12, codec="libvpx", shape=(48, 64))
    return root


def lazy(root: Path, split: str = "test", **options: Any) -> VideoDataset:
    found = open_videos(root, split, size=(32, 48), **{"sampling": FOUR, **options})
    assert isinstance(found, VideoDataset)
    return found


def test_testing_takes_the_middle(folder: Path) -> None:
    videos = lazy(folder)
    assert len(videos) == 4
    assert videos.labels.tolist() == [0, 0, 1, 1]
    assert videos.classes == ("run", "walk")
    assert [places(videos.read(index)[0]) for index in range(4)] == [
        [8, 9, 10, 11], [0, 1, 2, 0], [12, 13, 14, 15], [4, 5, 6, 7],
    ]  # fmt: skip


def test_lazy_and_loaded_are_the_same(folder: Path) -> None:
    videos = lazy(folder, sampling=Sampling("dense", 4, clips=3))
    whole = videos.load()
    assert isinstance(whole, VideoData)
    assert whole.images.shape == (12, 4, 3, 32, 48)
    assert whole.videos.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert whole.labels.tolist() == [0] * 6 + [1] * 6
    for number, clip in enumerate(videos.stream()):
        assert torch.equal(whole.images[number], clip.pixels.float() / 255)
    for size in (1, 5, 12, 100):
        parts = list(videos.batches(size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.videos for part in parts]), whole.videos)
    opened = open_data(folder, "test", resize=(32, 48), sampling=Sampling("dense", 4, clips=3))
    assert torch.equal(opened.images, whole.images)


def test_training_is_decided_by_seed_epoch_and_video_alone(folder: Path) -> None:
    videos = lazy(folder, "train")
    first = {clip.video: clip.pixels for clip in videos.stream(epoch=1)}
    for clip in videos.stream(epoch=1, order=[3, 1, 0, 2]):
        assert torch.equal(first[clip.video], clip.pixels)
    drawn = {tuple(places(lazy(folder, "train", seed=seed).read(0, epoch)[0])) for seed in range(5) for epoch in (0, 1)}
    assert len(drawn) > 4
    assert all(clip == tuple(range(clip[0], clip[0] + 4)) for clip in drawn)


def test_sizes_that_differ_need_one(folder: Path) -> None:
    with pytest.raises(DataError, match=r"d\.webm: is \(4, 3, 48, 64\), but a\.mp4 is \(4, 3, 32, 48\); give one size"):
        open_data(folder, "test", sampling=FOUR)
    assert open_data(folder / "walk" / "d.webm", sampling=FOUR).images.shape == (1, 4, 3, 48, 64)
    assert open_data(folder, resize=(16, 16), channels=1, sampling=FOUR).images.shape == (4, 4, 1, 16, 16)
    assert open_data(folder, resize=(16, 16)).images.shape == (4, 16, 3, 16, 16)


def test_what_would_not_fit_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.data.videos.dataset.MAX_BYTES", 4 * 4 * 4 * 3 * 32 * 48 - 1)
    with pytest.raises(DataError, match=r"take 294912 bytes, over the limit of 294911: read it with open_videos"):
        lazy(folder).load()


# --- bad videos --------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Two good videos, an empty one and a damaged one, and one that is listed but not there."""
    encode(tmp_path / "a.mp4", 6)
    encode(tmp_path / "b.avi", 6)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "damaged.mkv").write_bytes(b"\x1aE\xdf\xa3 and so on")
    (tmp_path / "l.csv").write_text("path,label\nempty.mp4,0\na.mp4,0\ndamaged.mkv,0\nmissing.avi,1\nb.avi,1\n")
    return tmp_path / "l.csv"


def test_bad_videos_are_skipped_and_counted(spoilt: Path) -> None:
    with pytest.warns(UserWarning, match="skipped: ") as caught:
        data = open_data(spoilt, sampling=FOUR, max_bad=3)
    assert len(caught) == 3
    assert isinstance(data, VideoData)
    assert [Path(path).name for path in data.skipped] == ["empty.mp4", "damaged.mkv", "missing.avi"]
    assert data.labels.tolist() == [0, 1]
    assert data.videos.tolist() == [1, 4]


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
    "read",
    [
        lambda videos: videos.load(max_bad=2),
        lambda videos: list(videos.batches(2, skips=Skips(2))),
        lambda videos: list(videos.stream(skips=Skips(2))),
    ],
)
def test_more_bad_videos_than_may_be_are_fatal(spoilt: Path, read: Callable[[VideoDataset], object]) -> None:
    with pytest.raises(DataError, match=r"3 videos can't be read, and 2 may be \(max_bad\); the last: .*missing\.avi"):
        read(lazy(spoilt, "train"))


def test_nothing_but_bad_videos_is_fatal(spoilt: Path) -> None:
    spoilt.write_text("empty.mp4,0\nmissing.avi,1\n")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="none of its 2 videos can be read"):
        open_data(spoilt)


def test_good_videos_warn_of_nothing(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_data(folder, resize=(8, 8)).skipped == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "unknown split 'val'"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"size": (0, 4)}, "a size of 1 or more"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_videos(folder, **options)


def test_names_that_no_file_can_have() -> None:
    with pytest.raises(DataError, match="File name too long"):
        open_videos("x" * 5000)


# --- VideoData ---------------------------------------------------------------------------------------------------


def clips(count: int = 4) -> torch.Tensor:
    return torch.arange(count).view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 3, 3) / count


def test_video_data_is_image_data() -> None:
    data = VideoData(clips(), torch.tensor([0, 1, 0, 1]), ("a", "b"), "mine", torch.tensor([7, 3, 7, 3]))
    images, labels = data
    assert isinstance(data, ImageData)
    assert data.input_shape == (2, 1, 3, 3)
    assert data.num_classes == 2
    assert torch.equal(images, clips())
    taken = data.take(labels == 1)
    assert isinstance(taken, VideoData)
    assert taken.videos.tolist() == [3, 3]
    assert ImageData(images, labels).input_shape == (2, 1, 3, 3)


def test_scores_are_averaged_over_the_clips_of_a_video() -> None:
    data = VideoData(clips(3), torch.tensor([1, 0, 1]), videos=torch.tensor([7, 3, 7]))
    scores, labels = data.per_video(torch.tensor([[1.0, 0.0], [0.5, 0.25], [0.0, 4.0]]))
    assert scores.tolist() == [[0.5, 0.25], [0.5, 2.0]]
    assert labels.tolist() == [0, 1]
    assert torch.equal(VideoData(clips(3), torch.tensor([1, 0, 1])).videos, torch.arange(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 1, 3, 3)}, r"expected clips \[N, T, C, H, W\], got \(4, 1, 3, 3\)"),
        ({"images": torch.zeros(4, 1, 1, 1, 3, 3)}, "expected float32 images"),
        ({"images": clips() + 1}, "pixel values span"),
        ({"videos": torch.zeros(3, dtype=torch.int64)}, "the numbers of 4 videos"),
        ({"videos": torch.zeros(4)}, "the numbers of 4 videos"),
    ],
)
def test_video_data_refuses(change: dict[str, torch.Tensor], message: str) -> None:
    parts = {"images": clips(), "labels": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(DataError, match=message):
        VideoData(**parts)  # type: ignore[arg-type]


def test_the_training_loop_takes_clips() -> None:
    """Bright clips against dark ones, with nothing said about video."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(18, 2))
    images = torch.rand(40, 2, 1, 3, 3) * 0.4
    labels = torch.arange(40) % 2
    images[labels == 1] += 0.5
    data = VideoData(images, labels)
    trained = train(module, data, TrainingSettings(epochs=10, batch_size=8, learning_rate=0.05), seed=0)
    assert bool((trained(images).argmax(1) == labels).all())
