"""`intaglio attack`, and what it is made of: attacks by name, options as text, one data set in and a folder out."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from intaglio.attacks import (
    ATTACKS,
    SIG,
    AllToAll,
    AllToOne,
    BadNets,
    Blended,
    DirtyLabelAttack,
    SourceSpecific,
    accuracy,
    attack_success_rate,
)
from intaglio.attacks.attack_file import attack_data
from intaglio.attacks.attack_record import AttackRecord
from intaglio.attacks.options import catalogue, make_attack, options_of
from intaglio.attacks.poisoned_file import CLIP_FILES
from intaglio.attacks.quality import quality
from intaglio.attacks.sample_picture import sample_picture
from intaglio.classifiers import open_classifier
from intaglio.cli.attack import attack
from intaglio.data import ImageData, open_data
from intaglio.data.videos import ClipWriter, StoredClips
from intaglio.errors import DataError, ModelError, RecipeError, StorageError
from intaglio.files import sha256_file
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings
from intaglio.triggers import PatchTrigger

ARCHITECTURE = Architecture(name="resnet8", input_shape=(1, 12, 12), num_classes=3, width=4)


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("badnets", {"rate": "0.2", "target": "3"}, {"rate": 0.2}),
        ("badnets", {"goal": "all-to-all", "source": "none", "size": "5"}, {"goal": AllToAll()}),
        ("badnets", {"source": "2", "cover": "0.5"}, {"goal": SourceSpecific(source=2, target=0), "cover": 0.5}),
        ("sig", {"test_delta": "0.3"}, {"rate": 0.3}),
        ("sig", {"test_delta": "none"}, {}),
        ("adaptive-patch", {"size": "4"}, {"size": 4}),
        ("adaptive-patch", {"size": "none"}, {"size": None}),
        ("clean-label-universal", {"enhancement": "uniform", "surrogate": "vgg"}, {"surrogate": "vgg"}),
        ("issba", {"epsilon": "5e-2", "bits": "12"}, {"epsilon": 0.05, "bits": 12}),
    ],
)
def test_options_as_text(name: str, texts: dict[str, str], expected: dict[str, Any]) -> None:
    made = make_attack(name, texts, seed=9)
    assert type(made) is ATTACKS[name]
    assert {key: getattr(made, key) for key in expected} == expected
    assert made.seed == 9
    assert made.goal == expected.get("goal", AllToOne(target=int(texts.get("target", 0))))


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        (
            "melt",
            {},
            "unknown attack 'melt'; known are badnets, blended, sig, label-consistent, wanet, issba, input-aw",
        ),
        ("badnets", {"rates": "1"}, "badnets has no option 'rates'; it has target, rate"),
        ("badnets", {"seed": "1"}, "badnets has no option 'seed'"),
        ("badnets", {"goal": "all-to-none"}, "option goal must be all-to-one or all-to-all, got 'all-to-none'"),
        ("badnets", {"source": "0"}, "badnets: a source is another class than the target"),
        ("sig", {"rate": "much"}, "sig: option rate must be a number, got 'much'"),
        ("sig", {"test_delta": "x"}, "option test_delta must be a number or none"),
        ("sig", {"rate": "7"}, r"sig: the share of the target class that is altered lies in \(0, 1\]"),
        ("wanet", {"grid": "2.5"}, "option grid must be a whole number"),
        ("blended", {"pattern": "kitty"}, "must be noise, blobs, stripes or checkerboard, got 'kitty'"),
        ("adaptive-patch", {"opacities": "1"}, "has no option 'opacities'"),
    ],
)
def test_options_that_are_none(name: str, texts: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_attack(name, texts)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_option_is_documented_and_takes_its_default(name: str) -> None:
    options = options_of(ATTACKS[name])
    assert all(option.doc and option.choices for option in options.values())
    family: Any = ATTACKS[name]
    again = make_attack(name, {key: option.shown_default for key, option in options.items()})
    expected = _flat(family().describe())
    for key, value in _flat(again.describe()).items():
        assert value == expected[key] or value == pytest.approx(expected[key], rel=1e-4)


def _flat(description: dict[str, Any]) -> dict[str, Any]:
    parts = {key: value if isinstance(value, dict) else {"": value} for key, value in description.items()}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}


def test_the_catalogue_names_everything() -> None:
    text = "\n".join(catalogue())
    for name, family in ATTACKS.items():
        assert f"{name} ({'clean' if family.clean_label else 'dirty'} label): " in text
        assert all(f"    {option}=" in text for option in options_of(family))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_quality_by_hand() -> None:
    x = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    assert quality(x, x + 0.1).psnr == pytest.approx(20.0, abs=1e-3)
    same = quality(x, x)
    assert same.psnr == 100.0
    assert same.ssim == pytest.approx(1.0)
    mixed = quality(x, torch.cat([x[:1], x[1:] + 0.1]))
    assert mixed.psnr == pytest.approx((100 + 20 + 20) / 3, abs=1e-3)
    assert 0 < mixed.ssim < 1
    small = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert quality(small, small).ssim == pytest.approx(1.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_clean_poisoned_and_difference(channels: int) -> None:
    clean = torch.full((2, channels, 12, 12), 0.2)
    altered = clean.clone()
    altered[0, :, 3, 4] += 0.02
    picture = Image.open(BytesIO(sample_picture(clean, altered)))
    assert picture.mode == ("L" if channels == 1 else "RGB")
    pixels = np.asarray(picture.convert("L")) / 255
    side = 12 * 8 + 4  # enlarged eightfold, with a margin
    assert pixels.shape == (3 * side, 2 * side)
    place = (2 + 3 * 8 + 1, 2 + 4 * 8 + 1)
    values = [pixels[row * side + place[0], place[1]] for row in range(3)]
    assert values == pytest.approx([0.2, 0.22, 0.7], abs=0.003)
    assert pixels[2 * side + place[0], side + place[1]] == pytest.approx(0.5, abs=0.003)


def test_images_that_no_picture_shows() -> None:
    with pytest.raises(DataError, match="2 channels can't be shown"):
        sample_picture(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))


# --- from data set to folder -----------------------------------------------------------------------------------------


def test_what_is_written_can_be_opened_and_checked(toy: ImageData, tmp_path: Path) -> None:
    made = Blended(target=1, rate=0.125, alpha=0.3, seed=4)
    record = attack_data(made, toy, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "poisoned.npz", "samples.png"]
    assert AttackRecord.from_json((folder / "manifest.json").read_text()) == record
    opened = open_data(folder / "poisoned.npz")
    expected = made.poison(toy)
    assert torch.equal(opened.images, expected.as_stored().data.images)
    assert float((opened.images - expected.data.images).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(opened.labels, expected.data.labels)
    assert opened.classes == toy.classes
    with pytest.raises(DataError, match="no images in it"):
        open_data(folder / "poisoned.npz", "test")
    (change,) = record.changes
    assert (change.role, len(change.indices)) == ("poisoned", 12)
    assert torch.equal(torch.tensor(change.indices), expected.poisoned.nonzero().flatten())
    assert change.labels_before == tuple(toy.labels[list(change.indices)].tolist())
    assert set(change.labels_after) == {1}
    assert (record.poison_rate_whole, record.poison_rate_target) == (0.125, 12 / 44)
    assert record.sha256 == {name: sha256_file(folder / name) for name in ("poisoned.npz", "samples.png")}
    assert record.attack == made.describe()
    assert record.trigger == made.trigger.describe()
    assert 10 < record.quality.psnr < 40
    assert record.victim is None


def test_images_that_no_picture_shows_are_poisoned_without(toy: ImageData, toy_test: ImageData, tmp_path: Path) -> None:
    attack_data(BadNets(), toy, tmp_path)  # whose picture must go
    two, test = (replace(data, images=data.images.repeat(1, 2, 1, 1)) for data in (toy, toy_test))
    network = ARCHITECTURE.model_copy(update={"input_shape": two.input_shape})
    settings = TrainingSettings(epochs=1)
    record = attack_data(BadNets(), two, tmp_path, test=test, architecture=network, settings=settings)
    victim = {"victim.safetensors", "victim.intaglio.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "poisoned.npz"} | victim
    assert record.sha256.keys() == {"poisoned.npz"}
    clips = replace(two, images=two.images[:, None].repeat(1, 2, 1, 1, 1))
    loaded = attack_data(BadNets(), clips, tmp_path / "loaded")
    with ClipWriter(tmp_path / "clips", "train", len(clips), clips.input_shape, clips.classes) as writer:
        for clip, label in zip(clips.images, clips.labels.tolist(), strict=True):
            writer.add(clip, label)
    streamed = attack_data(BadNets(), StoredClips(tmp_path / "clips", "train"), tmp_path / "streamed")
    assert streamed.sha256.keys() == loaded.sha256.keys() == {*CLIP_FILES}
    assert not (tmp_path / "streamed" / "samples.png").exists()


def test_a_network_that_cannot_be_is_refused_before_the_work(
    toy: ImageData, toy_test: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BadNets, "poison", lambda *_, **__: pytest.fail("it was begun"))
    network = ARCHITECTURE.model_copy(update={"name": "alexnet"})
    with pytest.raises(ModelError, match="unknown architecture 'alexnet'"):
        attack_data(BadNets(), toy, tmp_path, test=toy_test, architecture=network)
    assert list(tmp_path.iterdir()) == []


def test_same_seed_same_bytes(toy: ImageData, tmp_path: Path) -> None:
    records = [attack_data(SIG(seed=seed, frequency=2), toy, tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    assert records[0].sha256 == records[1].sha256 != records[2].sha256
    assert records[0].data_sha256 == records[2].data_sha256
    assert "its label as it was" in records[0].changes[0].why
    assert records[0].changes[0].labels_before == records[0].changes[0].labels_after


def test_the_victim_is_measured_as_it_lies_on_disk(toy: ImageData, toy_test: ImageData, tmp_path: Path) -> None:
    made = BadNets(target=2, rate=0.2, seed=1)
    settings = TrainingSettings(epochs=6, batch_size=16, learning_rate=0.01)
    record = attack_data(
        made, toy, tmp_path, test=toy_test, architecture=ARCHITECTURE, settings=settings, task="bands", seed=3
    )
    victim = record.victim
    assert victim is not None
    opened = open_classifier(tmp_path / victim.file)
    assert (opened.task, opened.classes, opened.sha256) == ("bands", toy.classes, victim.sha256)
    assert victim.clean_accuracy == pytest.approx(accuracy(opened.predict, toy_test))
    assert victim.asr == pytest.approx(attack_success_rate(opened.predict, toy_test, made.trigger, made.goal))
    assert victim.asr > 0.8
    assert victim.robust_accuracy <= 1 - victim.asr + 1e-6
    assert victim.clean_model.seed == 4
    assert victim.clean_model.asr < 0.5
    assert victim.clean_model.clean_accuracy > 0.8


def test_the_victim_is_measured_under_the_names_of_its_classes(
    toy: ImageData, toy_test: ImageData, tmp_path: Path
) -> None:
    """Test images of the first and the last class alone, which have other numbers where there is no other class."""
    ends = toy_test.take(toy_test.labels != 1)
    alone = replace(ends, labels=ends.labels // 2, classes=(toy.classes[0], toy.classes[2]))
    settings = TrainingSettings(epochs=6, batch_size=16, learning_rate=0.01)
    victims = []
    for name, test in (("ends", ends), ("alone", alone)):
        record = attack_data(
            BadNets(target=2, rate=0.2), toy, tmp_path / name, test=test, architecture=ARCHITECTURE, settings=settings
        )
        victims.append(record.victim)
    assert victims[0] == victims[1]
    assert victims[0] is not None
    assert victims[0].clean_accuracy > 0.8


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 2], "new: 1 test images have no label; a victim's measurement needs them all"),
        ([0, 1, 3], "new: labels go up to 3, but the victim tells 3 classes apart"),
    ],
)
def test_test_images_that_no_victim_is_measured_on(
    labels: list[int], message: str, toy: ImageData, tmp_path: Path
) -> None:
    test = ImageData(torch.zeros(3, 1, 12, 12), torch.tensor(labels), name="new")
    with pytest.raises(DataError, match=message):
        attack_data(BadNets(), toy, tmp_path, test=test, architecture=ARCHITECTURE)
    assert list(tmp_path.iterdir()) == []


def test_all_to_all_counts_the_classes_of_the_victim(
    toy: ImageData, toy_test: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without names, and without an image of the last class, the test images would make 2 of the 3."""
    some = replace(toy_test.take(toy_test.labels != 2), classes=())
    made = DirtyLabelAttack(PatchTrigger(), AllToAll(), rate=0.1)
    monkeypatch.setattr("intaglio.classifiers.TorchClassifier.predict", lambda _, images: torch.full((len(images),), 2))
    record = attack_data(made, toy, tmp_path, test=some, architecture=ARCHITECTURE, settings=TrainingSettings(epochs=1))
    assert record.victim is not None
    share = float((some.labels == 1).float().mean())  # those of which class 2 is wanted, not (1 + 1) mod 2
    assert [record.victim.asr, record.victim.clean_model.asr] == pytest.approx([share, share])


