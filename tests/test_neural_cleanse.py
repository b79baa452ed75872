"""Neural Cleanse: all classes at once find what each finds alone, planted masks are found, and the score's maths."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.classifiers import TorchClassifier
from intaglio.networks import Architecture
from intaglio.scan.detector import Request
from intaglio.scan.neural_cleanse import (
    FIRST_WEIGHT,
    LOWERED,
    RAISED,
    NeuralCleanse,
    Search,
    at_once,
    in_parts,
    smallness,
)
from scan_models import noise

SHAPE = (1, 12, 12)
PLACE = (slice(8, 10), slice(3, 5))


def network(name: str, classes: int) -> TorchClassifier:
    torch.manual_seed(4)
    module = Architecture(name=name, input_shape=SHAPE, num_classes=classes, width=2).build()
    return TorchClassifier(module, input_shape=SHAPE, num_classes=classes, outputs="logits")


class Planted(nn.Module):
    """Three random classes, and a fourth that 2 x 2 white pixels at `PLACE` call up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(144, 4, generator=torch.Generator().manual_seed(1)) / 2)

    def forward(self, x: Tensor) -> Tensor:
        present = x[(..., *PLACE)].mean(dim=(1, 2, 3))
        called = 40 * present[:, None] ** 2 * (torch.arange(4) == 3)
        return (x.flatten(1) - 0.5).matmul(self.weight).tanh() * 4 * (torch.arange(4) < 3) + called - 4


def alone(detector: NeuralCleanse, classifier: TorchClassifier, images: Tensor, target: int) -> tuple[float, Tensor]:
    """The smallest mask of one class, written down as the method is told: torch's own Adam, no batch of classes."""
    start = Search.start(classifier, images, 0)
    mask, pattern = start.mask[target].clone().requires_grad_(), start.pattern[target].clone().requires_grad_()
    optimiser = torch.optim.Adam([mask, pattern], lr=detector.rate, betas=(0.5, 0.9))
    labels = torch.full((detector.batch,), target)
    turns = torch.split(images, detector.batch)
    weight, smallest, kept, idle, streak = FIRST_WEIGHT, 144.0, torch.ones(1, 12, 12), 0, 0
    for step in range(detector.steps):
        if idle >= detector.patience:
            break
        optimiser.zero_grad()
        clean = turns[step % len(turns)]
        scores = classifier.differentiable(((1 - mask) * clean + mask * pattern).clamp(0, 1))
        torch.autograd.backward(cross_entropy(scores, labels) + weight * mask.mean())
        success = float((scores.argmax(dim=1) == target).float().mean()) >= detector.success
        size, idle, streak = float(mask.detach().sum()), idle + 1, streak + 1 if success else 0
        if streak >= len(turns) and size < 0.99 * smallest:
            smallest, kept, idle = size, mask.detach().clone(), 0
        weight *= RAISED if success else LOWERED
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
            pattern.clamp_(0, 1)
    return smallest, kept


@pytest.mark.parametrize(("name", "classes"), [("lenet", 10), ("vgg", 3), ("lenet", 2)])
def test_all_classes_at_once_find_what_each_finds_alone(name: str, classes: int) -> None:
    classifier, images = network(name, classes), noise(6, SHAPE)
    detector = NeuralCleanse(batch=3, steps=40, patience=12)
    found = detector.search(classifier, images, Request())
    expected = [alone(detector, classifier, images, target) for target in range(classes)]
    torch.testing.assert_close(found.best, torch.tensor([norm for norm, _ in expected]), rtol=2e-3, atol=1e-2)
    torch.testing.assert_close(found.best_mask, torch.stack([mask for _, mask in expected]), rtol=0, atol=2e-2)


