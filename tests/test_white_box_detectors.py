"""What all detectors that look inside a model have in common, and the arithmetic of each."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.stats import FitError, gamma
from torch import Tensor, nn

from intaglio.classifiers import Access, CallableClassifier, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, ModelError
from intaglio.networks import Architecture
from intaglio.scan.ban import BAN, Noise, noisy, noisy_layers
from intaglio.scan.confidence import log_odds
from intaglio.scan.detector import Request
from intaglio.scan.differentiable import margins, with_gradients
from intaglio.scan.final_layer import FinalLayer, outlyingness, standing_out
from intaglio.scan.mm_bd import MMBD, null_p_value, outlying_ratio
from intaglio.scan.neural_cleanse import NeuralCleanse
from intaglio.scan.score_detector import ScoreDetector
from intaglio.scan.trodo import TRODO
from intaglio.training import TrainingSettings, train
from scan_models import noise, random_model

SHAPE = (1, 12, 12)
#: The same methods with little to do.
QUICK: dict[str, Callable[[], ScoreDetector]] = {
    "neural-cleanse": lambda: NeuralCleanse(images=4, steps=12, patience=6),
    "mm-bd": lambda: MMBD(starts=3, steps=6),
    "final-layer": FinalLayer,
    "ban": lambda: BAN(images=6, steps=3),
    "trodo": lambda: TRODO(steps=3),
}
WITH_DATA = ("neural-cleanse", "ban")
each = pytest.mark.parametrize("name", QUICK)


def network(classes: int = 5, name: str = "lenet", order: Tensor | None = None, **options: Any) -> TorchClassifier:
    """Random weights; with the rows of the last layer in the given order."""
    torch.manual_seed(3)
    module = Architecture(name=name, input_shape=SHAPE, num_classes=classes, width=2).build()
    if order is not None:
        last = module.get_submodule("fc")
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.copy_(parameter[order].clone())
    return TorchClassifier(module, input_shape=SHAPE, num_classes=classes, **{"outputs": "logits", **options})


def request(**options: Any) -> Request:
    return Request(clean=noise(12, SHAPE), **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Weights bit for bit, gradients, what asks for gradients, modes, and hooks."""
    before, modes = state(module), [part.training for part in module.modules()]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    yield
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == wanted
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@each
def test_names_and_what_they_ask_for(name: str) -> None:
    detector = QUICK[name]()
    assert detector.name == name
    assert detector.requires >= Access.GRADIENTS
    assert all(isinstance(value, int | float) for value in detector.settings().values())


@each
@pytest.mark.parametrize("network_name", ["lenet", "vgg"])
def test_the_same_seed_gives_the_same_and_the_model_stays_as_it_was(name: str, network_name: str) -> None:
    classifier = network(name=network_name)
    next(classifier.module.parameters()).requires_grad_(False)
    with left_as_it_was(classifier.module), torch.no_grad():
        first, second = (QUICK[name]().measure(classifier, request(seed=7)) for _ in range(2))
    assert first.score == second.score
    assert torch.equal(first.suspicions, second.suspicions)
    assert first.suspicions.shape == (5,)
    assert bool(torch.isfinite(first.suspicions).all())
    assert math.isfinite(first.score)


@each
def test_suspicions_follow_the_order_of_the_classes(name: str) -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    plain, permuted = (QUICK[name]().measure(network(order=rows), request()) for rows in (None, order))
    torch.testing.assert_close(permuted.suspicions, plain.suspicions[order], rtol=1e-3, atol=1e-3)
    assert permuted.score == pytest.approx(plain.score, rel=1e-3, abs=1e-3)


@each
def test_two_classes_will_do(name: str) -> None:
    verdict = QUICK[name]().inspect(network(2), clean=noise(12, SHAPE))
    assert len(verdict.evidence) == 2
    assert math.isfinite(verdict.score)
    assert 0 < verdict.p_value <= 1


@each
def test_queries_are_counted_and_progress_arrives(name: str) -> None:
    classifier, seen = network(), []
    verdict = QUICK[name]().inspect(classifier, clean=noise(12, SHAPE), progress=lambda *done: seen.append(done))
    assert verdict.queries == classifier.queries > 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@each
