"""Seals on video networks: every method, silence on the untouched model, and what is noticed."""

from io import StringIO
from pathlib import Path

import pytest
import torch

import intaglio.evidence.key as key_module
from intaglio.classifiers import CallableClassifier, Sidecar, save_classifier
from intaglio.cli.main import ExitCode, main
from intaglio.networks import Architecture
from intaglio.seal import (
    METHODS,
    Boundary,
    FineGrained,
    SealMethod,
    Sensitive,
    Variance,
    check_seal,
    make_seal,
    sealed_answers,
)
from intaglio.seal.variance import Generator
from intaglio.tampering import FineTune, Noise, Quantise
from protected_clips import CLASSES, OWNER, SHAPE, classifier_of, host, known_network, moving_bars, written

QUICK: dict[str, SealMethod] = {
    "variance": Variance(steps=3, channels=4),
    "ftg": FineGrained(steps=2),
    "sensitive": Sensitive(steps=2),
}


@pytest.fixture(autouse=True)
def _few_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX export takes seconds, and threads of several test processes wait for each other."""
    monkeypatch.setattr("intaglio.seal.executions._exported", lambda classifier: None)
    monkeypatch.setattr("intaglio.seal.executions._other_thread_counts", list)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_seals_clips(name: str) -> None:
    seal = make_seal(classifier_of(host()), OWNER, method=QUICK.get(name, name), data=moving_bars(12, 3), pairs=2)
    images, answers = sealed_answers(seal, OWNER)
    assert seal.record.input_shape == SHAPE
    assert images.shape == (len(answers), 2, *SHAPE)
    assert torch.equal(images * 255, (images * 255).round())
    check = check_seal(classifier_of(host()), seal, OWNER)
    assert (check.intact, check.mismatches, check.queries) == (True, 0, 2 * len(answers))


def test_small_changes_of_a_video_network_are_noticed() -> None:
    seal = make_seal(classifier_of(host()), OWNER, pairs=6)
    step = FineTune(steps=1, optimizer="sgd", learning_rate=1e-4, batch_size=16)
    for change in (step, Quantise(number="fp16"), Quantise(bits=8), Noise(sigma=1e-4)):
        tampered = change.apply(host(), moving_bars(32, 5), seed=0)
        assert not check_seal(classifier_of(tampered), seal, OWNER).intact, change


def test_a_model_that_only_answers_is_sealed_too() -> None:
    asked = classifier_of(host())
    blind = CallableClassifier(asked.scores, input_shape=SHAPE, num_classes=CLASSES, outputs="logits", sha256="ab" * 32)
    seal = make_seal(blind, OWNER, method=Boundary(probes=32), data=moving_bars(12, 3), pairs=4)
    assert check_seal(asked, seal, OWNER).intact


@pytest.mark.parametrize("name", ["r3d18", "cnn_lstm"])
def test_slopes_go_through_every_kind_of_video_network(name: str) -> None:
    shape = (3, 1, 16, 16)
    torch.manual_seed(0)
    module = Architecture(name=name, input_shape=shape, num_classes=CLASSES, width=2).build().eval()
    classifier = classifier_of(module, shape)
    seal = make_seal(classifier, OWNER, method=Sensitive(steps=1), pairs=1)
    assert check_seal(classifier, seal, OWNER).intact


@pytest.mark.parametrize("shape", [(3, 9, 12), (5, 3, 9, 12)])
def test_the_generator_makes_images_and_clips(shape: tuple[int, ...]) -> None:
    made = Generator(shape, latent=8, channels=4)(torch.randn(2, 8)).detach()
    assert made.shape == (2, *shape)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_clips_are_sealed_and_checked_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_module, "_COST", {"n": 4, "r": 8, "p": 1})
    monkeypatch.setattr("sys.stdin", StringIO())
    with known_network():
        given = written(tmp_path)
        model, seal = str(given / "host.safetensors"), str(given / "model.seal")
        secret = ["--key", str(given / "owner.key"), "--passphrase-file", str(given / "passphrase"), "-q"]
        made = ["seal", "make", model, "--data", str(given / "clips.npz"), "--pairs", "2", "--out", seal]
        assert main([*made, *secret]) == ExitCode.CLEAN
        assert main(["seal", "check", model, "--seal", seal, *secret]) == ExitCode.CLEAN
        sidecar = Sidecar(architecture=Architecture(name="flat", input_shape=SHAPE, num_classes=CLASSES, width=48))
        tampered = given / "tampered.safetensors"
        save_classifier(Noise(sigma=1e-3).apply(host()), tampered, sidecar)
        assert main(["seal", "check", str(tampered), "--seal", seal, *secret]) == ExitCode.FOUND
