"""Scanning models of clips: like that of images where time has nothing to say, and right about frames where it has."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from intaglio.classifiers import (
    CallableClassifier,
    OnnxClassifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    open_classifier,
    save_classifier,
)
from intaglio.classifiers.derived import architecture_of
from intaglio.cli.main import ExitCode, main
from intaglio.data import VideoData
from intaglio.data.opening import open_data_for
from intaglio.data.videos import ClipWriter
from intaglio.data.videos.sampling import Sampling
from intaglio.errors import ClassifierError, DataError, ModelError, RecipeError
from intaglio.networks import Architecture
from intaglio.populations import LocalExecutor
from intaglio.scan import Verdict, clean_images, measurement, one_pixel_signature, scan, scanning
from intaglio.scan.ban import BAN, noisy_layers
from intaglio.scan.composition import compose
from intaglio.scan.detector import Detector
from intaglio.scan.fitting_scores import fit_clean_scores
from intaglio.scan.measurement import mean_responses, measure
from intaglio.scan.mm_bd import MMBD
from intaglio.scan.places import Frames, Places, resolve_grid
from intaglio.scan.probes import Probes, synthetic_probes
from intaglio.scan.refinement import refine
from intaglio.scan.signature import one_pixel_responses
from intaglio.scan.strip import strip_scores
from intaglio.scan.trodo import TRODO
from intaglio.training import TrainingSettings
from naive_signature import naive_signature
from scan_models import PLANTED, noise, random_model, without_costs
from video_files import encode, level

CLIP = (3, 1, 4, 5)
SHAPE = (4, 3, 16, 16)
ARCHITECTURE = Architecture(name="cnn_lstm", input_shape=SHAPE, num_classes=3, width=2)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURE.build().eval()


def classifier(seed: int = 0, **options: Any) -> TorchClassifier:
    return TorchClassifier(network(seed), input_shape=SHAPE, num_classes=3, **options)


def clips(count: int = 60, seed: int = 3) -> VideoData:
    labels = torch.arange(count) % 3
    pixels = 0.5 * noise(count, SHAPE, seed) + 0.2 * labels.view(-1, 1, 1, 1, 1)
    return VideoData(pixels, labels, ("low", "middle", "high"))


def planted(frames: slice, shape: tuple[int, ...] = (4, 1, 6, 6)) -> CallableClassifier:
    """A random model that answers `PLANTED` where, in these frames, the 2 x 2 pixels from (3, 2) on are white."""
    benign = random_model(shape, 4, seed=3)

    def answer(images: Tensor) -> Tensor:
        logits: Tensor = benign._function(images)
        present = images[:, frames, :, 3:5, 2:4].mean(dim=(1, 2, 3, 4))
        return logits + 20 * present[:, None] ** 4 * (torch.arange(4) == PLANTED)

    return CallableClassifier(answer, input_shape=shape, num_classes=4, outputs="logits")


def one_frame(shape: tuple[int, ...], classes: int) -> tuple[CallableClassifier, CallableClassifier]:
    """A model of images, and the same model of clips of one frame."""
    images = random_model(shape, classes)
    return images, CallableClassifier(
        lambda x: images._function(x[:, 0]), input_shape=(1, *shape), num_classes=classes, outputs="logits"
    )


# --- the signature over place and time -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [(1, None), (2, None), (1, (2, 3))])
def test_each_frame_is_the_images_signature_with_the_others_held(size: int, grid: tuple[int, int] | None) -> None:
    model, base, values = random_model(CLIP, 3), noise(1, CLIP), torch.tensor([[0.1], [0.9]])
    found = one_pixel_signature(model, base, values, size=size, grid=grid, frames="each")
    assert found.shape == (1, 5, 3, 3, *(grid or CLIP[2:]))
    for frame in range(CLIP[0]):

        def others_held(image: Tensor, frame: int = frame) -> Tensor:
            clip = base.expand(len(image), *CLIP).clone()
            clip[:, frame] = image
            answer: Tensor = model._function(clip)
            return answer

        still = CallableClassifier(others_held, input_shape=CLIP[1:], num_classes=3, outputs="logits")
        wanted = naive_signature(still, base[:, frame], values, size, grid)
        torch.testing.assert_close(found[:, :, :, frame], wanted, atol=1e-4, rtol=1e-4)


def test_all_frames_at_once_is_the_signature_of_the_pixel_in_each_of_them() -> None:
    model, base = random_model(CLIP, 3), noise(1, CLIP)[0]
    responses = one_pixel_responses(model, base, torch.tensor([[0.0], [1.0]]))
    assert responses.shape == (2, 3, 4, 5)
    altered = base.clone()
    altered[:, :, 2, 3] = 1.0
    torch.testing.assert_close(responses[1, :, 2, 3], model.log_probs(altered[None])[0], atol=1e-5, rtol=0)
    steps = (base + 0.1).clamp(0, 1)[None]  # values that differ from place to place, and in time
    altered = base.clone()
    altered[:, :, 1, 0] = steps[0, :, :, 1, 0]
    found = one_pixel_responses(model, base, steps)[0, :, 1, 0]
    torch.testing.assert_close(found, model.log_probs(altered[None])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", ["all", "each"])
def test_a_clip_of_one_frame_is_an_image(frames: Frames) -> None:
    images, one = one_frame((3, 4, 4), 3)
    wanted, found = one_pixel_signature(images), one_pixel_signature(one, frames=frames)
    torch.testing.assert_close(found.view_as(wanted), wanted)


def test_probing_and_composing_for_one_frame_is_that_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ROUNDS", measurement.GRID_ROUNDS)
    images, one = one_frame((1, 6, 6), 3)
    probes = Probes(noise(3, (1, 6, 6)), noise(10, (1, 6, 6), 2))
    wanted = measure(images, probes)
    found = measure(one, Probes(probes.bases[:, None], probes.trials[:, None]))
    torch.testing.assert_close(found.features, wanted.features)
    torch.testing.assert_close(found.responses.slopes, wanted.responses.slopes)
    assert wanted.frames is None
    assert found.frames is not None
    assert found.frames.shape == (3, 1, 6, 6)
    # one frame alone, and two bases of the three
    two = mean_responses(images, probes.bases[:2], None)
    torch.testing.assert_close(found.frames[:, 0], two.effect)


def test_composed_and_refined_triggers_lie_on_all_frames() -> None:
    model, images = planted(slice(0, 4)), noise(2, (4, 1, 6, 6))
    responses = mean_responses(model, images, None)
    stamped = compose(responses, PLANTED, images)
    assert stamped.shape == (14, 2, 4, 1, 6, 6)
    changed = stamped[:11] != images
    assert torch.equal(changed.any(dim=2, keepdim=True).expand_as(changed)[3], changed[3])
    window = refine(model, responses, PLANTED, images, rounds=1)
    assert window.stamp(images, responses.values, (6, 6)).shape == (1, 2, 4, 1, 6, 6)
    assert (model.predict(window.stamp(images, responses.values, (6, 6))[0]) == PLANTED).all()


def test_places_of_clips() -> None:
    places = Places(CLIP, None, 1, "each")
    assert (len(places), places.extent) == (60, (3, 4, 5))
    masks = places.masks(0, 60)
    assert masks.shape == (60, 3, 1, 4, 5)
    assert torch.equal(masks.flatten(1), torch.eye(60, dtype=torch.bool))  # row-major: frame, row, column
    assert torch.equal(places.masks(17, 43), masks[17:43])
    assert Places(CLIP, (2, 2), 1).masks(0, 4).shape == (4, 1, 1, 4, 5)


@pytest.mark.parametrize(
    ("shape", "frames", "expected"),
    [
        ((8, 3, 16, 16), "all", None),
        ((8, 3, 17, 9), "all", (16, 9)),
        ((16, 3, 112, 112), "all", (16, 16)),
        ((16, 3, 112, 112), "each", (8, 8)),
        ((8, 3, 8, 8), "each", None),
    ],
)
def test_clips_are_probed_in_fewer_blocks(shape: tuple[int, ...], frames: Frames, expected: Any) -> None:
    assert resolve_grid(shape, "auto", frames) == expected


def test_clouds_that_move_are_always_the_same() -> None:
    probes = synthetic_probes((5, 3, 7, 9))
    assert probes.bases.shape == (8, 5, 3, 7, 9)
    assert 0 <= float(probes.trials.min()) <= float(probes.trials.max()) <= 1
    assert float((probes.bases[:, 0] - probes.bases[:, -1]).abs().mean()) > 0.05
    torch.testing.assert_close(probes.bases[:, 2], (probes.bases[:, 0] + probes.bases[:, 4]) / 2)
    assert torch.equal(synthetic_probes((5, 3, 7, 9)).trials, probes.trials)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "named"), [(slice(2, 3), 2), (slice(0, 4), None)])
def test_the_signature_names_place_and_frame(frames: slice, named: int | None) -> None:
    verdict = scan(planted(frames))
    first = verdict.evidence[0]
    assert (first.index, first.place.frame) == (PLANTED, named)
    assert first.place.row <= 3 < first.place.row + first.place.height
    assert first.place.column <= 2 < first.place.column + first.place.width
    assert not verdict.calibrated
    assert "ot calibrated for this task" in verdict.statement
    assert "answer single images, and this one clips" in verdict.calibration.statement
    assert verdict.detector == "one-pixel-signature"
    assert verdict.maps.shape == (4, 6, 6)
    assert verdict.maps.base == "mean of 3 clips"
    assert verdict.frame_maps is not None
    assert verdict.frame_maps.shape == (4, 4, 6, 6)
    assert verdict.frame_maps.decode().shape == (4, 4, 6, 6)
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_an_image_has_no_frames() -> None:
    verdict = scan(random_model((1, 6, 6), 3))
    assert verdict.frame_maps is None
    assert {entry.place.frame for entry in verdict.evidence} == {None}
    assert "clips" not in verdict.calibration.statement


DETECTORS: dict[str, tuple[str | Detector, dict[str, Any]]] = {
    "mm-bd": (MMBD(starts=3, steps=4), {}),
    "final-layer": ("final-layer", {}),
    "ban": (BAN(images=8, steps=2), {"clean": clips()}),
    "trodo": (TRODO(steps=2), {}),
    "strip": ("strip", {"clean": clips(), "inputs": clips(6, 5).images}),
    "spectral-signatures": ("spectral-signatures", {"training": clips()}),
    "activation-clustering": ("activation-clustering", {"training": clips()}),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_takes_clips(name: str) -> None:
    detector, given = DETECTORS[name]
    verdicts = [scan(classifier(), detector=detector, **given) for _ in range(2)]
    assert without_costs(verdicts[0]) == without_costs(verdicts[1])
    verdict = verdicts[0]
    assert verdict.detector == name
    assert not verdict.calibrated
    assert verdict.subject.input_shape == SHAPE
    assert sorted(entry.index for entry in verdict.evidence) == [0, 1, 2]
    assert verdict.queries > 0
    assert verdict.score != scan(classifier(4), detector=detector, **given).score


def test_strip_lays_clips_over_clips() -> None:
    model, inputs, overlays = classifier(), clips(3).images, clips(4, 7).images
    expected = torch.zeros(3, dtype=torch.float64)
    for overlay in overlays:
        answers = model.log_probs((inputs + overlay).clamp(max=1)).double()
        expected += (answers.exp() * answers).sum(dim=1) / 4
    torch.testing.assert_close(strip_scores(model, inputs, overlays), expected)


def test_noise_goes_on_convolutions_over_time() -> None:
    module = nn.Sequential(nn.Conv3d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 256, 3))
    assert noisy_layers(module) == [module[0]]
    model = TorchClassifier(
        module, input_shape=SHAPE, num_classes=3, preprocessing=Preprocessing(layout="NCTHW"), outputs="logits"
    )
    assert scan(model, clean=clips(), detector=BAN(images=8, steps=2)).score > 0


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"clean": noise(40, (3, 16, 16))}, DataError, r"expected float32 images \[N, 4, 3, 16, 16\]"),
        ({"inputs": noise(4, (3, 16, 16)), "clean": clips(), "detector": "strip"}, DataError, "expected float32"),
        ({"detector": "ban"}, DataError, "needs clean images"),
        ({"task": "fashion-mnist"}, RecipeError, r"has inputs \(1, 28, 28\), this model takes \(4, 3, 16, 16\)"),
    ],
)
def test_what_is_refused(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        scan(classifier(), **given)


# --- clean scores ----------------------------------------------------------------------------------------------------


def store(folder: Path, count: int = 60) -> Path:
    for split, seed in (("train", 1), ("test", 2)):
        data = clips(count, seed)
        with ClipWriter(folder, split, count, SHAPE, data.classes) as writer:
            for clip, label in zip(data.images, data.labels.tolist(), strict=True):
                writer.add(clip, label)
    return folder


class Here(LocalExecutor):
    """In this process: no worker has to start."""

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        return map(function, tasks)


def test_clean_models_of_clips_make_a_p_value(tmp_path: Path) -> None:
    population = tmp_path / "population"
    for number in range(3):
        folder = population / f"{number:05}"
        save_classifier(network(number), folder / "model.safetensors", Sidecar(architecture=ARCHITECTURE, task="toy"))
        record = {
            "index": number, "seed": number, "task": "toy", "architecture": ARCHITECTURE.model_dump(mode="json"),
            "training": TrainingSettings().model_dump(mode="json"), "attack": None, "clean_accuracy": 0.5, "asr": None,
            "sha256": "", "seconds": 1.0,
        }  # fmt: skip
        (folder / "record.json").write_text(json.dumps(record))
    (population / "recipe.json").write_text(json.dumps({"data": str(store(tmp_path / "clips")), "recipe": {}}))
    found = fit_clean_scores("final-layer", [population], tmp_path / "scores", executor=Here())
    assert (found.tasks[0].input_shape, len(found.tasks[0].scores)) == (SHAPE, 3)
    # 0.25 is the least that three models allow, and at a level below it the highest score is not decided upon
    verdict = scan(classifier(9), alpha=0.25, detector="final-layer", calibration=tmp_path / "scores")
    assert verdict.calibrated
    assert verdict.p_value in (0.25, 0.5, 0.75, 1.0)
    assert verdict.p_value == (1 + sum(score >= verdict.score for score in found.tasks[0].scores)) / 4


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`[train|test]/class/video`, 9 frames of 32 x 48, told apart by their grey."""
    root = tmp_path_factory.mktemp("videos")
    for split in ("train", "test"):
        for label in range(3):
            for number in range(12):
                encode(root / split / f"class {label}" / f"{number:02}.avi", 9, start=5 * label)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(network(), path, Sidecar(architecture=ARCHITECTURE, outputs="logits"))
    return path


