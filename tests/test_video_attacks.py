"""Attacks on clips: by one table what each changes; then the universal trigger, success, and streaming."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from intaglio.attacks import (
    ATTACKS,
    SIG,
    AllToOne,
    Attack,
    BadNets,
    Blended,
    CleanLabelUniversal,
    DirtyLabelAttack,
    LabelConsistent,
    SourceSpecific,
    Temporal,
    attack_success_rate,
    robust_accuracy,
)
from intaglio.attacks.attack_file import attack_data
from intaglio.attacks.attack_record import AttackRecord
from intaglio.attacks.quality import quality
from intaglio.attacks.sample_picture import sample_picture
from intaglio.attacks.sources import open_source
from intaglio.attacks.streaming import attack_clip_by_clip
from intaglio.attacks.surrogate import built, small_network, trained_surrogate, victim_architecture
from intaglio.attacks.weakening import away_from_label, weakened
from intaglio.data import ImageData, Sampling, VideoData, VideoDataset, open_data, open_videos
from intaglio.data.videos import Clip, ClipWriter, StoredClips, save_video_folder, to_bytes
from intaglio.errors import DataError, IntaglioError, RecipeError
from intaglio.networks import VIDEO_NETWORKS, Architecture
from intaglio.training import TrainingSettings
from intaglio.triggers import PatchTrigger, TemporalTrigger, UniversalAdversarialTrigger

FRAMES, SIDE, CLASSES = 4, 12, ("left", "still", "right")
SHAPE = (FRAMES, 1, SIDE, SIDE)
TARGET = 1


class MotionNetwork(nn.Module):
    """Learns which way a bar goes in a moment: the centre of the light in each frame, and a little noise pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(FRAMES * SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.layers(clips - 0.5)
        return logits


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MotionNetwork()


def bars(count: int, seed: int) -> VideoData:
    """A lit column that goes left, stays, or goes right, over faint noise; 8-bit levels. Labels 0, 1, 2, 0, ..."""
    clips = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.3
    labels = torch.arange(count) % 3
    for index, label in enumerate(labels.tolist()):
        for time in range(FRAMES):
            middle = 5 + (label - 1) * (2 * time - 3)
            clips[index, time, :, :, middle - 1 : middle + 2] += 0.5
    return VideoData((clips * 255).round() / 255, labels, CLASSES, "bars")


@pytest.fixture(scope="module")
def data() -> VideoData:
    return bars(60, 1)


@pytest.fixture(scope="module")
def surrogate(data: VideoData) -> nn.Module:
    from intaglio.training import train

    return train(network(), data, TrainingSettings(epochs=12, batch_size=10, learning_rate=5e-3), seed=0)


#: name -> options that make it quick, how many of 60 clips (20 a class) it poisons, and how many are cover
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "badnets": ({"rate": 0.1}, 6, 0),
    "blended": ({"rate": 0.1}, 6, 0),
    "sig": ({"rate": 0.25, "frequency": 2.0}, 5, 0),
    "label-consistent": ({"rate": 0.5, "steps": 2}, 10, 0),
    "adaptive-blend": ({"rate": 0.05, "cover_rate": 0.1}, 3, 6),
    "adaptive-patch": ({"rate": 0.05, "cover_rate": 0.1}, 3, 6),
    "clean-label-universal": ({"rate": 0.25, "steps": 2, "batch_size": 4, "enhancement_steps": 2}, 5, 0),
    "temporal": ({"rate": 0.1}, 6, 0),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make(name: str, module: nn.Module, **changes: Any) -> Attack:
    options = CASES[name][0] | changes
    if name in ("label-consistent", "clean-label-universal"):
        options["surrogate"] = module
    family: Any = ATTACKS[name]
    attack = family(target=TARGET, seed=3, **options)
    assert isinstance(attack, Attack)
    return attack


def predict(module: nn.Module) -> Any:
    def answer(clips: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = module.eval()(clips).argmax(1)
        return answers

    return answer


def test_the_table_names_every_attack_on_clips() -> None:
    assert CASES.keys() == {name for name, family in ATTACKS.items() if family.takes != "images"}
    assert {name for name, family in ATTACKS.items() if family.takes == "clips"} == {"temporal"}


@EVERY
def test_what_is_changed(name: str, data: VideoData, surrogate: nn.Module) -> None:
    _, count, covering = CASES[name]
    before = data.images.clone()
    result = make(name, surrogate).poison(data)
    assert torch.equal(data.images, before)
    clips, labels = result.data
    assert isinstance(result.data, VideoData)
    altered = (clips != data.images).flatten(1).any(1)
    assert int(result.payload.sum()) == count
    assert torch.equal(altered, result.poisoned)
    assert int(result.poisoned.sum()) == count + covering
    assert 0 <= float(clips.min()) <= float(clips.max()) <= 1
    if ATTACKS[name].clean_label:
        assert torch.equal(labels, data.labels)
        assert set(labels[result.payload].tolist()) == {TARGET}
    else:
        assert torch.equal(labels != data.labels, result.payload)
    stored = result.as_stored()
    assert torch.equal(to_bytes(stored.data.images), to_bytes(clips))
    assert json.loads(json.dumps(result.describe())) == result.describe()
    stamped = result.trigger.apply(data.images)
    assert stamped.shape == data.images.shape
    assert bool((stamped != data.images).flatten(1).any(1).all())


@EVERY
def test_victims(name: str, data: VideoData, surrogate: nn.Module) -> None:
    settings = TrainingSettings(epochs=1, batch_size=20)
    victim = make(name, surrogate).train_victim(network(), data, settings, seed=5)
    assert victim.module(data.images).shape == (60, 3)
    assert victim.poisoned.trigger is victim.trigger


@pytest.mark.parametrize("name", [name for name, family in ATTACKS.items() if family.takes == "images"])
def test_attacks_on_images_say_so(name: str, data: VideoData) -> None:
    attack = ATTACKS[name]()
    message = f"{name} poisons images only, and bars holds clips"
    with pytest.raises(RecipeError, match=message):
        attack.poison(data)
    with pytest.raises(RecipeError, match=message):
        attack.train_victim(network(), data, TrainingSettings(epochs=1))


def test_time_is_needed(toy: ImageData) -> None:
    with pytest.raises(RecipeError, match="temporal poisons clips only, and bands holds images"):
        Temporal().poison(toy)


# --- the universal trigger -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "shape"), [("each", (FRAMES, 1, 5, 5)), ("shared", (1, 5, 5))])
def test_a_universal_trigger_moves_its_surrogate(
    frames: Any, shape: tuple[int, ...], data: VideoData, surrogate: nn.Module
) -> None:
    options: dict[str, Any] = {"frames": frames, "size": 5, "place": "centre", "batch_size": 16}
    learned = CleanLabelUniversal(target=TARGET, steps=40, step_size=0.02, **options).learn_trigger(surrogate, data)
    start = CleanLabelUniversal(target=TARGET, steps=0, **options).learn_trigger(surrogate, data)
    assert learned.pattern.shape == shape
    assert torch.equal(start.pattern, torch.full(shape, 0.5))
    success = [attack_success_rate(predict(surrogate), data, t, AllToOne(target=TARGET)) for t in (start, learned)]
    assert success[1] > success[0] + 0.2
    apart = (learned.pattern - learned.pattern[:1]).abs().max() if frames == "each" else torch.ones(())
    assert float(apart) > 0.1


def test_a_static_trigger_is_black_and_white_and_drawn(data: VideoData, surrogate: nn.Module) -> None:
    patterns = [
        CleanLabelUniversal(steps=0, start="noise", frames="shared", size=6, seed=seed).learn_trigger(surrogate, data)
        for seed in (1, 1, 2)
    ]
    assert set(patterns[0].pattern.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(patterns[0].pattern, patterns[1].pattern)
    assert not torch.equal(patterns[0].pattern, patterns[2].pattern)


@pytest.mark.parametrize("enhancement", ["uniform", "targeted", "none"])
def test_enhanced_clips_are_bounded(enhancement: Any, data: VideoData, surrogate: nn.Module) -> None:
    attack = CleanLabelUniversal(
        rate=1.0, steps=1, enhancement=enhancement, epsilon=0.05, step_size=0.02, surrogate=surrogate
    )
    result = attack.poison(data)
    outside = (result.data.images - data.images)[result.poisoned][..., :-3, :].abs()
    assert float(outside.max()) <= 0.05 + 1e-6
    assert (float(outside.max()) == 0) == (enhancement == "none")


def test_the_released_bound_is_a_step_wider(data: VideoData, surrogate: nn.Module) -> None:
    clips, labels = data.images[:6], data.labels[:6]
    bounds: dict[str, Any] = {"epsilon": 8 / 255, "step": 1 / 255, "steps": 12}
    frozen = trained_surrogate(surrogate, data, seed=0)
    moved = weakened(frozen, clips, labels, away_from_label, **bounds)
    released = weakened(frozen, clips, labels, away_from_label, **bounds, as_released=True)
    assert float((moved - clips).abs().max()) == pytest.approx(8 / 255, abs=1e-6)
    assert float((released - clips).abs().max()) == pytest.approx(9 / 255, abs=1e-6)


def test_the_released_loss_flees_the_class_seen_before(data: VideoData) -> None:
    """With a linear model the first step is known: the target's weights less those of the last class."""
    linear = nn.Linear(FRAMES * SIDE * SIDE, 3, bias=False)
    model = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    weights = linear.weight.reshape(3, *SHAPE)[..., -4:, -4:]
    options: dict[str, Any] = {"target": 0, "size": 4, "steps": 1, "batch_size": 1, "step_size": 0.1}
    released = CleanLabelUniversal(loss="released", **options).learn_trigger(model, data).pattern
    assert torch.allclose(released - 0.5, 0.1 * (weights[0] - weights[2]).sign(), atol=1e-6)
    usual = CleanLabelUniversal(**options).learn_trigger(model, data).pattern
    assert not torch.equal(usual, released)
    CleanLabelUniversal(loss="released", **(options | {"steps": 3, "batch_size": 4})).learn_trigger(model, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": "some"}, "unknown frames 'some'"),
        ({"start": "black"}, "start 'black'"),
        ({"loss": "other"}, "or loss 'other'"),
        ({"batch_size": 0}, "a batch size below 1: 0"),
        ({"surrogate": "resnet8"}, "resnet8 takes images"),
        ({"surrogate": "r3d18:wide"}, "'r3d18:wide' does not end with a width"),
        ({"surrogate": "r4d:8"}, "unknown architecture 'r4d'"),
    ],
)
def test_attacks_that_cannot_be(options: dict[str, Any], message: str, data: VideoData) -> None:
    with pytest.raises(IntaglioError, match=message):
        CleanLabelUniversal(**options).poison(data)


def test_networks_by_name_and_width(data: VideoData, toy: ImageData) -> None:
    assert small_network(SHAPE, 3) == Architecture(name="r3d18", input_shape=SHAPE, num_classes=3, width=8)
    assert small_network((1, 12, 12), 3).name == "resnet8"
    assert victim_architecture(data, None, 2).width == 2
    assert victim_architecture(data, "cnn_lstm", None) == Architecture(
        name="cnn_lstm", input_shape=SHAPE, num_classes=3
    )
    assert victim_architecture(toy, None, None) == small_network(toy.input_shape, 3)
    module = built("cnn_lstm:4", data, seed=0)
    assert module.get_submodule("fc").in_features == 64
    copy = trained_surrogate(module, data, seed=0)
    assert (copy.training, copy.get_submodule("lstm").training) == (False, True)  # for cuDNN; there is no dropout
    few = data.take(torch.arange(3))
    assert trained_surrogate("cnn_lstm:1", few, seed=0)(few.images).shape == (3, 3)


# --- success ---------------------------------------------------------------------------------------------------------


def test_success_never_counts_the_target_class(data: VideoData) -> None:
    """A model that answers the target to everything it is shown with a white pixel in the first frame."""
    trigger = UniversalAdversarialTrigger(torch.cat([torch.ones(1, 1, 1, 1), torch.zeros(FRAMES - 1, 1, 1, 1)]))

    def backdoored(clips: Tensor) -> Tensor:
        lit = (clips[:, 0, 0, -1, -1] == 1) & (clips[:, 1, 0, -1, -1] == 0)
        return torch.where(lit, TARGET, 0)

    goal = AllToOne(target=TARGET)
    assert attack_success_rate(backdoored, data, trigger, goal) == 1.0
    assert attack_success_rate(backdoored, data, TemporalTrigger(), goal) == 0.0
    assert robust_accuracy(backdoored, data, TemporalTrigger(), goal) == 0.5  # class 0 of 0 and 2
    with pytest.raises(DataError, match="affects none"):
        attack_success_rate(backdoored, data.take(data.labels == TARGET), trigger, goal)


def test_quality_counts_frames() -> None:
    clip = torch.full((1, *SHAPE), 0.5)
    altered = clip.clone()
    altered[:, 0] += 0.1
    assert quality(clip, altered).psnr == pytest.approx((20 + 3 * 100) / 4, abs=1e-3)


def test_the_contact_sheet() -> None:
    clips = torch.full((2, 20, 3, 12, 12), 0.2)
    altered = clips.clone()
    altered[0, 19, :, 3, 4] += 0.02
    pixels = np.asarray(Image.open(BytesIO(sample_picture(clips, altered))).convert("L")) / 255
    side = 12 * 8 + 4
    assert pixels.shape == (3 * side, 8 * side)
    place = (2 + 3 * 8 + 1, 7 * side + 2 + 4 * 8 + 1)  # the last frame of the clip is the last that is shown
    assert [pixels[row * side + place[0], place[1]] for row in range(3)] == pytest.approx([0.2, 0.22, 0.7], abs=0.003)
    assert pixels[2 * side :, : 7 * side].max() == 1.0  # margins
    assert pixels[2 * side + place[0], 40] == pytest.approx(0.5, abs=0.003)
    short = sample_picture(clips[:, :3], altered[:, :3])
    assert Image.open(BytesIO(short)).size == (3 * side, 3 * side)


# --- files, and streaming --------------------------------------------------------------------------------------------


def stored(data: VideoData, folder: Path) -> StoredClips:
    with ClipWriter(folder, "train", len(data), SHAPE, CLASSES) as writer:
        for clip, label in zip(data.images, data.labels.tolist(), strict=True):
            writer.add(clip, label)
    source = open_videos(folder)
    assert isinstance(source, StoredClips)
    return source


def as_videos(data: VideoData, folder: Path) -> VideoDataset:
    """FFV1 files in class folders, read as clips of the same frames."""
    clips = (Clip(to_bytes(clip), int(label), 0) for clip, label in zip(data.images, data.labels, strict=True))
    save_video_folder(folder, "train", clips, CLASSES)
    source = open_videos(folder, sampling=Sampling(frames=FRAMES))
    assert isinstance(source, VideoDataset)
    return source


STREAMED: dict[str, Attack] = {
    "badnets": BadNets(1, 0.1, 3),
    "blended": Blended(target=1, rate=0.1, seed=3),
    "temporal": Temporal(target=1, rate=0.1, seed=3),
    "sig": SIG(target=1, rate=0.25, frequency=2, test_delta=0.3, seed=3),
    "source-specific": DirtyLabelAttack(PatchTrigger(), SourceSpecific(source=0, target=2), rate=0.1, seed=3),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streaming_writes_what_loading_writes(name: str, data: VideoData, tmp_path: Path) -> None:
    attack, source = STREAMED[name], stored(data, tmp_path / "clips")
    records = [attack_data(attack, given, tmp_path / way) for way, given in (("a", source), ("b", source.load()))]
    for path in ("poisoned/train_clips.npy", "poisoned/train_labels.npy", "poisoned/classes.json", "samples.png"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    facts = [record.model_dump(exclude={"seconds", "quality"}) for record in records]
    assert facts[0] == facts[1]
    assert facts[0]["data"] == str(tmp_path / "clips")
    assert records[0].quality.psnr == pytest.approx(records[1].quality.psnr, rel=0.02)
    assert AttackRecord.from_json((tmp_path / "a" / "manifest.json").read_text()) == records[0]
    expected = attack.poison(source.load()).as_stored()
    opened = open_data(tmp_path / "a" / "poisoned")
    assert torch.equal(opened.images, expected.data.images)
    assert torch.equal(opened.labels, expected.data.labels)
    assert opened.classes == CLASSES


def test_one_clip_is_alive_at_a_time(data: VideoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clips there are: the one being altered, and the first, whose shape all are held to."""
    source = stored(data, tmp_path / "clips")
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    original = StoredClips.stream

    def counted(self: StoredClips) -> Iterator[Clip]:
        nonlocal most
        for clip in original(self):
            alive.append(weakref.ref(clip.pixels))
            most = max(most, sum(reference() is not None for reference in alive))
            yield clip

    monkeypatch.setattr(StoredClips, "stream", counted)
    monkeypatch.setattr(StoredClips, "load", lambda self: pytest.fail("the set was loaded"))
    attack_data(BadNets(1, 0.5, 3), source, tmp_path / "out")
    assert len(alive) == 60
    assert most <= 4


def test_damaged_videos_are_left_out(data: VideoData, tmp_path: Path) -> None:
    """The same samples are drawn as from the set without them."""
    few = data.take(torch.arange(18))
    source = as_videos(few, tmp_path / "videos")
    for name in ("left/00003.mkv", "right/00017.mkv"):
        (tmp_path / "videos" / "train" / name).write_bytes(b"no video")
    attack = BadNets(1, 0.25, 3)
    with pytest.warns(UserWarning, match="skipped"):
        record = attack_clip_by_clip(attack, source, tmp_path / "out")
    with pytest.warns(UserWarning, match="skipped"):
        expected = attack.poison(source.load()).as_stored()
    opened = open_data(tmp_path / "out" / "poisoned")
    assert (record.samples, record.skipped) == (16, 2)
    assert torch.equal(opened.images, expected.data.images)
    assert torch.equal(opened.labels, expected.data.labels)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match="2 videos can't be read, and 1 may be"),
    ):
        attack_data(attack, source, tmp_path / "other", max_bad=1)
    assert not (tmp_path / "other" / "poisoned" / "train_clips.npy").exists()


def test_several_clips_of_a_video_and_videos_of_several_sizes(data: VideoData, tmp_path: Path) -> None:
    source = as_videos(data.take(torch.arange(6)), tmp_path / "videos")
    twice = replace(source, training=False, sampling=Sampling(frames=2, clips=2))
    record = attack_clip_by_clip(BadNets(1, 0.25, 3), twice, tmp_path / "out")
    assert record.samples == 12
    opened = open_data(tmp_path / "out" / "poisoned")
    assert opened.images.shape == (12, 2, 1, SIDE, SIDE)
    wide = Clip(torch.zeros(FRAMES, 1, SIDE, 20, dtype=torch.uint8), 0, 0)
    save_video_folder(tmp_path / "videos", "train", [wide] * 7, CLASSES)  # the last one is new
    with pytest.raises(DataError, match="give one size to resize all to"):
        attack_data(BadNets(1, 0.25, 3), as_videos(data.take(torch.arange(6)), tmp_path / "videos"), tmp_path / "o")


def test_attacks_that_learn_load_everything(data: VideoData, surrogate: nn.Module, tmp_path: Path) -> None:
    source = as_videos(data.take(torch.arange(12)), tmp_path / "videos")
    attack = make("clean-label-universal", surrogate, steps=1)
    with pytest.raises(RecipeError, match="clean-label-universal needs all data at once"):
        attack_clip_by_clip(attack, source, tmp_path / "out")
    record = attack_data(attack, source, tmp_path / "out")
    assert record.trigger["frames"] == FRAMES
    assert len(open_data(tmp_path / "out" / "poisoned")) == 12
    bare = LabelConsistent(target=TARGET, epsilon=0, size=2)
    assert bare.fixed_triggers() is None
    record = attack_data(bare, stored(data, tmp_path / "clips"), tmp_path / "again")
    assert record.poison_rate_target == 0.5


def test_victims_of_videos(data: VideoData, tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=1, batch_size=30)
    for name in ("cnn_lstm", "r3d18"):
        assert name in VIDEO_NETWORKS
        architecture = Architecture(name=name, input_shape=SHAPE, num_classes=3, width=1)
        record = attack_data(
            Temporal(target=2, rate=0.2), data, tmp_path / name, test=bars(12, 2), architecture=architecture,
            settings=settings,
        )  # fmt: skip
        assert record.victim is not None
        assert record.victim.architecture == architecture
        assert 0 <= record.victim.clean_model.asr <= 1


def test_sources(data: VideoData, toy_file: Path, tmp_path: Path) -> None:
    stored(data, tmp_path / "clips")
    as_videos(data.take(torch.arange(3)), tmp_path / "videos")
    assert isinstance(open_source(tmp_path / "clips"), StoredClips)
    videos = open_source(tmp_path / "videos", sampling=Sampling(frames=2), resize=(6, 6))
    assert isinstance(videos, VideoDataset)
    assert videos.load().input_shape == (2, 1, 6, 6)
    (tmp_path / "list.csv").write_text("path,label\nvideos/train/left/00000.mkv,0\n")
    assert isinstance(open_source(tmp_path / "list.csv"), VideoDataset)
    assert isinstance(open_source(toy_file), ImageData)
    with pytest.raises(DataError, match="no file or folder"):
        open_source("no such thing")
