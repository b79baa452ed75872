"""`intaglio attack` on videos: a folder of videos in, lossless arrays with a contact sheet out, victims on request."""

from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from intaglio.attacks.attack_record import AttackRecord
from intaglio.classifiers import open_classifier
from intaglio.cli.attack import attack
from intaglio.data import VideoData, open_data
from intaglio.data.videos import Clip, save_video_folder
from intaglio.errors import DataError, ModelError, RecipeError
from video_files import encode

FRAMES = ("--frames", "4")


def run(*arguments: str) -> int:
    """The command alone, as `main` runs it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(attack)
    return int(app(list(arguments), standalone_mode=False) or 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FFV1 videos of 6 frames of 20 x 24, grey levels that tell the class; 8 a class for training, 4 for testing."""
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 16), ("test", 8)):
        save_video_folder(folder, split, (_clip(number) for number in range(count)), ("dark", "light"))
    return folder


def _clip(number: int) -> Clip:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 100, (6, 3, 20, 24), generator=generator) + 150 * (number % 2)
    return Clip(pixels.to(torch.uint8), number % 2, number)


UCF_101 = {
    "trainlist01.txt": [f"{name}/v_{name}_g{group:02}_c01.avi {label}" for label, name in ((1, "Archery"), (2, "YoYo"))
                        for group in (8, 9, 10)],
    "testlist01.txt": [f"{name}/v_{name}_g01_c01.avi" for name in ("Archery", "YoYo")],
    "classInd.txt": ["1 Archery", "2 YoYo"],
}  # fmt: skip
HMDB_51 = {
    f"{name}_test_split1.txt": [f"{name}{number}.avi {kind}" for number, kind in enumerate((1, 1, 1, 2, 0))]
    for name in ("run", "wave")
}


@pytest.mark.parametrize(
    ("lists", "folder", "kept"),
    [(UCF_101, "ucfTrainTestlist", ["Archery", "YoYo"]), (HMDB_51, "testTrainMulti_7030_splits", ["run", "wave"])],
)
def test_the_commands_for_ucf_101_and_hmdb_51(
    lists: dict[str, list[str]], folder: str, kept: list[str], tmp_path: Path
) -> None:
    """The commands of docs/video.md on sets of the same layout, with real .avi files."""
    root = tmp_path / "set"
    for number, name in enumerate(kept):
        for file in (line.split()[0] for lines in lists.values() for line in lines if line.split()[0].endswith(".avi")):
            if Path(file).stem.removeprefix("v_").startswith(name):
                encode(root / name / Path(file).name, 6, start=8 * number)
    (root / folder).mkdir()
    for file, lines in lists.items():
        (root / folder / file).write_text("".join(f"{line}\r\n" for line in lines))
    given = ("--data", str(root), *FRAMES, "--resize", "16")
    assert run("badnets", *given, "--out", str(tmp_path / "a"), "--option", "rate=0.17") == 0
    poisoned = open_data(tmp_path / "a" / "poisoned")
    assert isinstance(poisoned, VideoData)
    assert (len(poisoned), poisoned.classes) == (6, tuple(kept))  # no test video among them
    trained = ("--train", "--arch", "r3d18", "--width", "4", "--epochs", "1", "--option", "target=1")
    universal = ("--option", "surrogate=r3d18:4", "--option", "steps=2")
    assert run("clean-label-universal", *given, "--out", str(tmp_path / "b"), *trained, *universal) == 0
    record = AttackRecord.from_json((tmp_path / "b" / "manifest.json").read_text())
    assert record.attack["attack"] == "clean-label-universal"
    assert open_classifier(tmp_path / "b" / "victim.safetensors").num_classes == 2


def test_the_command_streams(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intaglio.data.VideoDataset.load", lambda *_, **__: pytest.fail("all videos were loaded"))
    out, options = tmp_path / "out", ("--option", "rate=0.25", "--option", "target=1", "--resize", "16")
    assert run("temporal", "--data", str(videos), "--out", str(out), *FRAMES, *options, "--json", "-") == 0
    printed = capsys.readouterr()
    record = AttackRecord.from_json(printed.out)
    assert f"{out}: temporal: 25.00% of the samples poisoned, " in printed.err
    assert record.to_json() == (out / "manifest.json").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "poisoned", "samples.png"]
    poisoned = open_data(out / "poisoned")
    assert isinstance(poisoned, VideoData)
    assert poisoned.images.shape == (16, 4, 3, 16, 16)
    assert poisoned.labels.tolist().count(1) == 12
    assert Image.open(out / "samples.png").size == (4 * (16 * 6 + 4), 3 * (16 * 6 + 4))
    assert poisoned.classes == ("dark", "light")


def test_the_command_trains_a_video_network(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--train", "--arch", "cnn_lstm", "--width", "2", "--epochs", "1", "--batch-size", "8", "--stride", "1"]
    options += ["--option", "surrogate=cnn_lstm:1", "--option", "steps=1", "--option", "batch-size=2"]
    out = tmp_path / "out"
    assert run("clean-label-universal", "--data", str(videos), "--out", str(out), *FRAMES, *options) == 0
    assert f"{out / 'victim.safetensors'}: clean accuracy " in capsys.readouterr().out
    record = AttackRecord.from_json((out / "manifest.json").read_text())
    assert record.victim is not None
    assert record.victim.training.batch_size == 8
    assert (record.trigger["frames"], record.trigger["size"]) == (4, [5, 5])
    opened = open_classifier(out / "victim.safetensors")
    assert opened.input_shape == (4, 3, 20, 24)
    assert opened.predict(torch.zeros(1, 4, 3, 20, 24)).shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("wanet",), RecipeError, "wanet poisons images only, and .* holds clips"),
        (("input-aware", "--train"), RecipeError, "input-aware poisons images only"),
        (("badnets", "--train", "--arch", "resnet8"), RecipeError, "resnet8 takes images"),
        (("badnets", "--train", "--arch", "c3d"), ModelError, "unknown architecture 'c3d'"),
        (("temporal", "--option", "frequency=9"), RecipeError, "clips of 4 frames have no dct component 9"),
        (("temporal", "--option", "delta=0"), typer.BadParameter, "delta and share"),
    ],
)
def test_usage(arguments: tuple[str, ...], error: type[Exception], message: str, videos: Path, tmp_path: Path) -> None:
    name, *options = arguments
    with pytest.raises(error, match=message):
        run(name, "--data", str(videos), "--out", str(tmp_path / "out"), *FRAMES, *options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "poisoned" / "train_clips.npy").exists()


def test_images_have_no_time(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"temporal poisons clips only, and .* holds images"):
        run("temporal", "--data", str(toy_file), "--out", str(tmp_path / "out"))


def test_damaged_videos(videos: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "videos"
    save_video_folder(damaged, "train", (_clip(number) for number in range(4)), ("dark", "light"))
    next((damaged / "train" / "dark").iterdir()).write_bytes(b"")
    arguments = ("badnets", "--data", str(damaged), "--out", str(tmp_path / "out"), *FRAMES, "--option", "rate=0.3")
    with pytest.warns(UserWarning, match="skipped"):
        assert run(*arguments) == 0
    assert AttackRecord.from_json((tmp_path / "out" / "manifest.json").read_text()).skipped == 1
    with pytest.raises(DataError, match="may be"):
        run(*arguments, "--max-bad", "0")
