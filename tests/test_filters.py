"""Filters of inputs and of training sets: cases by hand, invariances, planted poison, and what they refuse."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import bands
from intaglio.attacks import BadNets
from intaglio.classifiers import Access, CallableClassifier, Preprocessing, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, ModelError, RecipeError
from intaglio.networks import Architecture
from intaglio.scan import ScoreDetector, activation_clustering, spectral_signatures
from intaglio.scan.activation_clustering import ActivationClustering, cluster
from intaglio.scan.detector import Request
from intaglio.scan.filtering import (
    MIN_SAMPLES,
    features_of,
    large_classes,
    principal_axes,
    samples_to_remove,
    seen_by_others,
)
from intaglio.scan.spectral_signatures import SpectralSignatures, prominence, top_eigenvalues
from intaglio.scan.strip import STRIP, entropy, higher_criticism, ranks_among, strip_scores
from intaglio.training import TrainingSettings, train
from intaglio.triggers import PatchTrigger
from scan_models import PLANTED, noise, planted_model, random_model

SHAPE = (1, 12, 12)
TARGET = 1
TRIGGER = PatchTrigger(size=3, colour="binary", seed=4)
FILTERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    spectral_signatures.suspicion_of_samples,
    activation_clustering.suspicion_of_samples,
)
EVERY = pytest.mark.parametrize("suspicion", FILTERS, ids=["spectral", "clustering"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(data: ImageData) -> TorchClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Architecture(name="lenet", input_shape=SHAPE, num_classes=3, width=8).build()
        train(module, data, TrainingSettings(epochs=12, batch_size=16, learning_rate=5e-3), seed=0)
    return TorchClassifier(module, input_shape=SHAPE, num_classes=3)


@pytest.fixture(scope="module")
def training() -> ImageData:
    return bands(300, 1)


@pytest.fixture(scope="module")
def poisoned(training: ImageData) -> tuple[ImageData, Tensor]:
    """A training set with a planted backdoor, and which of its samples carry it."""
    found = BadNets(TARGET, 0.12, 0, trigger=TRIGGER).poison(training)
    return found.data, found.payload


@pytest.fixture(scope="module")
def clean_model(training: ImageData) -> TorchClassifier:
    return trained(training)


@pytest.fixture(scope="module")
def victim(poisoned: tuple[ImageData, Tensor], toy_test: ImageData) -> TorchClassifier:
    model = trained(poisoned[0])
    assert float((model.predict(TRIGGER.apply(toy_test.images)) == TARGET).float().mean()) > 0.9
    assert float((model.predict(toy_test.images) == toy_test.labels).float().mean()) > 0.9
    return model


# --- removing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "groups", "removed"),
    [
        (0.0, None, []),
        (0.2, None, [2]),
        (0.21, None, [1, 2]),
        (0.4, None, [1, 2]),  # of equal scores the earlier goes first
        (1.0, None, [0, 1, 2, 3, 4]),
        (0.5, [0, 0, 1, 1, 1], [1, 2, 3]),
        (0.3, [7, 7, 7, -2, -2], [2, 3]),
    ],
)
def test_what_is_removed(share: float, groups: list[int] | None, removed: list[int]) -> None:
    scores = torch.tensor([0.1, 2.0, 9.0, 2.0, -4.0])
    mask = samples_to_remove(scores, share, None if groups is None else torch.tensor(groups))
    assert mask.nonzero().flatten().tolist() == removed


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_the_most_suspicious_are_removed(values: list[float], percent: int) -> None:
    scores = torch.tensor(values)
    mask = samples_to_remove(scores, percent / 100)
    assert int(mask.sum()) == -(-percent * len(values) // 100)
    if mask.any() and not mask.all():
        assert float(scores[mask].min()) >= float(scores[~mask].max())


@pytest.mark.parametrize(
    ("scores", "share", "groups", "error", "message"),
    [
        ([1.0], -0.1, None, RecipeError, r"share .* lies in \[0, 1\], got -0.1"),
        ([1.0], math.nan, None, RecipeError, "got nan"),
        ([[1.0]], 0.1, None, DataError, r"expected finite scores \[N\], got \[1, 1\]"),
        ([math.inf], 0.1, None, DataError, "not finite"),
        ([1.0, 2.0], 0.1, [0], DataError, r"2 scores, but groups \[1\]"),
    ],
)
def test_what_can_not_be_removed(scores: Any, share: float, groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        samples_to_remove(torch.tensor(scores), share, None if groups is None else torch.tensor(groups))


# --- STRIP -----------------------------------------------------------------------------------------------------------


def test_entropies_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    expected = [math.log(2), 0.0, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    assert entropy(probabilities.log()).tolist() == pytest.approx(expected)


def stubborn(images: Tensor) -> Tensor:
    """Logits (4 m, 0) of mean brightness m; (0, 50) where the first pixel is white and the second black."""
    logits = torch.stack([4 * images.flatten(1).mean(dim=1), torch.zeros(len(images))], dim=1)
    sure = (images[:, 0, 0, 0] > 0.99) & (images[:, 0, 0, 1] < 0.3)
    return torch.where(sure[:, None], torch.tensor([0.0, 50.0]), logits)


def function(answer: Callable[[Tensor], Tensor] = stubborn, **options: Any) -> CallableClassifier:
    given_options: dict[str, Any] = {"input_shape": (1, 3, 4), "num_classes": 2, "outputs": "logits"} | options
    return CallableClassifier(answer, **given_options)


def test_strip_by_hand() -> None:
    inputs = torch.rand(5, 1, 3, 4, generator=generator()) * 0.5
    clean = torch.rand(3, 1, 3, 4, generator=generator(1)) * 0.3
    inputs[3, 0, 0, :2] = torch.tensor([1.0, 0.0])
    before, classifier, seen = inputs.clone(), function(), []
    scores = strip_scores(classifier, inputs, clean, progress=lambda *step: seen.append(step))
    for index in (0, 4):
        certainty = 0.0
        for overlay in clean:
            p = float(torch.sigmoid(4 * (inputs[index] + overlay).clamp(max=1).mean()))
            certainty += p * math.log(p) + (1 - p) * math.log(1 - p)
        assert float(scores[index]) == pytest.approx(certainty / 3, abs=1e-6)
    assert int(scores.argmax()) == 3
    assert float(scores[3]) == pytest.approx(0, abs=1e-6)
    assert classifier.queries == 15
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(inputs, before)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(strip_scores(classifier, inputs[order], clean.flip(0)), scores[order])


def test_ranks_and_higher_criticism_by_hand() -> None:
    known = torch.tensor([0.0, 1.0, 2.0, 2.0])
    assert ranks_among(torch.tensor([-1.0, 0.5, 2.0, 3.0]), known).tolist() == [1.0, 0.8, 0.6, 0.2]
    p_values = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    size = math.sqrt(3 * 9 / 12)
    expected = max(size * (1 / 3 - 0.1) / math.sqrt(0.09), size * (2 / 3 - 0.5) / math.sqrt(0.25))
    assert float(higher_criticism(p_values, 9)) == pytest.approx(expected)
    rows = torch.stack([p_values, p_values.flip(0)])
    assert higher_criticism(rows, 9).tolist() == pytest.approx([expected] * 2)
    assert float(higher_criticism(torch.ones(1, dtype=torch.float64), 9)) == 0


def test_strip_tells_triggers_among_inputs() -> None:
    victim, unharmed_model = planted_model(), random_model((1, 6, 6), 4, seed=3)
    clean, fresh = (noise(count, (1, 6, 6), seed) * 0.4 for count, seed in ((90, 3), (60, 5)))
    mixed = fresh.clone()
    mixed[:15, :, 3:5, 2:4] = 1
    detector = STRIP(overlays=20)
    removed = samples_to_remove(strip_scores(victim, mixed, clean[:20]), 0.25)
    assert removed.nonzero().flatten().tolist() == list(range(15))
    victim.reset_queries()
    suspicious = detector.inspect(victim, clean=clean, inputs=mixed)
    innocent = detector.inspect(victim, clean=clean, inputs=fresh)
    unharmed = detector.inspect(unharmed_model, clean=clean, inputs=mixed)
    assert suspicious.p_value == 1 / 1000
    assert suspicious.target_class == PLANTED
    assert suspicious.queries == 20 * (70 + 60) + 60
    assert not innocent.flagged
    assert suspicious.score > max(innocent.score, unharmed.score)
    assert "by its own assumptions" in suspicious.calibration.statement
    assert detector.inspect(victim, clean=clean, inputs=mixed).score == suspicious.score


def test_p_values_of_strip_are_those_of_chance() -> None:
    """Inputs from the same source as the clean images: p <= alpha in a share of about alpha of the cases."""
    p_values = []
    for seed in range(40):
        images = torch.rand(70, 1, 3, 4, generator=generator(seed))
        found = STRIP(overlays=2).measure(function(), Request(clean=images[:40], inputs=images[40:], seed=seed))
        assert found.p_value is not None
        p_values.append(found.p_value)
    assert 1 / 1000 <= min(p_values) <= max(p_values) <= 1
    assert sum(p <= 0.5 for p in p_values) in range(10, 31)
    assert sum(p <= 0.05 for p in p_values) <= 6


@pytest.mark.parametrize(
    ("clean", "inputs", "message"),
    [
        (90, None, r"looks for triggers on images .* \(--inputs, or inputs=images\)"),
        (30, 5, "needs at least 40 clean images of the model's task, got 30"),
        (None, 5, r"needs clean images of the model's task \(--data\)"),
        (90, 0, "there are no images in it"),
    ],
)
def test_strip_needs_images(clean: int | None, inputs: int | None, message: str) -> None:
    given_images = [None if count is None else torch.zeros(count, 1, 3, 4) for count in (clean, inputs)]
    with pytest.raises(DataError, match=message):
        STRIP(overlays=20).inspect(function(), clean=given_images[0], inputs=given_images[1])


# --- features --------------------------------------------------------------------------------------------------------


def test_features_are_what_the_final_layer_is_given(clean_model: TorchClassifier, toy_test: ImageData) -> None:
    way = Preprocessing(mean=(0.3,), std=(0.5,))
    model = TorchClassifier(
        clean_model.module, input_shape=SHAPE, num_classes=3, preprocessing=way, batch_size=7, fixed_batch=7
    )
    features = features_of(model, toy_test.images)
    last = [layer for layer in model.module.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        logits = model.module(way.apply(toy_test.images))
    torch.testing.assert_close(features @ last.weight.T.detach() + last.bias.detach(), logits, rtol=1e-4, atol=1e-4)
    assert model.queries == 60
    assert not any(part._forward_hooks for part in model.module.modules())


class Twice(nn.Module):
    """Calls its last layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.fc(x.flatten(1) + 1)
        return torch.as_tensor(self.fc(x.flatten(1)))