@pytest.mark.parametrize("batch_size", [1, 16, 24])
def test_how_many_classes_fit_in_a_batch_changes_nothing(batch_size: int) -> None:
    classifier, images = network("lenet", 5), noise(6, SHAPE)
    detector = NeuralCleanse(batch=3, steps=30, patience=8)
    whole = detector.search(classifier, images, Request())
    classifier.batch_size = batch_size
    assert at_once(5, 3, batch_size) == {1: 1, 16: 2, 24: 3}[batch_size]
    parts = detector.search(classifier, images, Request())
    assert torch.equal(whole.taken, parts.taken)
    torch.testing.assert_close(whole.best, parts.best, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("classes", "images", "batch_size", "together"),
    [(10, 4, 256, 10), (43, 4, 256, 22), (43, 16, 256, 6), (10, 16, 256, 5), (3, 64, 1, 1), (1000, 4, 1024, 91)],
)
def test_classes_go_together_in_groups_of_one_size(classes: int, images: int, batch_size: int, together: int) -> None:
    assert at_once(classes, images, batch_size) == together


def test_queries_are_the_images_of_the_steps_taken() -> None:
    classifier = network("lenet", 4)
    classifier.reset_queries()
    found = NeuralCleanse(batch=3, steps=25, patience=5).search(classifier, noise(6, SHAPE), Request())
    assert classifier.queries == 3 * int(found.taken.sum())
    assert int(found.taken.max()) <= 25
    assert bool(((found.idle == 5) | (found.taken == 25)).all())


def test_a_planted_trigger_is_found_with_its_class_and_place() -> None:
    classifier = TorchClassifier(Planted(), input_shape=SHAPE, num_classes=4, outputs="logits")
    images = noise(16, SHAPE) * 0.4
    measured = NeuralCleanse(steps=100).measure(classifier, Request(clean=images))
    assert int(measured.suspicions.argmax()) == 3
    assert measured.score > math.log(3)
    assert measured.maps is not None
    assert measured.maps.shape == (4, 12, 12)
    mask = measured.maps[3]
    assert float(mask[PLACE].sum()) > 0.8 * float(mask.sum())
    assert float(mask.sum()) == pytest.approx(measured.details["norms"][3], rel=1e-5)
    assert measured.details["norms"][3] < 4.1


def test_masks_that_are_kept_do_what_is_asked() -> None:
    classifier, images = network("lenet", 4), noise(8, SHAPE)
    detector = NeuralCleanse(steps=60)
    found = detector.search(classifier, images, Request())
    reached = found.best < 144
    assert bool(reached.any())
    assert bool((found.best_mask >= 0).all() and (found.best_mask <= 1).all())
    torch.testing.assert_close(found.best[reached], found.best_mask[reached].flatten(1).sum(dim=1))


def test_a_class_that_no_mask_reaches_counts_as_the_whole_image() -> None:
    layer = nn.Linear(144, 3)
    module = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=3)
    measured = NeuralCleanse(images=4, steps=10).measure(classifier, Request(clean=noise(4, SHAPE)))
    assert measured.details["norms"][1:] == [144, 144]
    assert measured.details["norms"][0] < 144  # all images are of it already: any mask does
    assert int(measured.suspicions.argmax()) == 0


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([8.0, 2.0, 8.0], [0.0, math.log(4), 0.0]),
        ([5.0, 5.0, 5.0, 5.0], [0.0] * 4),  # a median absolute deviation of 0 is no special case
        ([1.0, 4.0], [math.log(2), -math.log(2)]),
        ([0.0, 1.0, 1.0], [math.log(100), 0.0, 0.0]),  # a mask of nothing counts as 0.01 pixels
    ],
)
def test_smallness_by_hand(norms: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(smallness(torch.tensor(norms)), torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_the_score_knows_no_unit() -> None:
    norms = torch.rand(7, generator=torch.Generator().manual_seed(2)) + 0.5
    torch.testing.assert_close(smallness(norms * 13), smallness(norms))


@pytest.mark.parametrize(("count", "size", "shape"), [(16, 4, (4, 4)), (7, 3, (2, 3)), (2, 4, (1, 2)), (1, 1, (1, 1))])
def test_images_in_parts(count: int, size: int, shape: tuple[int, int]) -> None:
    images = noise(count, SHAPE)
    parts = in_parts(images, size)
    assert parts.shape == (*shape, *SHAPE)
    assert torch.equal(parts.flatten(0, 1), images[: shape[0] * shape[1]])
