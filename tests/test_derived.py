"""Copies of an opened model: whose weights can be changed, and what their side-car says."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from classifier_models import ARCHITECTURE, CLASSES, SHAPE, lenet, noise, onnx_linear
from intaglio.classifiers import (
    CallableClassifier,
    Classifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    open_classifier,
    save_classifier,
)
from intaglio.classifiers.derived import architecture_of, sidecar_of, with_weights
from intaglio.errors import ModelError
from intaglio.networks import Architecture

SIDECAR = Sidecar(
    architecture=ARCHITECTURE,
    task="toys",
    classes=tuple("abcde"),
    preprocessing=Preprocessing(mean=(0.3,), std=(0.5,)),
    outputs="logits",
)


@pytest.fixture
def opened(tmp_path: Path) -> Classifier:
    save_classifier(lenet(), tmp_path / "net.safetensors", SIDECAR)
    return open_classifier(tmp_path / "net.safetensors")


def in_memory(**options: object) -> TorchClassifier:
    return TorchClassifier(lenet(), input_shape=SHAPE, num_classes=CLASSES, **options)  # type: ignore[arg-type]


# --- weights ---------------------------------------------------------------------------------------------------------


def test_modules_have_weights(opened: Classifier) -> None:
    assert with_weights(opened) is opened
    classifier = in_memory()
    assert with_weights(classifier) is classifier


def test_functions_and_onnx_files_have_none(tmp_path: Path) -> None:
    onnx.save(onnx_linear(), tmp_path / "net.onnx")
    function = CallableClassifier(lambda x: x, input_shape=SHAPE, num_classes=CLASSES, source="a function")
    for classifier, named in ((open_classifier(tmp_path / "net.onnx"), "onnx"), (function, "callable")):
        message = f"{classifier.source}: the weights of a model opened as {named} can't be changed here; give it as"
        with pytest.raises(ModelError, match=message) as caught:
            with_weights(classifier)
        assert "\n" not in str(caught.value)


# --- architecture ----------------------------------------------------------------------------------------------------


def test_the_side_car_names_the_architecture(opened: Classifier) -> None:
    assert architecture_of(opened) == ARCHITECTURE


def test_what_is_given_comes_first(opened: Classifier) -> None:
    wider = Architecture(name="lenet", input_shape=SHAPE, num_classes=CLASSES, width=9)
    assert architecture_of(opened, wider) is wider
    assert architecture_of(opened, "vgg") == Architecture(name="vgg", input_shape=SHAPE, num_classes=CLASSES)
    assert architecture_of(in_memory(), "lenet") == Architecture(name="lenet", input_shape=SHAPE, num_classes=CLASSES)


def bare(folder: Path) -> Classifier:
    """Weights whose architecture was told when they were opened, and is written nowhere."""
    torch.save(lenet().state_dict(), folder / "net.pt")
    return open_classifier(folder / "net.pt", architecture=ARCHITECTURE)


def half_told(folder: Path) -> Classifier:
    (folder / "intaglio.json").write_text('{"task": "toys"}')
    return bare(folder)


@pytest.mark.parametrize("make", [bare, half_told, lambda folder: in_memory(), lambda folder: in_memory(source="a:b")])
def test_no_copy_without_an_architecture(make: Callable[[Path], Classifier], tmp_path: Path) -> None:
    classifier = make(tmp_path)
    with pytest.raises(ModelError, match="could not be opened again without the name of its architecture") as caught:
        architecture_of(classifier)
    assert str(caught.value).startswith(f"{classifier.source}: ")


# --- side-cars -------------------------------------------------------------------------------------------------------


def test_a_copy_opens_as_the_original_did(opened: Classifier, tmp_path: Path) -> None:
    changed = lenet(seed=1)
    sidecar = sidecar_of(opened, architecture_of(opened))
    assert sidecar == SIDECAR.model_copy(update={"input_shape": SHAPE, "num_classes": CLASSES})
    save_classifier(changed, tmp_path / "copy.safetensors", sidecar)
    copy = open_classifier(tmp_path / "copy.safetensors")
    for name in ("input_shape", "num_classes", "classes", "task", "preprocessing", "outputs"):
        assert getattr(copy, name) == getattr(opened, name), name
    with torch.no_grad():
        expected = changed(SIDECAR.preprocessing.apply(noise(5)))
    torch.testing.assert_close(copy.scores(noise(5)), expected, atol=1e-5, rtol=0)


def test_outputs_are_recognised_or_given() -> None:
    classifier = in_memory(outputs="auto")
    assert sidecar_of(classifier, ARCHITECTURE).outputs == "logits"
    assert sidecar_of(classifier, ARCHITECTURE, "probabilities").outputs == "probabilities"
    assert sidecar_of(classifier, None).architecture is None


def test_videos_keep_their_frames() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4 * 5, 3))
    video = TorchClassifier(module, input_shape=(2, 3, 4, 5), num_classes=3)
    sidecar = sidecar_of(video, None)
    assert sidecar.input_shape == (2, 3, 4, 5)
    assert Sidecar.model_validate_json(sidecar.model_dump_json()) == sidecar