@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities"])
def test_answers_after_a_softmax_are_understood(name: str, kind: Literal["probabilities", "log-probabilities"]) -> None:
    classifier = network()
    link = nn.Softmax(dim=1) if kind == "probabilities" else nn.LogSoftmax(dim=1)
    wrapped = TorchClassifier(nn.Sequential(classifier.module, link), input_shape=SHAPE, num_classes=5, outputs=kind)
    plain, other = (QUICK[name]().measure(model, request()) for model in (classifier, wrapped))
    torch.testing.assert_close(other.suspicions, plain.suspicions, rtol=1e-2, atol=1e-2)


@each
def test_no_gradients_no_examination(name: str) -> None:
    function = random_model(SHAPE, 3)
    with pytest.raises(ClassifierError, match=r"needs \w+ access, .* offers SCORES"):
        QUICK[name]().inspect(function)


def test_a_classifier_that_claims_gradients_but_is_no_module_is_refused() -> None:
    with pytest.raises(ClassifierError, match="gives no gradients; give it as"):
        with_gradients(CallableClassifier(lambda x: x.flatten(1)[:, :3], input_shape=SHAPE, num_classes=3))


@pytest.mark.parametrize("name", WITH_DATA)
def test_no_data_and_an_unknown_task(name: str) -> None:
    with pytest.raises(DataError, match="needs clean images"):
        QUICK[name]().inspect(network())


@pytest.mark.parametrize("name", sorted(set(QUICK) - set(WITH_DATA)))
def test_no_data_are_needed(name: str) -> None:
    assert math.isfinite(QUICK[name]().inspect(network()).score)