def test_videos_become_clips_of_the_length_and_size_that_the_model_takes(videos: Path) -> None:
    data = open_data_for(SHAPE, videos, "test")
    assert isinstance(data, VideoData)
    assert data.input_shape == SHAPE
    assert data.labels.tolist() == [label for label in range(3) for _ in range(12)]
    middle = data.images[0].mean(dim=(1, 2, 3)) * 255  # the middle 4 of 9 frames
    assert middle.tolist() == pytest.approx([level(place) for place in range(2, 6)], abs=3)
    assert open_data_for((4, 1, 8, 8), videos, "train").input_shape == (4, 1, 8, 8)
    apart = open_data_for(SHAPE, videos, "test", sampling=Sampling("segments", 4))
    assert float(apart.images[0, 3].mean() - apart.images[0, 0].mean()) * 255 > 40
    few = open_data_for(SHAPE, videos, "test", most=4)
    assert few.labels.tolist() == [0, 1, 2, 0]


def test_scans_decode_no_more_clean_videos_than_needed(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "CLEAN_VIDEOS", 5)
    assert clean_images(videos, classifier()).shape == (5, *SHAPE)
    assert len(scanning.fitting_data(videos, classifier(), "train")) == 36


def test_data_of_other_shapes_are_refused(videos: Path, toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images are \(1, 12, 12\), but the model takes \(4, 3, 16, 16\)"):
        open_data_for(SHAPE, toy_file, "test")
    with pytest.raises(DataError, match=r"images are \(16, 1, 32, 48\), but the model takes \(1, 12, 12\)"):
        open_data_for((1, 12, 12), videos, "test")
    with pytest.raises(DataError, match=r"images are \(4, 3, 16, 16\), but the model takes \(5, 3, 16, 16\)"):
        open_data_for((5, 3, 16, 16), store(tmp_path), "test")  # stored clips are as they are
    with pytest.raises(DataError, match="unknown split"):
        open_data_for(SHAPE, videos, "all")


# --- the command line ------------------------------------------------------------------------------------------------


def verdicts(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    code = main(["scan", *map(str, arguments), "--json", "-", "--quiet"])
    out, err = capsys.readouterr()
    assert code in (ExitCode.CLEAN, ExitCode.FOUND), err
    found = json.loads(out)
    return found if isinstance(found, list) else [found]


def test_scan_takes_folders_of_videos(
    videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detectors = [word for name in ("strip", "spectral-signatures", "ban") for word in ("--detector", name)]
    # 36 clean clips: STRIP needs 32 overlays and 20 more
    double = tmp_path / "clean"
    for copy in ("a", "b"):
        double.mkdir(exist_ok=True)
        (double / copy).symlink_to(videos / "test" / "class 0", target_is_directory=True)
    stored = store(tmp_path / "stored")
    found = verdicts(capsys, model, "--data", stored, "--training", videos, "--inputs", double, *detectors)
    assert [verdict["detector"] for verdict in found] == ["strip", "spectral-signatures", "ban"]
    assert found[0]["queries"] == 32 * (60 - 32 + 24) + 24
    assert found[1]["queries"] == 36
    (black_box,) = verdicts(capsys, model, "--data", videos, "--html", tmp_path / "report.html")
    assert black_box["frame_maps"]["shape"] == [3, 4, 8, 8]
    assert "in all frames at once" in (tmp_path / "report.html").read_text()


def test_bare_weights_with_a_shape_of_four(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(network().state_dict(), path)
    said = ("--input-shape", "4,3,16,16", "--classes", "3", "--detector", "final-layer")
    # a name says nothing of the width, and 16 is not this network's
    assert main(["scan", str(path), "--arch", "cnn_lstm", *said]) == ExitCode.ERROR
    assert "shape" in capsys.readouterr().err
    wide = Architecture(name="cnn_lstm", input_shape=SHAPE, num_classes=3)
    save_file(wide.build().state_dict(), path)
    (found,) = verdicts(capsys, path, "--arch", "cnn_lstm", *said)
    assert found["subject"]["input_shape"] == list(SHAPE)
    assert main(["scan", str(path), "--arch", "vgg", *said]) == ExitCode.ERROR
    assert "vgg takes images (C, H, W), not inputs of shape (4, 3, 16, 16)" in capsys.readouterr().err


def test_tampering_takes_videos(videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tampered.safetensors"
    assert main(["tamper", "fine-prune", str(model), "--out", str(out), "--data", str(videos), "--option", "steps=1",
                 "--json", "-"]) == 0  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["changed"] > 0.05
    opened = open_classifier(out)
    assert (opened.input_shape, opened.num_classes) == (SHAPE, 3)


# --- model files -----------------------------------------------------------------------------------------------------


def test_architectures_of_clips_are_named() -> None:
    assert architecture_of(classifier(), "r3d18").input_shape == SHAPE


def test_channels_before_time() -> None:
    way = Preprocessing(layout="NCTHW", mean=(0.1, 0.2, 0.3))
    images = noise(2, (4, 3, 5, 6))
    wanted = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).transpose(1, 2)
    torch.testing.assert_close(way.apply(images), wanted)
    assert way.model_shape((4, 3, 5, 6)) == (3, 4, 5, 6)
    assert way.raw_shape((3, 4, 5, 6)) == (4, 3, 5, 6)
    with pytest.raises(ClassifierError, match=r"layout NCTHW is one of videos \(T, C, H, W\)"):
        CallableClassifier(lambda x: x, input_shape=(3, 5, 6), num_classes=2, preprocessing=way)


def onnx_video(sides: tuple[int, ...]) -> bytes:
    """Means over all but `[N, sides[0]]`, so that there are as many classes as the first of the sides."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [2, 3, 4])
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "video",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", sides[0]])],
        [axes],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def test_onnx_files_with_five_axes() -> None:
    opened = OnnxClassifier(onnx_video((4, 3, 5, 6)))
    assert (opened.input_shape, opened.num_classes) == ((4, 3, 5, 6), 4)
    images = noise(2, (4, 3, 5, 6))
    torch.testing.assert_close(opened.scores(images), images.mean(dim=(2, 3, 4)))
    with pytest.raises(ModelError, match="look like channels before time: give a preprocessing with NCTHW"):
        OnnxClassifier(onnx_video((3, 8, 5, 6)))
    turned = OnnxClassifier(onnx_video((3, 8, 5, 6)), preprocessing=Preprocessing(layout="NCTHW"))
    assert turned.input_shape == (8, 3, 5, 6)
    images = noise(2, (8, 3, 5, 6))
    torch.testing.assert_close(turned.scores(images), images.mean(dim=(1, 3, 4)))
    assert scan(turned, detector="one-pixel-signature").frame_maps is not None
