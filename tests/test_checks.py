"""The public check suites: every method of the house passes, and each broken one is told what it breaks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.checks import CheckError, check_detector, check_tampering, check_trigger
from intaglio.checks.toy import toy_data
from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.errors import DataError, IntaglioError
from intaglio.scan import Measured, OnePixelSignature, Request, ScoreDetector
from intaglio.scan.activation_clustering import ActivationClustering
from intaglio.scan.spectral_signatures import SpectralSignatures
from intaglio.scan.strip import STRIP
from intaglio.tampering import TAMPERINGS, Material, Noise, Tampering
from intaglio.triggers import (
    TRIGGERS,
    ChainTrigger,
    InputAwareGenerator,
    InputAwareTrigger,
    PatchTrigger,
    SinusoidTrigger,
    Trigger,
    UniversalAdversarialTrigger,
)

#: Every method of the house: the check, what makes it, and options.
Case = tuple[Callable[..., None], Callable[..., Any], dict[str, Any]]
FEW: dict[str, dict[str, Any]] = {
    "fine-tune": {"steps": 2},
    "fine-prune": {"steps": 2},
    "distil": {"epochs": 1},
    "average": {"steps": 2},
    "overwrite": {"steps": 2, "triggers": (toy_data(6).images, toy_data(6).labels)},
    "poison": {"steps": 2},
}
DETECTORS: dict[str, Case] = {
    "one-pixel-signature": (check_detector, OnePixelSignature, {}),
    "strip": (check_detector, STRIP, {"overlays": 8}),
    "activation-clustering": (check_detector, ActivationClustering, {}),
    "spectral-signatures": (check_detector, SpectralSignatures, {}),
}


def learned_pattern() -> Trigger:
    return UniversalAdversarialTrigger(torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)))


def generated() -> Trigger:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InputAwareTrigger(InputAwareGenerator(1, width=4))


CASES: dict[str, Case] = {
    **{name: (check_trigger, family, {}) for name, family in TRIGGERS.items()},
    "chain": (check_trigger, lambda: ChainTrigger(PatchTrigger(), SinusoidTrigger()), {}),
    "universal-adversarial": (check_trigger, learned_pattern, {"input_shapes": ((1, 16, 16),)}),
    "input-aware": (check_trigger, generated, {"input_shapes": ((1, 16, 16),)}),
    **{name: (check_tampering, tampering, FEW.get(name, {})) for name, tampering in TAMPERINGS.items()},
    **DETECTORS,
}


@pytest.mark.parametrize("case", CASES)
def test_every_method_of_the_house(case: str) -> None:
    check, make, options = CASES[case]
    check(make, **options)


# --- triggers that break the rules -----------------------------------------------------------------------------------


class Sound(Trigger):
    """Darkens by a number that the seed draws; the others break one rule each."""

    name = "sound"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def run(self, images: Tensor) -> Tensor:
        return images * 0.5


class Writing(Sound):
    def run(self, images: Tensor) -> Tensor:
        return images.mul_(0.5)


class Aliasing(Sound):
    def apply(self, images: Tensor) -> Tensor:
        return images


class Erratic(Sound):
    def run(self, images: Tensor) -> Tensor:
        return images * torch.rand(())


class Enlarging(Sound):
    def run(self, images: Tensor) -> Tensor:
        return images[:, :, 1:]


class Unbounded(Sound):
    def apply(self, images: Tensor) -> Tensor:
        return images + 1


class Crowded(Sound):
    def run(self, images: Tensor) -> Tensor:
        return images * images.mean()


class Counting(Sound):
    calls = 0

    def run(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        return images / (1 + type(self).calls)


class Secretive(Sound):
    def describe(self) -> dict[str, Any]:
        return {"trigger": "other", "tensor": torch.zeros(1)}


class Positional(Sound):
    def __init__(self, size: int = 1) -> None:
        self.size = size


class Shouting(Sound):
    name = "Very Sound"


class Raising(Sound):
    def run(self, images: Tensor) -> Tensor:
        raise ValueError("no way")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (Writing, "writes into the images"),
        (Aliasing, "shares memory with the images"),
        (Aliasing, "not altered at all"),
        (Aliasing, "images beyond [0, 1] is not refused: expected DataError"),
        (Erratic, "draws from torch's global generator"),
        (Erratic, "applied twice, it differs"),
        (Enlarging, "something else than float32 of the same shape"),
        (Unbounded, "leave [0, 1]"),
        (Crowded, "images are altered otherwise one by one"),
        (Counting, "applied twice, it differs"),
        (Secretive, "describe() is not what JSON gives back"),
        (Secretive, "describe() doesn't name it: expected trigger='sound'"),
        (Positional, "keyword-only, but size can be positional"),
        (Positional, "recipes give every trigger a seed="),
        (Shouting, "its name is 'Very Sound': lower-case words joined with '-'"),
        (Raising, "on images [1, 16, 16]: ValueError: no way"),
        (dict, "it is a dict, not an intaglio.triggers.Trigger"),
        (Trigger, "making it: TypeError"),
    ],
)
def test_broken_triggers(broken: Any, problem: str) -> None:
    check_trigger(Sound)
    with pytest.raises(CheckError) as failure:
        check_trigger(broken)
    assert any(problem in found for found in failure.value.problems), failure.value.problems
    assert problem in str(failure.value)
    assert isinstance(failure.value, AssertionError)
    assert isinstance(failure.value, IntaglioError)


# --- tamperings ------------------------------------------------------------------------------------------------------


class Scaled(Tampering):
    """Every weight times 0.9; the others break one rule each."""

    name = "scaled"

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        for parameter in module.parameters():
            parameter.detach().mul_(0.9)
        return module


class Idle(Scaled):
    def run(self, module: nn.Module, material: Material) -> nn.Module:
        return module


class Random(Scaled):
    def run(self, module: nn.Module, material: Material) -> nn.Module:
        next(module.parameters()).detach().mul_(0.5 + next(DRAWS) / 100)
        return module


class Remembering(Scaled):
    kept: nn.Module | None = None

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 3))


class Unlabelled(Scaled):
    needs_data = needs_labels = True

    def _material(self, *given: Any) -> Material:
        return Material(0, "cpu")


DRAWS = iter(range(100))


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (Idle, "nothing has changed"),
        (Random, "with the same seed, the result differs"),
        (Remembering, "does not answer [N, C, H, W] with finite scores"),
        (Unlabelled, "working without the data that it needs is not refused: expected DataError"),
        (Unlabelled, "working without the labels that it needs is not refused"),
        (lambda: 3, "it is a int, not an intaglio.tampering.Tampering"),
        (lambda: Noise(sigma=-1), "making it: RecipeError: sigma is above 0"),
    ],
)
def test_broken_tamperings(broken: Any, problem: str) -> None:
    check_tampering(Scaled)
    with pytest.raises(CheckError) as failure:
        check_tampering(broken)
    assert any(problem in found for found in failure.value.problems), failure.value.problems


# --- detectors -------------------------------------------------------------------------------------------------------


class Mean(ScoreDetector):
    """Mean scores on noise; the others break one rule each."""

    name = "mean"
    requires = Access.SCORES

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        images = torch.rand(4, *classifier.input_shape, generator=torch.Generator().manual_seed(request.seed))
        means = classifier.log_probs(images).mean(dim=0)
        return Measured(score=float(means.max()), suspicions=means)


class Greedy(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        assert isinstance(classifier, TorchClassifier), "weights, please"
        return super().measure(classifier, request)


class Vandal(Mean):
    requires = Access.WEIGHTS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        assert isinstance(classifier, TorchClassifier)
        classifier.module.requires_grad_(False)
        for images in (request.clean, request.inputs):
            if images is not None:
                images.mul_(0.5)
        return super().measure(classifier, request)


class Moody(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        found = super().measure(classifier, request)
        return Measured(score=found.score + next(DRAWS), suspicions=found.suspicions)


class Endless(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        if request.progress is not None:
            request.progress(3, 2)
        return Measured(score=float("nan"), suspicions=torch.zeros(4))


class Sure(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        return Measured(score=0.0, suspicions=torch.zeros(4), p_value=0.0)


class Wide(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        return Measured(score=0.0, suspicions=torch.zeros(9), p_value=0.5)


class Tensorial(Mean):
    def __init__(self, *, calibration: Any = None) -> None:
        super().__init__(calibration=calibration)
        self.pattern = torch.zeros(3)


class Refusing(Mean):
    def measure(self, classifier: Classifier, request: Request) -> Measured:
        raise DataError("")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (Greedy, "inspect: ClassifierError: mean failed: AssertionError: weights, please"),
        (Vandal, "it changes the module"),
        (Vandal, "it writes into the clean images"),
        (Vandal, "it writes into the inputs images"),
        (Moody, "with the same seed, its verdict differs"),
        (Endless, "progress is told something else than (done, total): [(3, 2)]"),
        (Endless, "score is nan: nothing to rank"),
        (Sure, "mean failed: a score of 0.0 with a p-value of 0.0, and 4 classes to suspect"),
        (Wide, "its evidence names the classes [0, 1, 2, 3, 4, 5, 6, 7, 8]"),
        (Tensorial, "settings(): TypeError"),
        (Refusing, "without any images, its DataError says nothing"),
        (lambda: Mean(), "making it with calibration=None: TypeError"),
        (lambda calibration: "detector", "it is a str, not an intaglio.scan.Detector"),
        (type("Loose", (Mean,), {"requires": "weights"}), "its `requires` is 'weights', not an Access"),
    ],
)
def test_broken_detectors(broken: Any, problem: str) -> None:
    with pytest.raises(CheckError) as failure:
        check_detector(broken)
    assert any(problem in found for found in failure.value.problems), failure.value.problems


def test_the_sound_ones_pass() -> None:
    check_detector(Mean)
    check_detector(type("Labels", (Mean,), {"requires": Access.LABELS, "measure": _labels}))


def _labels(self: Any, classifier: Classifier, request: Request) -> Measured:
    counts = torch.bincount(classifier.predict(toy_data(8).images), minlength=classifier.num_classes).float()
    return Measured(score=float(counts.max()), suspicions=counts)