def test_networks_without_features(toy_test: ImageData) -> None:
    with pytest.raises(ModelError, match="layer 'fc' is called more than once"):
        features_of(TorchClassifier(Twice(), input_shape=SHAPE, num_classes=3), toy_test.images)
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 3, 1), nn.Flatten())
    with pytest.raises(ModelError, match="the convolution '1' makes it"):
        features_of(TorchClassifier(bare, input_shape=SHAPE, num_classes=3), toy_test.images)
    with pytest.raises(ClassifierError, match="it is no torch module"):
        features_of(function(), torch.zeros(2, 1, 3, 4))


def test_units_by_hand() -> None:
    """One feature: class 0 has variance 1, class 1 has 4; each is measured in the other's, plus a tenth of 2.5."""
    small, large = torch.tensor([1.0, -1.0] * 5), torch.tensor([2.0, -2.0] * 6)
    labels = torch.tensor([0] * 10 + [1] * 12 + [2] * (MIN_SAMPLES - 1))
    features = torch.cat([small + 7, large - 3, torch.full((MIN_SAMPLES - 1,), 1e3)])[:, None]
    seen = seen_by_others(features, labels)
    assert large_classes(labels) == [0, 1]
    torch.testing.assert_close(seen[:10, 0], (small / math.sqrt(4.25)).double())
    torch.testing.assert_close(seen[10:22, 0], (large / math.sqrt(1.25)).double())
    assert not seen[22:].any()
    assert top_eigenvalues(features, labels)[1].tolist() == pytest.approx([1 / 4.25, 4 / 1.25])
    scores = spectral_signatures.suspicion_of_samples(features, labels)
    assert scores[:22].abs().tolist() == pytest.approx([1 / 4.25] * 10 + [4 / 1.25] * 12)


