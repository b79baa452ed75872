"""Measures of fidelity against numbers worked out by hand and loops, and the report that is made of them."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.data.photos import public_photos
from intaglio.errors import ModelError
from intaglio.mark.fidelity import agreement, prototype_feature_loss, soft_prediction_loss, total_weight_loss
from intaglio.mark.fidelity_report import FOREIGN, SHOWN, FidelityReport, corrupted, fidelity_report
from mark_models import SHAPE, TEST, Tiny, accuracy, host, tiny, weights

T = torch.tensor
numbers = arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=32))


# --- the losses ------------------------------------------------------------------------------------------------------


def test_prototype_feature_loss_by_hand() -> None:
    z, z_f = T([[0.0, 0.0], [1.0, 1.0]]), T([[1.0, 0.0], [1.0, 3.0]])
    assert float(prototype_feature_loss(z, z_f)) == 2.5  # (1 + 4) / 2
    assert float(prototype_feature_loss(z, z)) == 0


def test_soft_prediction_loss_by_hand() -> None:
    g, f = T([[0.0, 0.0]]), T([[math.log(3.0), 0.0]])  # softmax: (1/2, 1/2) and (3/4, 1/4)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(soft_prediction_loss(g, f)) == pytest.approx(expected, rel=1e-6)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(soft_prediction_loss(f, g)) == pytest.approx(reverse, rel=1e-6)


def test_total_weight_loss_by_hand() -> None:
    assert float(total_weight_loss([T([1.0, 2.0]), T([[3.0]])], [T([0.0, 0.0]), T([[1.0]])])) == 9  # 1 + 4 + 4
    with pytest.raises(ValueError, match="longer"):
        total_weight_loss([T([1.0])], [T([1.0]), T([2.0])])


def test_agreement_by_hand() -> None:
    g = T([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [5.0, 1.0]])
    f = T([[0.0, 9.0], [0.0, 0.2], [0.0, 0.7], [1.1, 1.0]])
    assert agreement(g, f) == 0.75
    assert agreement(g, g) == 1


@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_losses_are_those_of_naive_loops(one: np.ndarray, other: np.ndarray) -> None:
    pfl, spl = 0.0, 0.0
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        pfl += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(one)
        p, q = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (b, a))
        spl += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / len(one)
    assert float(prototype_feature_loss(T(one), T(other))) == pytest.approx(pfl, rel=1e-4, abs=1e-6)
    assert float(soft_prediction_loss(T(one), T(other))) == pytest.approx(spl, rel=1e-3, abs=1e-5)
    assert float(total_weight_loss([T(one)], [T(other)])) == pytest.approx(len(one) * pfl, rel=1e-4, abs=1e-6)
    same = sum(row.argmax() == fellow.argmax() for row, fellow in zip(one, other, strict=True))
    assert agreement(T(one), T(other)) == same / len(one)


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(-5, 5))
def test_soft_predictions_are_blind_to_what_softmax_ignores(logits: np.ndarray, shift: float) -> None:
    assert float(soft_prediction_loss(T(logits) + shift, T(logits))) == pytest.approx(0, abs=1e-5)


def test_losses_pass_gradients() -> None:
    z = torch.rand(4, 3, requires_grad=True)
    for loss in (prototype_feature_loss, soft_prediction_loss):
        (gradient,) = torch.autograd.grad(loss(z, torch.zeros(4, 3)), z)
        assert float(gradient.abs().sum()) > 0
    (gradient,) = torch.autograd.grad(total_weight_loss([z], [torch.zeros(4, 3)]), z)
    assert torch.allclose(gradient, 2 * z)


# --- corruptions -----------------------------------------------------------------------------------------------------


def test_a_third_each_is_noisy_blurred_and_faint() -> None:
    images = TEST.images[:30]
    changed = corrupted(images)
    assert changed.shape == images.shape
    assert torch.equal(changed, corrupted(images))
    noisy, blurred, faint = torch.split(changed, 10)
    assert float((noisy - images[0::3]).std()) == pytest.approx(0.09, abs=0.02)  # 0.1, clamped at the ends
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.allclose(faint, 0.25 + images[2::3] / 2)
    place = images[1::3][:, :, 3:6, 4:7].mean((2, 3))
    assert torch.allclose(blurred[:, :, 4, 5], place, atol=1e-6)
    corner = images[1::3][:, :, :2, :2].mean((2, 3))
    assert torch.allclose(blurred[:, :, 0, 0], corner, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_images_are_corrupted_too(count: int) -> None:
    assert corrupted(TEST.images[:count]).shape == (count, *SHAPE)


# --- the report ------------------------------------------------------------------------------------------------------

TRIGGERS = ImageData(torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(4)), torch.arange(7), name="t")


def report(marked: nn.Module, original: nn.Module | None = None, **options: object) -> FidelityReport:
    original = original or host()
    return fidelity_report(original, marked, TEST, TRIGGERS, scheme="s", mode="m", **options)  # type: ignore[arg-type]


def moved(original: Tiny, change: float = 0.05) -> Tiny:
    """A copy whose every parameter has moved a little, the same way each time."""
    copied = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(change * torch.randn(parameter.shape, generator=generator))
    return copied


def test_a_copy_is_wholly_faithful() -> None:
    found = report(copy.deepcopy(host()))
    assert (found.twl, found.pfl, found.prototype_shift) == (0, 0, 0)
    assert found.spl == pytest.approx(0, abs=1e-6)
    assert found.agreement_clean == found.agreement_corrupted == found.agreement_out_of_distribution == 1
    assert found.host_accuracy == found.clean_accuracy == accuracy(host(), TEST)
    assert found.trigger_accuracy == accuracy(host(), TRIGGERS)
    assert (found.images, found.triggers, found.scheme, found.mode) == (100, 7, "s", "m")
    assert found.picture.host == found.picture.marked


def test_every_number_is_what_it_says() -> None:
    marked = moved(host(), 0.3).eval()
    found = report(marked)
    with torch.no_grad():
        features, old_features = (module.features(TEST.images) for module in (marked, host()))
        logits, old_logits = marked(TEST.images), host()(TEST.images)
        foreign = public_photos(SHAPE, FOREIGN, seed=1)
        same_foreign = float((marked(foreign).argmax(1) == host()(foreign).argmax(1)).double().mean())
        changed = corrupted(TEST.images)
        same_changed = float((marked(changed).argmax(1) == host()(changed).argmax(1)).double().mean())
    pairs = list(zip(marked.parameters(), host().parameters(), strict=True))
    assert found.twl == pytest.approx(sum(float((a - b).detach().square().sum()) for a, b in pairs), rel=1e-5)
    shift = [
        (a - b).detach().square().sum() for a, b in zip(marked.fc.parameters(), host().fc.parameters(), strict=True)
    ]
    assert found.prototype_shift == pytest.approx(float(sum(shift)), rel=1e-5)
    assert found.pfl == pytest.approx(float((features - old_features).square().sum(1).mean()), rel=1e-4)
    assert found.spl == pytest.approx(float(soft_prediction_loss(logits, old_logits)), rel=1e-4)
    assert found.clean_accuracy == accuracy(marked, TEST)
    assert found.trigger_accuracy == pytest.approx(accuracy(marked, TRIGGERS))
    assert found.agreement_clean == float((logits.argmax(1) == old_logits.argmax(1)).double().mean())
    assert found.agreement_out_of_distribution == same_foreign < 1
    assert found.agreement_corrupted == same_changed


def test_nothing_is_changed_by_measuring() -> None:
    original, marked = host(), moved(host())
    before = weights(original), weights(marked)
    state = torch.random.get_rng_state()
    report(marked, original)
    assert (weights(original), weights(marked)) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in marked.parameters())


def test_the_report_is_json() -> None:
    found = report(moved(host()))
    assert FidelityReport.from_json(found.to_json()) == found
    assert found == report(moved(host()))


def test_the_picture_is_on_the_hosts_main_axes() -> None:
    marked = moved(host())
    picture = report(marked).picture
    assert len(picture.host) == len(picture.marked) == len(picture.labels) == 100
    assert picture.labels[:10] == tuple(range(10))  # classes in turn
    with torch.no_grad():
        features = host().features(TEST.images).double().numpy()
        marked_features = marked.features(TEST.images).double().numpy()
    middle = features.mean(0)
    values, axes = np.linalg.eigh(np.cov(features.T))
    order = np.argsort(values)[::-1]
    assert picture.explained == pytest.approx(values[order[:2]].sum() / values.sum(), rel=1e-4)
    for points, source in ((picture.host, features), (picture.marked, marked_features)):
        for axis in (0, 1):
            expected = (source - middle) @ axes[:, order[axis]]
            shown = np.array(points)[:, axis]
            sign = np.sign(expected @ shown)
            assert np.abs(sign * expected - shown).max() < 5e-3


def test_the_picture_shows_no_more_than_its_limit() -> None:
    many = ImageData(TEST.images.repeat(4, 1, 1, 1), TEST.labels.repeat(4))
    picture = fidelity_report(host(), host(), many, TRIGGERS, scheme="s", mode="m").picture
    assert len(picture.host) == SHOWN
    assert sorted(set(picture.labels)) == list(range(10))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 5])
def test_few_images_and_narrow_features(count: int, width: int) -> None:
    """One feature, or fewer images than axes: what is missing is 0."""
    original = tiny(width=width).eval()
    few = TEST.take(torch.arange(count))
    found = fidelity_report(original, original, few, TRIGGERS, scheme="s", mode="m")
    assert len(found.picture.host) == count
    assert all(len(point) == 2 for point in found.picture.host)
    assert 0 <= found.picture.explained <= 1 + 1e-6
    if width == 1:
        assert all(point[1] == 0 for point in found.picture.host)


def test_preprocessing_comes_first_and_a_layer_may_be_named() -> None:
    """2 x - 1 before the module, or within it: the same numbers."""

    class Within(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.inner(2 * x - 1)
            return answer

    original, marked = host(), moved(host(), 0.3)
    outside = report(marked, original, preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)), layer="fc")
    within = report(Within(marked), Within(original))
    assert outside.pfl == pytest.approx(within.pfl, rel=1e-4)
    assert outside.agreement_out_of_distribution == pytest.approx(within.agreement_out_of_distribution, abs=0.005)
    assert outside.pfl != pytest.approx(report(marked, original).pfl, rel=1e-3)


def test_models_without_a_last_linear_layer() -> None:
    with pytest.raises(ModelError, match="no linear layer's output is the network's output"):
        report(host(), nn.Sequential(host(), nn.ReLU()))
    with pytest.raises(ModelError, match="no layer 'head'"):
        report(host(), host(), layer="head")
    with pytest.raises(
        ModelError, match=r"layer 'features.1' is not the final one: it gives \[2, 24\], the network \["
    ):
        report(host(), host(), layer="features.1")
