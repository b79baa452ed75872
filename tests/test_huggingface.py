"""Hugging Face classifiers: tiny ones of random weights, saved and opened; what could run code is refused."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.classifiers import Access, Preprocessing, open_classifier
from intaglio.classifiers.huggingface import open_huggingface
from intaglio.errors import IntaglioError, ModelError, UnsafeFileError
from intaglio.files import sha256_file

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
    "id2label": {0: "run", 1: "walk", 2: "jump"},
}  # fmt: skip
CLIPS = (4, 3, 16, 16)
#: configuration, model, what is its own, raw inputs
KINDS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "VideoMAE": ("VideoMAEConfig", "VideoMAEForVideoClassification",
                 {"patch_size": 8, "num_frames": 4, "tubelet_size": 2}, CLIPS),
    "TimeSformer": ("TimesformerConfig", "TimesformerForVideoClassification",
                    {"patch_size": 8, "num_frames": 4}, CLIPS),
    "ViViT": ("VivitConfig", "VivitForVideoClassification", {"num_frames": 4, "tubelet_size": [2, 8, 8]}, CLIPS),
    "ViT": ("ViTConfig", "ViTForImageClassification", {"patch_size": 8}, (3, 16, 16)),
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.5],
}  # fmt: skip


def save(folder: Path, kind: str = "ViT", processor: dict[str, Any] | None = None) -> Any:
    config_name, model_name, extra, _ = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**TINY, **extra)
    model = getattr(transformers, model_name)(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR if processor is None else processor))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("models")
    return {kind: (root / kind, save(root / kind, kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_model_itself(saved: dict[str, tuple[Path, Any]], kind: str) -> None:
    folder, model = saved[kind]
    classifier = open_huggingface(folder)
    assert classifier.input_shape == KINDS[kind][3]
    assert classifier.classes == ("run", "walk", "jump")
    assert (classifier.access, classifier.format, classifier.outputs) == (Access.WEIGHTS, "huggingface", "logits")
    assert open_classifier(folder, task="walks").task == "walks"
    images = torch.rand(2, *classifier.input_shape)
    mean, std = (torch.tensor(PROCESSOR[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.inference_mode():
        expected = model(pixel_values=(images - mean) / std).logits
    assert torch.allclose(classifier.scores(images), expected, atol=1e-5)
    torch.autograd.backward(classifier.differentiable(images.requires_grad_()).sum())
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def test_other_sizes_are_resized(saved: dict[str, tuple[Path, Any]]) -> None:
    classifier = open_huggingface(saved["VideoMAE"][0], input_shape=(4, 3, 20, 24), batch_size=2)
    assert classifier.preprocessing.resize == (16, 16)
    assert classifier.predict(torch.rand(3, 4, 3, 20, 24)).shape == (3,)
    for shape in ((3, 16, 16), (8, 3, 16, 16), (4, 1, 16, 16)):
        with pytest.raises(ModelError, match=r"takes inputs \(4, 3, 16, 16\) or of another height and width"):
            open_huggingface(saved["VideoMAE"][0], input_shape=shape)


def test_what_the_caller_says_is_heeded(saved: dict[str, tuple[Path, Any]]) -> None:
    folder, model = saved["ViT"]
    mine = open_classifier(folder, preprocessing=Preprocessing(scale=2.0, mean=(1.0,)), outputs="log-probabilities")
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        expected = model(pixel_values=2 * images - 1).logits
    assert torch.allclose(mine.scores(images), expected, atol=1e-5)
    assert torch.equal(mine.log_probs(images), mine.scores(images))  # as declared
    other = open_classifier(folder, preprocessing=Preprocessing(mean=(0.5,)), input_shape=(3, 8, 8), num_classes=3)
    assert (other.preprocessing.resize, other.preprocessing.mean) == ((16, 16), (0.5,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lenet"}, "names its own architecture: give none"),
        ({"num_classes": 4}, "answers with 3 classes, but 4 were given"),
        (
            {"preprocessing": Preprocessing(resize=(8, 8))},
            r"takes \(3, 16, 16\), but the preprocessing makes \(3, 8, 8",
        ),
        ({"preprocessing": Preprocessing(layout="NHWC")}, r"but the preprocessing makes \(16, 16, 3\)"),
    ],
)
def test_what_contradicts_the_folder_is_refused(
    saved: dict[str, tuple[Path, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        open_classifier(saved["ViT"][0], **options)
    assert "\n" not in str(caught.value)


def test_the_digest_is_that_of_configuration_processor_and_weights(
    saved: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    folder = tmp_path / "copy"
    shutil.copytree(saved["ViT"][0], folder)
    listing = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)  # what sha256sum writes
    first = open_classifier(folder).sha256
    assert first == hashlib.sha256(listing.encode()).hexdigest()
    (folder / "README.md").write_text("not opened")
    assert open_classifier(folder).sha256 == first
    digests: set[str | None] = {first}
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        digests.add(open_classifier(folder).sha256)
    (folder / "preprocessor_config.json").unlink()
    digests.add(open_classifier(folder).sha256)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(saved["ViT"][1].state_dict(), "part.safetensors")}
    for text in (json.dumps(index), json.dumps(index, indent=1)):
        (folder / "model.safetensors.index.json").write_text(text)
        digests.add(open_classifier(folder).sha256)
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("processor", "scale", "mean", "std"),
    [
        ({"do_normalize": False}, 1.0, (0.0,), (1.0,)),
        ({"rescale_factor": 1 / 255, "image_mean": 0.5, "image_std": 0.25}, 1.0, (0.5,), (0.25,)),
        ({"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]}, 255.0, (1, 2, 3), (4, 5, 6)),
        # ViViT: first to [-1, 1], then normalised once more
        ({"rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.5], "image_std": [0.5]}, 2.0, (1.5,), (0.5,)),
        ({"image_processor_type": "VivitImageProcessor", "image_mean": 0.5, "image_std": 0.5}, 2.0, (1.5,), (0.5,)),
        ({"rescale_offset": True, "rescale_factor": 1 / 127.5}, 2.0, (1.0,), (1.0,)),
        ({"include_top": True, "image_mean": 0.5, "image_std": [0.5, 0.25, 2]}, 1.0, (0.5,), (0.25, 0.0625, 4)),
        ({"include_top": True, "do_normalize": False, "image_std": 0.5}, 1.0, (0.0,), (0.5,)),
        ({"image_processor_type": "EfficientNetImageProcessorFast", "image_std": 0.5}, 1.0, (0.0,), (0.25,)),
        ({"image_processor_type": "MobileViTImageProcessor", "image_mean": 0.5}, 1.0, (0.0,), (1.0,)),
        # null is what transformers takes for unsaid
        ({"do_normalize": None, "rescale_factor": None, "image_mean": 0.5, "image_std": None}, 1.0, (0.5,), (1.0,)),
        ({"do_resize": True, "do_center_crop": True, "do_convert_rgb": True, "do_grayscale": False}, 1.0, (0,), (1,)),
    ],
)
def test_the_processors_arithmetic(
    tmp_path: Path, processor: dict[str, Any], scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    save(tmp_path, processor=processor)
    found = open_huggingface(tmp_path).preprocessing
    assert found.scale == pytest.approx(scale)
    assert (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize(
    ("processor", "order"),
    [
        ({}, "rgb"),
        ({"do_flip_channel_order": True}, "bgr"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "bgr"),
        ({"feature_extractor_type": "MobileViTFeatureExtractor", "do_flip_channel_order": False}, "rgb"),
    ],
)
def test_the_processors_channel_order(tmp_path: Path, processor: dict[str, Any], order: str) -> None:
    save(tmp_path, processor=processor)
    assert open_huggingface(tmp_path).preprocessing.channel_order == order


@pytest.mark.parametrize(
    ("kind", "settings"), [
        ("MobileViT", {}), ("MobileViT", {"do_flip_channel_order": False}), ("EfficientNet", {}),
        ("EfficientNet", {"include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5}), ("ViT", {}),
    ]
)  # fmt: skip
def test_images_are_prepared_as_by_the_processor_itself(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    made = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
    processor = made(do_resize=False, do_center_crop=False, **settings)
    save(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.as_tensor(processor(pixels.permute(1, 2, 0).numpy(), return_tensors="np")["pixel_values"])
    assert torch.allclose(open_huggingface(tmp_path).preprocessing.apply(pixels[None] / 255), expected, atol=1e-5)


def rewrite(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


def replace_weights(name: str, content: bytes = b"\x80\x04.") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        if name:
            (folder / name).write_bytes(content)

    return change


def index(shard: str) -> Callable[[Path], None]:
    return replace_weights("model.safetensors.index.json", json.dumps({"weight_map": {"x": shard}}).encode())


BAD: dict[str, tuple[Callable[[Path], Any], type[IntaglioError], str]] = {
    "pickled": (replace_weights("pytorch_model.bin"), UnsafeFileError, r"holds pytorch_model\.bin, which may execute"),
    "no weights": (replace_weights(""), ModelError, "no model.safetensors in it"),
    "own code": (rewrite("config.json", auto_map={"AutoConfig": "evil.Config"}), UnsafeFileError, "code of its own"),
    "index outside": (index("../other.safetensors"), UnsafeFileError, "which is no safetensors file in this folder"),
    "index pickled": (index("model.bin"), UnsafeFileError, "which is no safetensors file in this folder"),
    "missing shard": (index("a.safetensors"), ModelError, "not a safetensors file"),
    "quantised": (rewrite("config.json", quantization_config={"bits": 4}), ModelError, "quantised weights"),
    "truncated": (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), ModelError, "truncated"),
    "no config": (lambda folder: (folder / "config.json").unlink(), ModelError, r"config\.json: can't be read"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), ModelError, "not JSON"),
    "config list": (lambda folder: (folder / "config.json").write_text("[]"), ModelError, "expected an object"),
    "model type": (rewrite("config.json", model_type="no-such"), ModelError, "can't be opened as a Hugging Face"),
    "huge": (rewrite("config.json", hidden_size=2**20), ModelError, "but its files hold"),
    "type of an entry": (rewrite("config.json", hidden_size="wide"), ModelError, "can't be opened as a Hugging Face"),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), ModelError, "holds an adapter"),
    "processor": (rewrite("preprocessor_config.json", rescale_factor="x"), ModelError, "rescale_factor"),
    "other weights": (
        rewrite("config.json", transformers_weights="adapter_model.bin"),
        UnsafeFileError,
        r"names other weights \(transformers_weights\)",
    ),
    "unknown flag": (rewrite("preprocessor_config.json", do_grayscale=True), ModelError, "'do_grayscale' isn't"),
    "patches": (
        rewrite("preprocessor_config.json", image_processor_type="Siglip2ImageProcessor"),
        ModelError,
        "cuts images into patches by itself",
    ),
    "std": (rewrite("preprocessor_config.json", image_std=[0, 0, 0]), ModelError, "std must be above 0"),
    "mean": (rewrite("preprocessor_config.json", image_mean=float("nan")), ModelError, "mean.0: .* finite number"),
    "factor": (rewrite("preprocessor_config.json", rescale_factor=float("inf")), ModelError, "scale: .* finite number"),
    "std squared": (
        rewrite("preprocessor_config.json", image_std=1e200, include_top=True),
        ModelError,
        "std.0: .*finite",
    ),
    "no patches": (rewrite("config.json", patch_size=0), ModelError, "can't be opened as a Hugging Face"),
    "no heads": (rewrite("config.json", num_attention_heads=0), ModelError, "can't be opened as a Hugging Face"),
    "nothing hidden": (rewrite("config.json", hidden_size=0), ModelError, "can't be opened as a Hugging Face"),
    "labels": (rewrite("config.json", id2label=None, num_labels=3_000_000), ModelError, "more than 100000 in 'num_l"),
    "names": (rewrite("config.json", id2label=dict.fromkeys(map(str, range(100_001)), "a")), ModelError, "'id2label'"),
    "layers": (rewrite("config.json", num_hidden_layers=1001), ModelError, "more than 1000 in 'num_hidden_layers'"),
    "layers of a part": (rewrite("config.json", vision_config={"depths": [2, 9999]}), ModelError, "1000 in 'depths'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    change, error, message = BAD[case]
    save(tmp_path)
    change(tmp_path)
    with pytest.raises(error, match=message) as caught:
        open_huggingface(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_preprocessing_takes_the_place_of_a_processor_that_is_not_understood(tmp_path: Path) -> None:
    save(tmp_path, processor={"do_grayscale": True})
    assert open_huggingface(tmp_path, preprocessing=Preprocessing(scale=2.0)).preprocessing.scale == 2.0


def test_a_head_that_was_never_trained(tmp_path: Path) -> None:
    """Transformers itself would make the missing weights up."""
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["unused"] = tensors.pop("classifier.weight").clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, first 'classifier\.weight'"):
        open_huggingface(tmp_path)


def test_without_transformers(saved: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'intaglio\[hf\]'"):
        open_huggingface(saved["ViT"][0])


def test_a_size_from_the_processor_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="doesn't say how large its images are"):
        open_huggingface(tmp_path)
    assert open_huggingface(tmp_path, input_shape=(3, 20, 28)).preprocessing.resize is None
    for size, sides in ({"size": {"shortest_edge": 20}}, (20, 20)), (
        {"size": 40, "crop_size": {"height": 24, "width": 32}}, (24, 32)), ({"size": 24}, (24, 24)):  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
        assert open_huggingface(tmp_path).input_shape == (3, *sides)