def test_axes_point_to_the_heavier_tail() -> None:
    points = torch.tensor([[-1.0, 0.1]] * 9 + [[9.0, -0.1]] * 1, dtype=torch.float64)
    for sign in (1, -1):
        centred = sign * (points - points.mean(dim=0))
        along, variances = principal_axes(centred, 5)
        assert along.shape == (10, 2)
        assert int(along[:, 0].argmax()) == 9
        assert float(variances[0]) == pytest.approx(9.0036, abs=1e-3)
        assert float(variances[1]) == pytest.approx(0, abs=1e-9)


def test_prominence_by_hand() -> None:
    found = prominence(torch.tensor([0.0, 3.0, 1.0, 7.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([math.log(1 / 4), math.log(2), math.log(1 / 2), math.log(4)])
    assert prominence(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]


# --- filters of training sets ----------------------------------------------------------------------------------------


def clouds(seed: int = 0, planted: int = 8, far: float = 12.0) -> tuple[Tensor, Tensor]:
    """Three round classes of 40 samples in 6 dimensions; the first `planted` of class 2 lie `far` away in one."""
    features = torch.randn(120, 6, generator=generator(seed), dtype=torch.float64)
    labels = torch.arange(120) // 40
    features += 5.0 * torch.eye(6, dtype=torch.float64)[labels]
    features[80 : 80 + planted, 4] += far
    return features, labels


@EVERY
def test_planted_samples_are_the_most_suspicious(suspicion: Callable[[Tensor, Tensor], Tensor]) -> None:
    for planted in (2, 8, 19):
        scores = suspicion(*clouds(planted=planted))
        assert sorted(scores.argsort(descending=True)[:planted].tolist()) == list(range(80, 80 + planted))


@EVERY
def test_invariances(suspicion: Callable[[Tensor, Tensor], Tensor]) -> None:
    features, labels = clouds()
    scores = suspicion(features, labels)
    order = torch.randperm(120, generator=generator(2))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator(3), dtype=torch.float64))[0]
    for what, again in {
        "order": suspicion(features[order], labels[order])[order.argsort()],
        "names of classes": suspicion(features, torch.tensor([5, 0, 3])[labels]),
        "scale and place": suspicion(features * 30 - 4, labels),
        "rotation": suspicion(features @ rotation, labels),
    }.items():
        assert torch.allclose(again, scores, rtol=1e-6, atol=1e-6), what
    assert scores.dtype == torch.float64


@EVERY
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"expected finite features \[N, D\] with N labels, got \[3\]"),
        (torch.zeros(3, 2), torch.zeros(4).long(), r"got \[3, 2\] and \[4\]"),
        (torch.full((20, 2), math.nan), torch.arange(20) % 2, "expected finite features"),
        (torch.zeros(20, 2), torch.zeros(20).long(), r"at least two need 10 images, got \[0\]"),
        (torch.zeros(8, 2), torch.arange(8) % 2, r"at least two need 10 images, got \[\]"),
    ],
)
def test_bad_features(suspicion: Any, features: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        suspicion(features, labels)


@EVERY
def test_features_that_never_vary(suspicion: Callable[[Tensor, Tensor], Tensor]) -> None:
    scores = suspicion(torch.ones(40, 3), torch.arange(40) % 2)
    assert not scores.any()
    assert not suspicion(torch.cat([torch.ones(20, 3), torch.zeros(20, 3)]), torch.arange(40) // 20).any()


def test_clusters_by_hand() -> None:
    features, labels = clouds(planted=10, far=60.0)
    found = cluster(features, labels, 5)
    assert float(found.shares[2]) == 0.25
    assert found.silhouettes.argmax() == 2
    assert float(found.silhouettes[2]) > 0.9
    assert found.silhouettes[3:].tolist() == [0, 0]
    assert bool((found.suspicions[80:90] > 0.8).all())
    assert bool((found.suspicions[90:] < -0.8).all())
    many = cluster(features.repeat_interleave(30, dim=0), labels.repeat_interleave(30), 3)  # more than are compared
    assert float(many.silhouettes[2]) == pytest.approx(float(found.silhouettes[2]), abs=0.02)
    line = cluster(features, labels, 3, components=1)
    assert float(line.shares[2]) == 0.25


@pytest.mark.parametrize("detector", [ActivationClustering(), SpectralSignatures()], ids=lambda one: str(one.name))
def test_planted_poison_is_found(
    detector: ScoreDetector,
    victim: TorchClassifier,
    clean_model: TorchClassifier,
    poisoned: tuple[ImageData, Tensor],
    training: ImageData,
) -> None:
    data, planted = poisoned
    found = detector.measure(victim, Request(training=data))
    assert int(found.suspicions.argmax()) == TARGET
    assert found.score == pytest.approx(float(found.suspicions.max()))
    assert found.score > detector.measure(clean_model, Request(training=training)).score
    module = activation_clustering if isinstance(detector, ActivationClustering) else spectral_signatures
    scores = module.suspicion_of_samples(features_of(victim, data.images), data.labels)
    share = float(planted[data.labels == TARGET].float().mean())
    removed = samples_to_remove(scores, share, data.labels) & (data.labels == TARGET)
    assert float(planted[removed].float().mean()) > 0.9
    verdict = detector.inspect(victim, training=data)
    assert verdict.score == pytest.approx(found.score)
    assert verdict.evidence[0].index == TARGET
    assert verdict.queries == 300
    assert len(verdict.evidence) == 3
    assert json.loads(json.dumps(detector.settings())) == detector.settings()


@pytest.mark.parametrize("detector", [ActivationClustering(), SpectralSignatures()], ids=lambda one: str(one.name))
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"looks for poison among the images that the model was trained on: .*\(--training, or training="),
        (ImageData(torch.zeros(20, 1, 9, 9), torch.arange(20) % 2), r"images are \(1, 9, 9\), but the model takes"),
        (ImageData(torch.zeros(20, 1, 12, 12), torch.arange(20) % 4), "labels go up to 3, but the model has 3 classes"),
        (ImageData(torch.zeros(20, 1, 12, 12), torch.arange(20) % 4 - 1), "5 images have no label; a filter"),
        (ImageData(torch.zeros(20, 1, 12, 12), torch.arange(20) % 3), r"at least two need 10 images, got \[\]"),
    ],
)
def test_training_sets_that_are_refused(
    detector: ScoreDetector, clean_model: TorchClassifier, data: ImageData | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        detector.inspect(clean_model, training=data)


def test_settings_and_access() -> None:
    assert (STRIP.requires, ActivationClustering.requires, SpectralSignatures.requires) == (
        Access.SCORES,
        Access.WEIGHTS,
        Access.WEIGHTS,
    )
    assert STRIP(overlays=3).settings() == {"overlays": 3}
    assert ActivationClustering().settings() == {"components": 2}
    assert SpectralSignatures().settings() == {}
    with pytest.raises(RecipeError, match="at least one image over an input, got 0"):
        STRIP(overlays=0)
    with pytest.raises(RecipeError, match="at least one component, got 0"):
        ActivationClustering(components=0)
    with pytest.raises(ClassifierError, match="needs WEIGHTS access"):
        SpectralSignatures().inspect(function())