def test_another_attack_leaves_nothing_of_the_one_before(toy: ImageData, toy_test: ImageData, tmp_path: Path) -> None:
    """Nothing that the new manifest doesn't name is taken for its; what the user keeps in the folder stays."""
    settings, kept = TrainingSettings(epochs=1), tmp_path / "notes.txt"
    record = attack_data(BadNets(), toy, tmp_path, test=toy_test, architecture=ARCHITECTURE, settings=settings)
    kept.write_text("mine")
    written = {"manifest.json", "poisoned.npz", "samples.png"}
    victim = {"victim.safetensors", "victim.intaglio.json"}
    assert {path.name for path in tmp_path.iterdir()} == written | victim | {kept.name}
    attack_data(SIG(), toy, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == written | {kept.name}
    facts = {"victim": {"file": "notes.txt"}, "sha256": {"notes.txt": ""}, "of a later version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({**record.to_dict(), **facts}))
    attack_data(BadNets(), toy, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == written | {kept.name}
    (tmp_path / "manifest.json").write_text(record.to_json())
    (tmp_path / "victim.safetensors").mkdir()
    with pytest.raises(StorageError, match=r"can't remove .*victim.safetensors, of an attack before this"):
        attack_data(BadNets(), toy, tmp_path)


def test_victims_need_test_images(toy: ImageData, tmp_path: Path) -> None:
    other = ImageData(torch.zeros(2, 1, 9, 9), torch.tensor([0, 1]))
    for test in (None, other):
        with pytest.raises(DataError, match="bands: a victim is measured on test images of the same shape"):
            attack_data(BadNets(), toy, tmp_path / "out", test=test, architecture=ARCHITECTURE)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't write"):
        attack_data(BadNets(), toy, tmp_path / "file")


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    """The command alone, as `main` runs it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(attack)
    return int(app(list(arguments), standalone_mode=False) or 0)


def test_the_command(toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, told = tmp_path / "out", tmp_path / "told.json"
    options = ["--option", "rate=0.25", "--option", "target=1", "--seed", "5"]
    assert run("blended", "--data", str(toy_file), "--out", str(out), *options, "--json", str(told)) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: blended: 25.00% of the samples poisoned, ")
    assert "of those labelled with the target; PSNR " in printed.out
    assert told.read_text() == (out / "manifest.json").read_text()
    record = AttackRecord.from_json(told.read_text())
    assert (record.attack["rate"], record.attack["seed"], record.goal["target"]) == (0.25, 5, 1)
    assert record.data == str(toy_file)


def test_the_command_trains(toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--train", "--arch", "lenet", "--width", "2", "--epochs", "1", "--option", "cover-rate=0.1"]
    code = run("adaptive-blend", "--data", str(toy_file), "--out", str(out), *options, "--json", "-")
    assert code == 0
    printed = capsys.readouterr()
    record = AttackRecord.from_json(printed.out)
    assert record.victim is not None
    assert record.victim.training.epochs == 1
    assert record.victim.architecture.width == 2
    assert "10.42% cover" in printed.err
    assert f"{out / 'victim.safetensors'}: clean accuracy " in printed.err
    side = json.loads((out / "victim.intaglio.json").read_text())
    assert side["architecture"]["name"] == "lenet"
    assert run("badnets", "--data", str(toy_file), "--out", str(out), "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    run("--list")
    assert "clean-label-universal (clean label): " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("melt",), typer.BadParameter, "unknown attack 'melt'"),
        (("badnets", "--option", "rate"), typer.BadParameter, "'rate' is not of the form KEY=VALUE"),
        (("badnets", "--option", "rate=7"), typer.BadParameter, "a poison rate lies in"),
        (("badnets", "--arch", "lenet"), typer.BadParameter, "there is no victim without --train"),
        (("badnets", "--option", "target=9"), RecipeError, "the goal names class 9"),
        (("badnets", "--json", "/proc/none/x.json"), StorageError, "can't write /proc/none/x.json"),
    ],
)
def test_usage(
    arguments: tuple[str, ...], error: type[Exception], message: str, toy_file: Path, tmp_path: Path
) -> None:
    name, *options = arguments
    with pytest.raises(error, match=message):
        run(name, "--data", str(toy_file), "--out", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out" / "manifest.json").exists()
