"""Model files: each format opens to the same scores; damaged ones are refused in one line, hostile ones unexecuted."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from classifier_models import (
    ARCHITECTURE,
    CLASSES,
    SHAPE,
    lenet,
    noise,
    save_exported,
)
from intaglio.classifiers import (
    Classifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    export_onnx,
    open_classifier,
    save_classifier,
)
from intaglio.errors import ModelError
from intaglio.files import sha256_file
from intaglio.networks import Architecture

torch.set_num_threads(1)

SIDECAR = Sidecar(architecture=ARCHITECTURE, task="toys", classes=tuple("abcde"))
MEMBER = "models/model.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in every format."""
    folder = tmp_path_factory.mktemp("models")
    save_classifier(lenet(), folder / "net.safetensors", SIDECAR)
    torch.save(lenet().state_dict(), folder / "net.pt")
    parallel = {f"module.{key}": value for key, value in lenet().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": parallel}, folder / "net.pth")
    torch.save(lenet().state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "legacy.intaglio.json").write_bytes((folder / "net.intaglio.json").read_bytes())
    save_exported(folder / "net.pt2")
    save_exported(folder / "fixed.pt2", batch=3)
    export_onnx(lenet(), folder / "net.onnx", input_shape=SHAPE, sidecar=SIDECAR)
    return folder


@pytest.mark.parametrize(
    ("file", "format"),
    [("net.safetensors", "safetensors"), ("net.pt", "state-dict"), ("net.pth", "state-dict"),
     ("legacy.pt", "state-dict"), ("net.pt2", "pt2"), ("fixed.pt2", "pt2"), ("net.onnx", "onnx")],
)  # fmt: skip
def test_every_format_opens_to_the_same_scores(models: Path, file: str, format: str) -> None:
    images = noise(8)
    with torch.no_grad():
        expected = lenet()(images)
    state = torch.random.get_rng_state()
    classifier = open_classifier(models / file)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(classifier.scores(images), expected, atol=1e-5, rtol=0)
    assert (classifier.format, classifier.input_shape, classifier.num_classes) == (format, SHAPE, CLASSES)
    assert (classifier.source, classifier.queries) == (str(models / file), 8)
    assert classifier.sha256 == sha256_file(models / file)
    if file.startswith("net."):
        assert (classifier.task, classifier.classes) == ("toys", tuple("abcde"))


def test_a_sidecar_of_the_folder_serves_files_without_their_own(models: Path, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes((models / "net.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"holds weights only: give the architecture, or write a side-car other\."):
        open_classifier(tmp_path / "other.safetensors")
    (tmp_path / "intaglio.json").write_bytes((models / "net.intaglio.json").read_bytes())
    assert open_classifier(tmp_path / "other.safetensors").task == "toys"


def test_what_is_given_goes_before_the_sidecar(models: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((models / "net.safetensors").read_bytes())
    sidecar = SIDECAR.model_copy(update={"preprocessing": Preprocessing(mean=(0.5,)), "outputs": "logits"})
    (tmp_path / "m.intaglio.json").write_text(sidecar.model_dump_json())
    images = noise(3)
    mine = open_classifier(tmp_path / "m.safetensors", preprocessing=Preprocessing(), task="mine")
    torch.testing.assert_close(mine.scores(images), lenet()(images))
    assert mine.task == "mine"
    torch.testing.assert_close(open_classifier(tmp_path / "m.safetensors").scores(images), lenet()(images - 0.5))


def test_an_architecture_may_be_given_by_name_or_in_full(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    narrow = Architecture(name="lenet", input_shape=SHAPE, num_classes=CLASSES)
    save_file(narrow.build().state_dict(), path)
    assert open_classifier(path, architecture=narrow).num_classes == CLASSES
    with pytest.raises(ModelError, match=f"has {CLASSES} classes, but {CLASSES + 1} were given"):
        open_classifier(path, architecture=narrow, num_classes=CLASSES + 1)
    assert open_classifier(path, architecture="lenet", input_shape=SHAPE, num_classes=CLASSES).input_shape == SHAPE
    with pytest.raises(ModelError, match="doesn't say its input_shape"):
        open_classifier(path, architecture="lenet")
    with pytest.raises(ModelError, match="unknown architecture 'nonet'; known are lenet"):
        open_classifier(path, architecture="nonet", input_shape=SHAPE, num_classes=CLASSES)


def factory() -> nn.Module:
    return lenet()


def finished() -> Classifier:
    return TorchClassifier(lenet(), input_shape=SHAPE, num_classes=CLASSES, preprocessing=Preprocessing(mean=(0.5,)))


def wrong_factory() -> int:
    return 3


def test_modules_functions_classifiers_and_factories(models: Path) -> None:
    images = noise(4)
    shapes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES}
    module = lenet()
    opened: Classifier = open_classifier(module, **shapes)
    assert isinstance(opened, TorchClassifier)
    assert opened.module is module
    assert open_classifier(opened) is opened
    made = open_classifier(f"{__name__}:factory", **shapes)
    for other in (made, open_classifier(lambda x: module(x).detach(), **shapes)):
        torch.testing.assert_close(other.scores(images), opened.scores(images))
    with pytest.raises(ModelError, match="doesn't say its num_classes"):
        open_classifier(module, input_shape=SHAPE)
    with pytest.raises(ModelError, match="expected the factory to return a module or a classifier, got int"):
        open_classifier(f"{__name__}:wrong_factory")
    with pytest.raises(ModelError, match="no_such_package:f: can't be imported"):
        open_classifier("no_such_package:f")
    with pytest.raises(ModelError, match="can't open a int"):
        open_classifier(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("factory", {"architecture": "lenet"}, "makes its own network: give no architecture"),
        ("finished", {"architecture": "lenet"}, "makes its own network: give no architecture"),
        ("finished", {"preprocessing": Preprocessing(mean=(0.4,))}, "with its own preprocessing: give none"),
        ("finished", {"input_shape": (1, 9, 9)}, "with its own input_shape: give none"),
        ("finished", {"num_classes": CLASSES + 1}, "with its own num_classes: give none"),
        ("finished", {"outputs": "probabilities"}, "answers logits, not probabilities"),
    ],
)
def test_what_a_factory_would_ignore_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    shapes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES}
    with pytest.raises(ModelError, match=message) as caught:
        open_classifier(f"{__name__}:{name}", **(shapes | options))
    assert "\n" not in str(caught.value)


def test_a_factory_may_be_told_what_its_classifier_says_too() -> None:
    said: dict[str, Any] = {"input_shape": list(SHAPE), "num_classes": CLASSES, "outputs": "logits"}
    opened = open_classifier(f"{__name__}:finished", preprocessing=Preprocessing(mean=(0.5,)), **said)
    assert (opened.preprocessing, opened.queries) == (Preprocessing(mean=(0.5,)), 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.onnx", None, r"no such file: .*absent\.onnx"),
        ("a.txt", b"x", r"unknown format '\.txt'; accepted are \.onnx, \.safetensors, \.pt2, \.pt, \.pth"),
        ("plain", b"x", "unknown format ''"),
        *[(f"empty{suffix}", b"", "is empty") for suffix in (".onnx", ".safetensors", ".pt2", ".pt", ".pth")],
        *[(f"noise{suffix}", b"not a model" * 99, "or truncated") for suffix in (".onnx", ".pt2", ".pt")],
        ("m.pkl", b"x", "may hold pickled objects"),
        ("m.joblib", b"x", "may hold pickled objects"),
        ("m.h5", b"x", "Keras"),
        ("m.keras", b"x", "Keras"),
        ("m.tflite", b"x", "isn't supported"),
        ("m.safetensors", b"\xff" * 64, "or truncated"),
        ("huge.safetensors", b"\xff" * 7 + b"\x7f" + b"{}", "or truncated"),
    ],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_classifier(tmp_path / name, architecture=ARCHITECTURE)
    assert "\n" not in str(caught.value)


def test_folders_are_not_supported_yet(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder, but not a Hugging Face model \(no config\.json\)"):
        open_classifier(tmp_path)


@pytest.mark.parametrize("file", ["net.onnx", "net.safetensors", "net.pt", "legacy.pt", "net.pt2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_files_are_refused(models: Path, tmp_path: Path, file: str, share: float) -> None:
    content = (models / file).read_bytes()
    path = tmp_path / file
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=str(path)) as caught:
        open_classifier(path, architecture=ARCHITECTURE)
    assert "\n" not in str(caught.value)


# --- weights and side-cars -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.bias"), "for lenet, tensor 'fc.bias' is missing"),
        (lambda t: t.update(zz=torch.ones(1), aa=torch.ones(1)), r"tensor 'aa' is too many \(and 1 more\)"),
        (lambda t: t.update({"fc.bias": torch.ones(6)}), r"tensor 'fc.bias' must be \[5\], got \[6\]"),
        (lambda t: t.update({"fc.bias": torch.full((5,), math.inf)}), "5 of .* not finite, first in 'fc.bias'"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_wrong_weights_are_refused(tmp_path: Path, change: Callable[[Any], Any], message: str, suffix: str) -> None:
    tensors = lenet().state_dict()
    change(tensors)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with pytest.raises(Exception, match=message) as caught:
        open_classifier(path, architecture=ARCHITECTURE)
    assert type(caught.value).__name__ in {"ModelError", "ClassifierError"}


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: value.half() for key, value in lenet().state_dict().items()}, path)
    images = noise(4)
    opened = open_classifier(path, architecture=ARCHITECTURE)
    torch.testing.assert_close(opened.scores(images), lenet()(images), atol=2e-3, rtol=0)


def test_an_enormous_architecture_is_refused_without_allocating_it(models: Path) -> None:
    enormous = ARCHITECTURE.model_copy(update={"width": 10**6})
    with pytest.raises(ModelError, match=r"tensor 'f.*' must be \["):
        open_classifier(models / "net.safetensors", architecture=enormous)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"zoom": 1}', "zoom: Extra inputs"),
        ('{"architecture": {"name": 3}}', r"architecture\.name: Input should be a valid string"),
        ('{"preprocessing": {"std": [0]}}', "preprocessing: Value error, std must be above 0"),
        ('{"num_classes": 1}', "num_classes: Input should be greater"),
        ('{"input_shape": [3, 4]}', "input_shape"),
        (" " * (1 << 20) + "{}", "larger than"),
        ('{"architecture": {"name": "eval", "input_shape": [1, 12, 12], "num_classes": 5}}', "unknown architecture"),
    ],
)
def test_bad_sidecars_are_refused_in_one_line(models: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.safetensors").write_bytes((models / "net.safetensors").read_bytes())
    (tmp_path / "m.intaglio.json").write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_classifier(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        net = lenet()
        self.features, self.hidden, self.fc = net.features, net.hidden, nn.Linear(32, CLASSES)
        weight, bias = net.get_parameter("fc.weight"), net.get_parameter("fc.bias")
        self.fc.weight, self.fc.bias = nn.Parameter(weight.detach().t().contiguous().t()), bias


def test_saving_takes_any_memory_order_and_refuses_what_could_not_be_opened(tmp_path: Path) -> None:
    module = Tied()
    assert not module.fc.weight.is_contiguous()
    save_classifier(module, tmp_path / "tied.safetensors", SIDECAR)
    assert torch.equal(load_file(tmp_path / "tied.safetensors")["fc.weight"], lenet().state_dict()["fc.weight"])
    with pytest.raises(ModelError, match="is missing"):
        save_classifier(nn.Linear(2, 2), tmp_path / "x.safetensors", SIDECAR)
    with pytest.raises(ModelError, match="without an architecture"):
        save_classifier(module, tmp_path / "x.safetensors", Sidecar())
    with pytest.raises(ModelError, match=r"written as \.safetensors"):
        save_classifier(module, tmp_path / "x.pt", SIDECAR)
    assert sorted(os.listdir(tmp_path)) == ["tied.intaglio.json", "tied.safetensors"]
