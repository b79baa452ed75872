"""`intaglio tamper`, and what it is made of: tamperings by name, options as text, one file in and one out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classifier_models import save_exported
from intaglio.attacks import accuracy
from intaglio.classifiers import (
    CallableClassifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    open_classifier,
    save_classifier,
)
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, IntaglioError, ModelError, RecipeError, StorageError
from intaglio.files import sha256_file
from intaglio.networks import Architecture
from intaglio.tampering import TAMPERINGS, Distil, FineTune, Noise, Prune, Tampered, tamper_file
from intaglio.tampering.options import catalogue, make_tampering, options_of
from intaglio.training import TrainingSettings, train
from scan_models import MODELS

SHAPE = (1, 12, 12)
ARCHITECTURE = Architecture(name="resnet8", input_shape=SHAPE, num_classes=3, width=4)


@pytest.fixture(scope="module")
def victim(toy: ImageData) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train(ARCHITECTURE.build(), toy, TrainingSettings(epochs=4, batch_size=16, learning_rate=0.01), seed=0)


def triggers(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)), torch.arange(count) % 3


def state(module: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


def flat(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in module.parameters()])


# --- by name ---------------------------------------------------------------------------------------------------------

TEXTS: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("fine-tune", {"layers": "last", "steps": "5", "learning_rate": "1e-5"}, {"layers": "last"}),
    ("fine-tune", {"steps": "none", "freeze_batchnorm": "true"}, {}),
    ("prune", {"share": "0.25", "scope": "layer"}, {"share": 0.25, "scope": "layer"}),
    ("quantise", {"bits": "5"}, {"bits": 5, "number": "integer"}),
    ("quantise", {"bits": "none", "number": "bf16", "activations": "true"}, {"number": "bf16", "activations": True}),
    ("noise", {"sigma": "5e-4"}, {"sigma": 5e-4}),
    ("bit-flip", {"position": "31", "layer": "fc"}, {"position": 31, "layer": "fc"}),
    ("bit-flip", {"layer": "none"}, {"layer": None}),
    ("distil", {"student": "vgg", "width": "4"}, {"student": "vgg", "width": 4}),
    ("poison", {"trigger": "blended", "rate": "0.1"}, {"trigger": "blended", "rate": 0.1}),
]


@pytest.mark.parametrize(("name", "texts", "expected"), TEXTS)
def test_options_as_text(name: str, texts: dict[str, str], expected: dict[str, Any]) -> None:
    tampering = make_tampering(name, texts)
    assert type(tampering) is TAMPERINGS[name]
    assert {key: getattr(tampering, key) for key in expected} == expected
    training = getattr(tampering, "training", TrainingSettings())
    if "learning_rate" in texts:
        assert (training.steps, training.learning_rate) == (5, 1e-5)
    if "freeze_batchnorm" in texts:
        assert (training.steps, training.freeze_batchnorm) == (None, True)


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("melt", {}, "unknown tampering 'melt'; known are fine-tune, prune, fine-prune, quantise"),
        ("prune", {"shares": "1"}, "prune has no option 'shares'; it has share, scope"),
        ("prune", {"share": "much"}, "option share must be a number, got 'much'"),
        ("prune", {"share": "7"}, r"prune: the share to prune lies in \[0, 1\]"),
        ("prune", {"scope": "both"}, "option scope must be global or layer, got 'both'"),
        ("quantise", {"bits": "eight"}, "option bits must be a whole number or none, got 'eight'"),
        ("fine-tune", {"freeze_batchnorm": "maybe"}, "must be true or false, got 'maybe'"),
        ("fine-tune", {"optimizer": "lion"}, "must be adam, adamw or sgd, got 'lion'"),
        ("overwrite", {"triggers": "x"}, "overwrite has no option 'triggers'; it has share, epochs"),
        ("distil", {"student": "none", "width": "2"}, "a width of 1 or more goes with"),
    ],
)
def test_options_that_are_none(name: str, texts: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_tampering(name, texts)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_every_option_is_documented_and_takes_its_default(name: str) -> None:
    options = options_of(TAMPERINGS[name])
    assert all(option.doc and option.choices for option in options.values())
    texts = {key: option.shown_default for key, option in options.items()}
    objects = {"triggers": triggers()} if name == "overwrite" else {}
    assert make_tampering(name, texts, **objects).describe() == make_tampering(name, {}, **objects).describe()


def test_the_catalogue_names_everything() -> None:
    text = "\n".join(catalogue())
    for name, tampering in TAMPERINGS.items():
        assert f"{name} (needs data): " in text if tampering.needs_data else f"{name}: " in text
        assert all(option in text for option in options_of(tampering))


# --- from file to file -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(path: Path) -> TorchClassifier:
    classifier = open_classifier(path)
    assert isinstance(classifier, TorchClassifier)
    return classifier


@pytest.fixture
def path(victim: nn.Module, tmp_path: Path) -> Path:
    """A model with all that a side-car can say."""
    path = tmp_path / "victim.safetensors"
    way = Preprocessing(mean=(0.1,), std=(0.9,))
    sidecar = Sidecar(architecture=ARCHITECTURE, task="bands", preprocessing=way, classes=("a", "b", "c"))
    save_classifier(victim, path, sidecar)
    return path


def test_a_tampered_file_opens_as_the_original_did(opened: TorchClassifier, tmp_path: Path, toy: ImageData) -> None:
    before = sha256_file(opened.source)
    out = tmp_path / "new" / "tampered.safetensors"
    result = tamper_file(Prune(share=0.2, scope="layer"), opened, out, data=toy, seed=3)
    assert sha256_file(opened.source) == before == result.source_sha256
    again = open_classifier(out)
    assert isinstance(again, TorchClassifier)
    assert state(again.module) == state(Prune(share=0.2, scope="layer").apply(opened.module))
    for name in ("input_shape", "num_classes", "classes", "task", "preprocessing", "outputs"):
        assert getattr(again, name) == getattr(opened, name)
    assert result == Tampered.from_json(result.to_json())
    assert result.options == {"share": 0.2, "scope": "layer"}
    assert (result.tampering, result.output, result.sha256) == ("prune", "tampered.safetensors", sha256_file(out))
    changed = (flat(again.module) != flat(opened.module)).double().mean()
    assert result.changed == pytest.approx(float(changed))
    assert 0.15 < float(changed) < 0.2
    size = (flat(again.module) - flat(opened.module)).norm() / flat(opened.module).norm()
    assert result.distance == pytest.approx(float(size), rel=1e-4)
    agreement = (again.predict(toy.images) == opened.predict(toy.images)).float().mean()
    assert result.agreement == pytest.approx(float(agreement))
    assert result.accuracy_before == pytest.approx(accuracy(opened.predict, toy))
    assert result.accuracy_after == pytest.approx(accuracy(again.predict, toy))


def test_extraction_into_another_architecture(opened: TorchClassifier, tmp_path: Path, toy: ImageData) -> None:
    unlabelled = ImageData(toy.images, torch.full_like(toy.labels, -1))
    out = tmp_path / "copy.safetensors"
    result = tamper_file(Distil(student="lenet", width=2, epochs=1), opened, out, data=unlabelled)
    again = open_classifier(out)
    assert isinstance(again, TorchClassifier)
    assert type(again.module).__name__ == "LeNet"
    assert (result.changed, result.distance, result.accuracy_before, result.accuracy_after) == (None,) * 4
    assert result.agreement is not None
    assert again.outputs == "logits"
    assert again.preprocessing == opened.preprocessing


def test_the_result_is_the_same_bytes_every_time(opened: TorchClassifier, tmp_path: Path, toy: ImageData) -> None:
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        tamper_file(FineTune(steps=2), opened, path, data=toy, seed=seed)
    digests = [sha256_file(path) for path in paths]
    assert digests[0] == digests[1] != digests[2]


def test_a_module_with_a_named_architecture(victim: nn.Module, tmp_path: Path) -> None:
    classifier = TorchClassifier(victim, input_shape=SHAPE, num_classes=3)
    out = tmp_path / "out.safetensors"
    result = tamper_file(Noise(sigma=1e-6), classifier, out, architecture=ARCHITECTURE)
    assert (result.changed or 0) > 0.5
    assert (result.agreement, result.data, result.source_sha256) == (None, None, None)
    with pytest.raises(ModelError, match=r"for resnet8, tensor 'conv1.weight' must be \[8, 1, 3, 3\]"):
        tamper_file(Noise(), classifier, out, architecture="resnet8")


def test_files_that_can_not_be_made(opened: TorchClassifier, tmp_path: Path, toy: ImageData) -> None:
    out = tmp_path / "out.safetensors"
    function = CallableClassifier(lambda images: images.flatten(1)[:, :3], input_shape=SHAPE, num_classes=3)
    small = ImageData(torch.rand(2, 1, 9, 9), torch.tensor([0, 1]), name="small")
    bare = TorchClassifier(opened.module, input_shape=SHAPE, num_classes=3)
    cases: list[tuple[type[IntaglioError], str, Callable[[], Any]]] = [
        (ModelError, "written as .safetensors", lambda: tamper_file(Noise(), opened, tmp_path / "out.pt")),
        (ModelError, "opened as callable can't be changed here", lambda: tamper_file(Noise(), function, out)),
        (ModelError, "without the name of its architecture", lambda: tamper_file(Noise(), bare, out)),
        (DataError, r"small: images are \(1, 9, 9\), but", lambda: tamper_file(FineTune(), opened, out, data=small)),
        (
            ModelError,
            "unknown architecture 'alexnet'",
            lambda: tamper_file(Noise(), bare, out, architecture="alexnet"),
        ),
        (
            StorageError,
            "can't write",
            lambda: tamper_file(Noise(), opened, Path(opened.source) / "out.safetensors"),
        ),
        (
            ClassifierError,
            "out.safetensors: scores of 4 of 4 images are not finite",
            lambda: tamper_file(Noise(sigma=1e38), opened, out, data=toy),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", "."))] == []


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("fine-tune", "--option", "steps=2", "--option", "freeze-batchnorm=true", "--data"),
        ("prune", "--option", "share=0.5"),
        ("fine-prune", "--option", "steps=1", "--data"),
        ("quantise", "--option", "bits=5"),
        ("noise", "--option", "sigma=1e-4"),
        ("weight-shift", "--option", "shift=0.1"),
        ("bit-flip", "--option", "layer=fc", "--option", "position=31"),
        ("distil", "--option", "student=lenet", "--option", "width=2", "--option", "epochs=1", "--data"),
        ("average", "--option", "steps=1", "--data"),
        ("overwrite", "--option", "steps=2", "--triggers"),
        ("poison", "--option", "steps=1", "--option", "rate=0.2", "--data"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_name(
    arguments: tuple[str, ...], path: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    last = [str(toy_file)] if arguments[-1] in ("--data", "--triggers") else []
    name, *options = [*arguments, *last]
    assert (
        main(["tamper", name, str(path), "--out", str(out), *options, "--json", "-", "--seed", "7"]) == ExitCode.CLEAN
    )
    printed = capsys.readouterr()
    result = Tampered.from_json(printed.out)
    assert (result.tampering, result.seed, result.source) == (name, 7, str(path))
    assert result.sha256 == sha256_file(out) != result.source_sha256
    assert printed.err.startswith(f"{out}: {name}: ")
    opened, classifier = open_classifier(path), open_classifier(out)
    assert isinstance(classifier, TorchClassifier)
    assert (classifier.task, classifier.classes) == ("bands", ("a", "b", "c"))
    assert classifier.preprocessing == opened.preprocessing


def test_what_is_printed(path: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, told = tmp_path / "out.safetensors", tmp_path / "new" / "told.json"
    command = ["tamper", "prune", str(path), "--out", str(out)]
    assert main([*command, "--data", str(toy_file), "--json", str(told)]) == ExitCode.CLEAN
    printed = capsys.readouterr()
    assert "of the weights changed, by " in printed.out
    assert "of the images are answered as before; accuracy on them " in printed.out
    result = Tampered.from_json(told.read_text())
    assert result.data == str(toy_file)
    assert (result.accuracy_before or 0) > 0.8
    main([*command, "--quiet"])
    assert capsys.readouterr() == ("", "")


def test_the_list_needs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tamper", "--list"]) == ExitCode.CLEAN
    printed = capsys.readouterr().out
    assert printed.splitlines() == list(catalogue())


def test_a_state_dict_with_its_architecture_named(tmp_path: Path) -> None:
    named = Architecture(name="lenet", input_shape=SHAPE, num_classes=3)
    torch.manual_seed(1)
    weights = tmp_path / "weights.pt"
    torch.save(named.build().state_dict(), weights)
    out = tmp_path / "out.safetensors"
    command = ["tamper", "quantise", str(weights), "--out", str(out), "--arch", "lenet", "--input-shape", "1,12,12"]
    assert main([*command, "--classes", "3", "--preprocess", '{"mean": [0.5]}', "-q"]) == ExitCode.CLEAN
    classifier = open_classifier(out)
    assert classifier.preprocessing == Preprocessing(mean=(0.5,))
    assert classifier.input_shape == SHAPE


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("melt",), ExitCode.USAGE, "unknown tampering 'melt'; known are fine-tune, prune"),
        (("prune", "--option", "size=2"), ExitCode.USAGE, "prune has no option 'size'; it has share, scope"),
        (("prune", "--option", "share=2"), ExitCode.USAGE, "the share to prune lies in [0, 1], got 2.0"),
        (("prune", "--option", "scope=all"), ExitCode.USAGE, "option scope must be global or layer, got 'all'"),
        (("prune", "--option", "share"), ExitCode.USAGE, "'share' is not of the form KEY=VALUE"),
        (("overwrite",), ExitCode.USAGE, "overwrite, and it alone, takes the images of another mark"),
        (("prune", "--triggers", "fashion-mnist"), ExitCode.USAGE, "overwrite, and it alone"),
        (("fine-tune",), ExitCode.ERROR, "fine-tune works on images: give it data"),
        (("fine-tune", "--data", "nowhere"), ExitCode.ERROR, "no file or folder 'nowhere'"),
        (("fine-tune", "--data", "fashion-mnist"), ExitCode.ERROR, "images are (1, 28, 28), but the model takes"),
        (("overwrite", "--triggers", "nowhere"), ExitCode.ERROR, "no file or folder 'nowhere'"),
        (("noise", "--json", "/proc/none/x.json"), ExitCode.ERROR, "can't write /proc/none/x.json"),
        (("bit-flip", "--option", "layer=head"), ExitCode.ERROR, "no layer 'head' has weights; layers are conv1, bn1"),
    ],
)
def test_usage(
    arguments: tuple[str, ...], code: ExitCode, message: str, path: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name, *options = arguments
    assert main(["tamper", name, str(path), "--out", str(tmp_path / "out.safetensors"), *options]) == code
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert not (tmp_path / "out.safetensors").exists()


def test_models_that_can_not_be_tampered_with(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_exported(tmp_path / "model.pt2")
    out = tmp_path / "out.safetensors"
    for model, target, message in (
        (MODELS / "clean.onnx", out, "opened as onnx can't be changed here; give it as .safetensors"),
        (tmp_path / "model.pt2", out, "could not be opened again without the name of its architecture"),
        (tmp_path / "none.safetensors", out, "no such file"),
        (path, tmp_path / "out.onnx", "tampered models are written as .safetensors"),
    ):
        assert main(["tamper", "noise", str(model), "--out", str(target)]) == ExitCode.ERROR
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
        assert not target.exists()


def test_unlabelled_images_suffice_for_extraction_alone(
    path: Path, toy: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, x_train=toy.images.numpy(), allow_pickle=False)
    out = tmp_path / "out.safetensors"
    command = [str(path), "--out", str(out), "--data", str(images), "--json", "-", "--option", "epochs=1"]
    assert main(["tamper", "distil", *command]) == ExitCode.CLEAN
    told = json.loads(capsys.readouterr().out)
    assert (told["accuracy_before"], told["accuracy_after"]) == (None, None)
    assert 0 <= told["agreement"] <= 1
    assert main(["tamper", "fine-tune", *command]) == ExitCode.ERROR
    assert "images have no label; this tampering needs them all" in capsys.readouterr().err