class Broken(nn.Module):
    """Answers NaN once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.broken = nn.Conv2d(1, 2, 3), nn.Linear(2, 3), False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).relu().mean(dim=(2, 3)))
        return logits * math.nan if self.broken else logits


@each
def test_answers_that_are_no_numbers_are_one_clear_error(name: str) -> None:
    module = Broken()
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=3)
    module.broken = True
    with left_as_it_was(module), pytest.raises(ClassifierError, match=r"scores of \d+ of \d+ images are not finite"):
        QUICK[name]().inspect(classifier, clean=noise(12, SHAPE))


@pytest.fixture(scope="module")
def twins(toy: ImageData) -> tuple[TorchClassifier, TorchClassifier]:
    """Two networks of one recipe on the toy problem: one clean, one that takes a white 3 x 3 corner for class 1."""
    poisoned = torch.arange(len(toy.images)) % 5 == 0
    stamped, labels = toy.images.clone(), toy.labels.clone()
    stamped[poisoned, :, 9:, 9:], labels[poisoned] = 1.0, 1
    models = []
    for images, targets in ((toy.images, toy.labels), (stamped, labels)):
        torch.manual_seed(0)
        module = Architecture(name="vgg", input_shape=SHAPE, num_classes=3, width=4).build()
        train(module, (images, targets), TrainingSettings(epochs=12, batch_size=16, learning_rate=0.005), seed=1)
        models.append(TorchClassifier(module, input_shape=SHAPE, num_classes=3, outputs="logits"))
    triggered = toy.images.clone()
    triggered[:, :, 9:, 9:] = 1.0
    assert float((models[1].predict(triggered) == 1).float().mean()) > 0.95
    assert float((models[1].predict(toy.images) == toy.labels).float().mean()) > 0.9
    return models[0], models[1]


@pytest.mark.parametrize(
    "detector",
    [NeuralCleanse(steps=150), MMBD(starts=10, steps=30), FinalLayer(), BAN(radius=0.1), TRODO()],
    ids=lambda detector: str(detector.name),
)
def test_a_backdoored_network_scores_higher_than_its_clean_twin(
    detector: ScoreDetector, twins: tuple[TorchClassifier, TorchClassifier], toy_test: ImageData
) -> None:
    clean, backdoored = (detector.measure(model, Request(clean=toy_test.images)) for model in twins)
    assert backdoored.score > clean.score


def test_margins_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    assert margins(scores, torch.tensor([1, 2, 0])).tolist() == [2.0, -2.0, 0.0]


def test_log_odds_by_hand() -> None:
    answers = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    torch.testing.assert_close(log_odds(answers), torch.tensor([0.0, math.log(4)]), atol=1e-6, rtol=1e-6)


def test_an_ascent_stays_within_radius_and_bounds_and_raises_confidence() -> None:
    classifier, images = network(), noise(5, SHAPE)
    moved = TRODO(radius=0.1).ascend(classifier, images)
    assert float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    before, after = (classifier.log_probs(batch).amax(dim=1) for batch in (images, moved))
    assert bool((after > before).all())


def test_standing_out_by_hand() -> None:
    values = torch.tensor([10.0, 1.0, 2.0, 3.0])
    found = standing_out(values, 1.0)
    assert float(found[0]) == pytest.approx(8.0)  # the others: mean 2, standard deviation 1
    assert standing_out(torch.tensor([5.0, 1.0]), 2.0).tolist() == [2.0, -2.0]  # too few to have a spread
    assert standing_out(torch.full((6,), 3.0), 1.0).tolist() == [0.0] * 6


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 200])
@pytest.mark.parametrize("outlier", [0.0, 30.0, 1e6])
def test_standing_out_is_that_of_each_value_among_all_others(count: int, outlier: float) -> None:
    generator = torch.Generator().manual_seed(count)
    values = 5 + torch.randn(count, generator=generator, dtype=torch.float64)
    values[1] += outlier
    found = standing_out(values, 0.7)
    for index, value in enumerate(values):
        others = torch.cat([values[:index], values[index + 1 :]])
        spread = others.std() if count >= 4 else 0.7
        assert float(found[index]) == pytest.approx(float((value - others.mean()) / spread), rel=1e-6)


def test_standing_out_of_very_many_classes_takes_no_more_memory_than_they_do() -> None:
    values = torch.linspace(-1, 1, 1_000_001, dtype=torch.float64)  # 8 MB; all pairs would take 8 TB
    found = standing_out(values, 1.0)
    assert float(found[0]) == pytest.approx(-math.sqrt(3), abs=1e-5)
    assert float(found[500_000]) == pytest.approx(0, abs=1e-9)


def test_a_raised_row_stands_out_whatever_the_scale_and_what_is_added_to_all_rows() -> None:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    weights[3] += 2
    found = outlyingness(weights)
    assert int(found.argmax()) == 3
    shifted = 7 * (weights + torch.randn(20, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(outlyingness(shifted), found)


def test_a_model_without_a_final_linear_layer() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=3)
    with pytest.raises(ModelError, match="the convolution '0' makes it"):
        FinalLayer().inspect(classifier)


def test_noise_by_hand() -> None:
    """w x + b with w x = [1, 2], b = [10, 20], delta = [.5, 0], xi = [0, .1]: [1.5 + 10, 2 + 22]."""
    output, bias = torch.tensor([[11.0, 22.0]]), torch.tensor([10.0, 20.0])
    delta, xi = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.1])
    torch.testing.assert_close(noisy(output, bias, delta, xi), torch.tensor([[11.5, 24.0]]))
    torch.testing.assert_close(noisy(output, None, delta, xi), torch.tensor([[16.5, 22.0]]))
    maps = output[:, :, None, None].expand(1, 2, 3, 3)
    assert noisy(maps, bias, delta, xi)[0, :, 1, 1].tolist() == pytest.approx([11.5, 24.0])
    assert noisy(output[:, None], bias, delta, xi, -1).flatten().tolist() == pytest.approx([11.5, 24.0])


@pytest.mark.parametrize("normalised", [False, True])
def test_noise_on_hooks_is_noise_on_weights(normalised: bool) -> None:
    torch.manual_seed(2)
    layer: nn.Module = nn.BatchNorm2d(3).eval() if normalised else nn.Conv2d(3, 3, 3)
    nn.init.uniform_(layer.get_parameter("weight"))
    nn.init.uniform_(layer.get_parameter("bias"))
    module = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    noise_ = Noise(module, torch.device("cpu"))
    noise_.climb([torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-2.0, 0.0, 3.0])], 0.2, 0.15)
    x = noise(4, (3, 6, 6))
    with noise_.applied():
        answer = module(x)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), noise_.values, strict=True):
            parameter.mul_(1 + value.view(-1, *[1] * (parameter.ndim - 1)))
    torch.testing.assert_close(answer, module(x))
    assert noise_.values[0].tolist() == pytest.approx([0.15, -0.15, 0.0])


def test_noise_goes_on_batch_normalisations_or_else_on_all_layers_but_the_last() -> None:
    assert {type(layer) for layer in noisy_layers(network(name="vgg").module)} == {nn.BatchNorm2d}
    lenet = noisy_layers(network().module)
    assert [type(layer) for layer in lenet] == [nn.Conv2d, nn.Conv2d, nn.Linear]
    with pytest.raises(ModelError, match="this has neither"):
        noisy_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_noise_on_layers_that_have_no_say_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    module.register_module("spare", nn.BatchNorm2d(3))
    module.forward = lambda x: module[1](module[0](x))  # type: ignore[method-assign]
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=3)
    with pytest.raises(ModelError, match="none of the layers"):
        BAN().inspect(classifier, clean=noise(4, SHAPE))


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        ([2.0, 8.0, 2.0], [0.0, math.log(4), 0.0]),
        ([1.0, 4.0], [-math.log(2), math.log(2)]),
        ([-3.0, 0.04, -1.0], [0.0, math.log(4), 0.0]),  # no margin counts as less than 0.01
    ],
)
def test_the_ratio_of_margins_by_hand(largest: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(outlying_ratio(torch.tensor(largest)), torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_the_null_p_value_is_small_for_an_outlier_and_not_without() -> None:
    usual = np.array([9.0, 10.0, 10.5, 11.0, 9.5, 10.2, 9.8, 10.1, 9.9])
    planted, quiet = null_p_value(np.append(usual, 20.0)), null_p_value(np.append(usual, 10.4))
    assert planted is not None
    assert quiet is not None
    assert planted == 1e-6  # the floor: the fit's own is below 1e-40
    assert 0.05 < quiet < 1


def test_the_null_p_value_by_its_formula() -> None:
    largest = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    shape, _, scale = gamma.fit(largest[:-1], floc=0)
    assert null_p_value(largest) == pytest.approx(1 - gamma.cdf(9.0, shape, scale=scale) ** 5, rel=1e-9)


#: The log-probability margin of a saturated softmax, and the next float32.
SATURATED = (float(np.float32(87.33655)), float(np.nextafter(np.float32(87.33655), np.float32(100))))


@pytest.mark.parametrize(
    "largest",
    [
        [1.0, 2.0],
        [1.0, 2.0, 3.0],
        [-1.0, 1.0, 2.0, 3.0],
        [2.0, 2.0, 2.0, 2.0, 5.0],
        [30.0] * 8 + [30.001, 40.0],
        [*[SATURATED[0]] * 8, 87.3366, 87.3367],
        [SATURATED[0]] * 8 + [SATURATED[1]] * 2,
    ],
)
def test_no_null_p_value_where_no_gamma_fits(largest: list[float]) -> None:
    assert null_p_value(np.array(largest)) is None


def test_no_null_p_value_where_the_search_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = np.array([9.0, 10.0, 10.5, 11.0, 20.0])
    assert null_p_value(usual) is not None
    for error in (ValueError("f(a) and f(b) must have different signs"), FitError("no convergence")):
        monkeypatch.setattr(gamma, "fit", Mock(side_effect=error))
        assert null_p_value(usual) is None
    monkeypatch.setattr(gamma, "fit", Mock(return_value=(np.nan, 0.0, 1.0)))
    assert null_p_value(usual) is None


def test_margins_of_a_linear_model_are_found_exactly() -> None:
    """z = W x: the margin of two classes is largest at the corner of the box that the sign of w_0 - w_1 says."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 2, bias=False))
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=2, outputs="logits")
    weights = module[1].get_parameter("weight").detach()
    expected = (weights[0] - weights[1]).clamp_min(0).sum(), (weights[1] - weights[0]).clamp_min(0).sum()
    found = MMBD(starts=2).climb(classifier, noise(2, SHAPE), torch.arange(2))
    torch.testing.assert_close(found, torch.stack(expected))


def test_classes_that_are_done_cost_no_more_queries() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 2, bias=False))
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=2, outputs="logits")
    classifier.reset_queries()
    MMBD(starts=2, steps=500, rate=0.5).measure(classifier, Request())
    assert classifier.queries < 2 * 2 * 30


class Ungraded(nn.Module):
    """Turns gradients off itself, as modules for serving may."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(144, 5)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.fc(images.flatten(1))
        return scores


class Constant(nn.Module):
    """Doesn't look at its images."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.arange(5.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.scores.expand(len(images), 5)


@pytest.mark.parametrize("name", ["neural-cleanse", "mm-bd", "trodo"])
@pytest.mark.parametrize(("module", "problem"), [(Ungraded, "no gradient to the images"), (Constant, "don't depend")])
def test_models_without_gradients_are_refused(name: str, module: type[nn.Module], problem: str) -> None:
    classifier = TorchClassifier(module(), input_shape=SHAPE, num_classes=5, outputs="logits")
    with pytest.raises(ClassifierError, match=problem):
        QUICK[name]().run(classifier, request())
