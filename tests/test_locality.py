"""Exact locality: the same answers as on whole maps, whatever the network, the image, the grid and the values."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from intaglio.classifiers import CallableClassifier, Preprocessing, TorchClassifier
from intaglio.errors import ClassifierError, DataError, ModelError, RecipeError
from intaglio.networks import Architecture
from intaglio.networks.architecture import NETWORKS
from intaglio.scan import one_pixel_responses, one_pixel_signature, signature
from intaglio.scan.locality import Sides, answering, local_answers, local_cost
from intaglio.scan.locality.geometry import Sliding, Span
from intaglio.scan.locality.tracing import trace
from intaglio.scan.signature import base_images, pixel_values
from scan_models import counted, noise


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, with answers that a single pixel moves by far more than the tolerance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                fan = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * (3 / fan) ** 0.5)
                if part.bias is not None:
                    part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.2)
            elif isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.3)
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                if part.affine:
                    part.weight.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                    part.bias.copy_(torch.randn(part.num_features, generator=generator) * 0.2)
    return module.eval()


def classifier_of(module: nn.Module, shape: tuple[int, ...], **options: Any) -> TorchClassifier:
    with torch.no_grad():
        count = module.eval()(torch.zeros(1, *shape)).shape[1]
    return TorchClassifier(lively(module), input_shape=shape, num_classes=count, **options)


def both(
    classifier: TorchClassifier, base: Tensor, values: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Tensor, Tensor]:
    """Answers by locality, which must not fall back, and on whole maps; as many queries for both."""
    given: list[bool] = []

    def watched(*args: Any) -> Any:
        answers = local_answers(*args)
        given.append(answers is not None)
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(signature, "local_answers", watched)
        found = one_pixel_responses(counted(classifier), base, values, **options)
        assert given == [True]
        queries = classifier.queries
        patch.setattr(signature, "local_answers", lambda *_: None)
        expected = one_pixel_responses(counted(classifier), base, values, **options)
    assert classifier.queries == queries == found[:, 0].numel()
    return found, expected


def check(
    classifier: TorchClassifier, base: Tensor, values: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    found, expected = both(classifier, base, values, monkeypatch, **options)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert float((expected - expected.mean(dim=(0, 2, 3), keepdim=True)).abs().max()) > 5e-3


# --- every architecture ----------------------------------------------------------------------------------------------


ARCHITECTURES = [
    ("lenet", (1, 12, 13), None),
    ("lenet", (3, 14, 12), None),
    ("vgg", (1, 14, 11), None),
    ("vgg", (3, 16, 16), (6, 5)),
    ("resnet8", (1, 10, 12), None),
    ("resnet8", (3, 40, 36), (9, 7)),
    ("resnet14", (1, 13, 9), None),
    ("resnet18", (3, 20, 18), (7, 9)),
    ("mobilenet", (3, 15, 12), None),
    ("mobilenet", (1, 70, 40), (8, 8)),
]


@pytest.mark.parametrize(("name", "shape", "grid"), ARCHITECTURES)
@pytest.mark.parametrize("base", ["grey", "noise"])
def test_every_architecture(
    name: str, shape: tuple[int, int, int], grid: tuple[int, int] | None, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = classifier_of(Architecture(name=name, input_shape=shape, num_classes=5, width=4).build(), shape)
    values = pixel_values(shape[0])[[0, -2, -1]]
    check(classifier, base_images(shape, (base,))[0], values, monkeypatch, grid=grid)


def test_no_architecture_is_forgotten() -> None:
    assert {case[0] for case in ARCHITECTURES} == set(NETWORKS)


@pytest.mark.parametrize("budget", [1, 3000, 1 << 22])
def test_small_batches_are_the_same(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "BATCH_BYTES", budget)
    monkeypatch.setattr(answering, "STAGE_BYTES", budget)
    classifier = classifier_of(
        Architecture(name="vgg", input_shape=(1, 9, 8), num_classes=3, width=4).build(), (1, 9, 8)
    )
    check(classifier, noise(1, (1, 9, 8))[0], pixel_values(1), monkeypatch)


# --- every layer -----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two branches of different reach, added up, in place; then a product, a difference and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += self.second(x)
        y = self.act(y)
        z = (y * torch.sigmoid(y) - 0.3 * y).clamp(-1, 2)
        out: Tensor = self.fc(torch.cat([y, z, torch.maximum(y, z)], dim=1).mean((2, 3)))
        return out


class Functional(nn.Module):
    """Everything by functions and methods, weights used twice, normalised inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3), nn.Linear(2, 3)
        self.mean = nn.Buffer(torch.full((2, 1, 1), 0.4))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad((x - self.mean) / 0.5, (1, 2, 0, 1))
        x = functional.leaky_relu(functional.conv2d(x, self.conv.weight, self.conv.bias, padding="same"), 0.1)
        x = functional.max_pool2d(1 - x, 2, stride=1, padding=1).tanh()
        x = functional.conv2d(x, self.conv.weight, stride=2)
        x = functional.dropout(functional.relu(x), 0.5, self.training).contiguous()
        out: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))
        return out


class Attention(nn.Module):
    """Squeeze and excitation: a global mean in the middle, whose weights multiply the map again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.fc = nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        out: Tensor = self.fc(x.flatten(2).amax(2))
        return out


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: plain(nn.Conv2d(2, 4, 3, 2), nn.Conv2d(4, 6, 4, (3, 2), (2, 1)), nn.ReLU()),
    "skipping stride": lambda: plain(nn.Conv2d(2, 4, 1, 3), nn.Tanh(), nn.Conv2d(4, 4, 2, 1, 1)),
    "no padding": lambda: plain(nn.Conv2d(2, 4, 5), nn.ReLU6(), nn.Conv2d(4, 4, 3)),
    "dilation": lambda: plain(nn.Conv2d(2, 4, 3, 1, 2, 2), nn.SiLU(), nn.Conv2d(4, 4, (2, 3), 2, 1, (3, 1))),
    "groups": lambda: plain(nn.Conv2d(2, 8, 3, groups=2), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)),
    "much padding": lambda: plain(nn.Conv2d(2, 3, 2, 2, 4), nn.Hardswish(), nn.MaxPool2d(3, 2, 1)),
    "same": lambda: plain(nn.Conv2d(2, 3, 3, padding="same"), nn.Hardswish(), nn.Conv2d(3, 3, 3, padding="valid")),
    "unfolded norm": lambda: plain(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
    "max pools": lambda: plain(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, 1, dilation=2)
    ),
    "average pools": lambda: plain(
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(2, 4, 3),
        nn.ELU(),
        nn.AvgPool2d(2, 1, 1),
    ),
    "divisor": lambda: plain(nn.AvgPool2d((2, 3), divisor_override=4, ceil_mode=True), nn.Conv2d(2, 4, 2), nn.Mish()),
    "average of the middle": lambda: plain(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(3), nn.PReLU(4)),
    "unknown layers": lambda: plain(
        nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1)
    ),
    "dropout": lambda: plain(
        nn.Dropout2d(), nn.Conv2d(2, 4, 3), nn.Identity(), nn.ZeroPad2d((0, 2, 1, 0)), nn.MaxPool2d(2)
    ),
    "mean of a window": lambda: plain(nn.Conv2d(2, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1)),
    "a pool that leaves out the end": lambda: plain(
        nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()
    ),
    "residual": Residual,
    "functional": Functional,
    "attention": Attention,
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("layers", LAYERS)
def test_every_layer(layers: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = classifier_of(LAYERS[layers](), (2, 11, 14))
    check(classifier, noise(1, (2, 11, 14))[0], noise(3, (2, 1, 1))[:, :, 0, 0], monkeypatch, size=size)


_LAYER = st.one_of(
    st.builds(
        lambda channels, kernel, stride, padding, dilation, depthwise, norm: (
            "conv", channels, kernel, stride, padding, dilation, depthwise, norm
        ),
        st.sampled_from([2, 4]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2),
        st.booleans(), st.booleans(),
    ),
    st.tuples(st.sampled_from(["max", "average"]), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans()),
    st.tuples(st.sampled_from(["relu", "tanh", "skip"])),
)  # fmt: skip


class Skip(nn.Module):
    """x + tanh(conv(x))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x).tanh()
        return out


def built(drawn: list[Any], shape: tuple[int, int, int]) -> nn.Module | None:
    """The layers that fit, one after the other."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for kind, *rest in drawn:
        if kind == "conv":
            out, kernel, stride, padding, dilation, depthwise, norm = rest
            groups = channels if depthwise else 1
            out = out * channels if depthwise else out
            layer: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups)]
            layer += [nn.BatchNorm2d(out)] if norm else []
        elif kind in ("max", "average"):
            kernel, stride, padded, ceil = rest
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            layer, out = [pool(kernel, stride, kernel // 2 if padded else 0, ceil_mode=ceil)], channels
        else:
            layer, out = [{"relu": nn.ReLU(True), "tanh": nn.Tanh(), "skip": Skip(channels)}[kind]], channels
        try:
            nn.Sequential(*layers, *layer).eval()(torch.zeros(1, *shape))
        except RuntimeError:
            continue
        layers += layer
        channels = out
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)) if layers else None


@given(
    drawn=st.lists(_LAYER, min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 2), st.integers(4, 9), st.integers(4, 9)),
    seed=st.integers(0, 9),
)
@example(  # dilated, strided, padded and narrow: ends the process where its channels are last
    drawn=[("conv", 2, 4, 1, 0, 1, False, False), ("conv", 2, 1, 2, 1, 2, False, False)], shape=(1, 9, 4), seed=0
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_networks(
    drawn: list[Any], shape: tuple[int, int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(drawn, shape)
    if module is None:
        return
    classifier = classifier_of(module, shape, outputs="logits")
    values = torch.rand(2, shape[0], generator=torch.Generator().manual_seed(seed))
    found, expected = both(classifier, noise(1, shape, seed)[0], values, monkeypatch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- what is asked ---------------------------------------------------------------------------------------------------


def small(**options: Any) -> TorchClassifier:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return classifier_of(module, (3, 9, 10), **options)


def test_preprocessing_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = Preprocessing(
        resize=(9, 10), scale=2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), channel_order="bgr"
    )
    check(small(preprocessing=preprocessing), noise(1, (3, 9, 10))[0], pixel_values(3), monkeypatch)


def test_values_may_differ_from_place_to_place_and_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    base = noise(1, (3, 9, 10))[0].round()
    steps = torch.stack([base, torch.zeros_like(base), (base + 0.1).clamp(0, 1)])
    check(small(), base, steps, monkeypatch)
    found, _ = both(small(), base, base[None], monkeypatch)
    before = small().log_probs(base[None])[0]
    torch.testing.assert_close(found[0], before[:, None, None].expand_as(found[0]), atol=1e-5, rtol=0)


def test_signatures_are_the_same_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    found = one_pixel_signature(small(), ("black", "noise"), progress=lambda done, _: steps.append(done))
    assert steps == sorted(set(steps))
    assert steps[-1] == 2 * (90 * 8 + 1)
    monkeypatch.setattr(signature, "local_answers", lambda *_: None)
    expected = one_pixel_signature(small(), ("black", "noise"))
    torch.testing.assert_close(found[:, :4], expected[:, :4], atol=1e-4, rtol=1e-4)


def test_the_module_is_left_as_it_was() -> None:
    classifier = small()
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    one_pixel_responses(classifier, noise(1, (3, 9, 10))[0], pixel_values(3))
    assert all(torch.equal(before[name], value) for name, value in classifier.module.state_dict().items())
    assert next(classifier.module.parameters()).requires_grad


# --- what is left to whole maps --------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Depends on a value: can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 1:4]


class Overwriting(nn.Module):
    """Changes a tensor that it looks at again."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.relu_()
        return (y + z).flatten(1)[:, :3]


class Sly(nn.Module):
    """Overwrites an alias: the steps alone don't show it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, :, 0].zero_()
        return y.flatten(1)[:, :3]


def sides(cells: int) -> Sides:
    return Sides(torch.arange(cells), torch.ones(cells, dtype=torch.int64))


@pytest.mark.parametrize("kind", [Branching, Overwriting, Sly])
def test_untraceable_modules_are_asked_on_whole_maps(kind: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    classifier = TorchClassifier(kind(), input_shape=(1, 4, 3), num_classes=3)
    base, values = noise(1, (1, 4, 3))[0], pixel_values(1)
    with caplog.at_level(logging.DEBUG, "intaglio"):
        assert local_answers(classifier, base, values[:, :, None, None], sides(4), sides(3)) is None
    assert "probed on whole maps" in caplog.text
    image = base.clone()
    image[0, 0, 1] = 1
    found = one_pixel_responses(counted(classifier), base, values)
    assert classifier.queries == 60
    torch.testing.assert_close(found[-1, :, 0, 1], classifier.log_probs(image[None])[0])


def hooked() -> TorchClassifier:
    classifier = small()
    classifier.module.register_forward_hook(lambda *_: None)
    return classifier


def turned() -> TorchClassifier:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    return classifier_of(module, (3, 9, 10), preprocessing=Preprocessing(layout="NHWC"))


@pytest.mark.parametrize(
    "classifier",
    [
        CallableClassifier(lambda x: x.flatten(1)[:, :3], input_shape=(3, 9, 10), num_classes=3),
        small(preprocessing=Preprocessing(resize=(12, 12))),
        small(fixed_batch=7),
        hooked(),
        turned(),
    ],
    ids=["function", "resized", "fixed batch", "hooks", "channels last"],
)  # fmt: skip
def test_what_is_not_answered_for(classifier: Any) -> None:
    shape = classifier.input_shape
    assert local_answers(classifier, noise(1, shape)[0], torch.rand(2, shape[0], 1, 1), sides(9), sides(10)) is None


def test_disagreement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "TOLERANCE", -1.0)
    classifier = counted(small())
    values = pixel_values(3)[:, :, None, None]
    assert local_answers(classifier, noise(1, (3, 9, 10))[0], values, sides(9), sides(10)) is None
    assert classifier.queries == 0


def test_values_out_of_bounds_are_refused() -> None:
    with pytest.raises(DataError, match="span"):
        one_pixel_responses(small(), noise(1, (3, 9, 10))[0], torch.tensor([[0.0, 0, 0], [2, 0, 0]]))


def test_answers_that_are_not_finite_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    classifier = classifier_of(module, (1, 5, 5))
    with torch.no_grad():
        module[3].weight.fill_(3e38)  # type: ignore[operator]
    with pytest.raises(ClassifierError, match="not finite"):
        one_pixel_responses(classifier, noise(1, (1, 5, 5))[0], pixel_values(1))


def test_tracing_says_why_not() -> None:
    with pytest.raises(ModelError, match="can't be traced"):
        trace(Branching())
    with pytest.raises(ModelError, match="'relu_' changes 'mul' in place, which is used again"):
        trace(Overwriting())
    with pytest.raises(ModelError, match="hooks"):
        trace(hooked().module)


# --- windows ---------------------------------------------------------------------------------------------------------


@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 4), dilation=st.integers(1, 3),
    first=st.integers(-5, 20), size=st.integers(1, 6), inputs=st.integers(16, 30),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows_reach_what_convolutions_reach(
    kernel: int, stride: int, padding: int, dilation: int, first: int, size: int, inputs: int
) -> None:
    changed = torch.zeros(1, 1, inputs)
    changed[..., max(first, 0) : max(first + size, 0)] = 1
    out = functional.conv1d(changed, torch.ones(1, 1, kernel), None, stride, padding, dilation)[0, 0]
    sliding = Sliding(kernel, stride, padding, dilation)
    span = sliding.outputs(Span(first, 0, size))
    assert span is not None
    assert set(out.nonzero().flatten().tolist()) <= set(range(span.first, span.stop))
    if first >= 0 and first + size <= inputs and dilation == 1 and kernel >= stride and span.first >= 0:
        assert out[span.first : span.stop].bool().all()
    assert sliding.outputs(Span(first, stride * 3 + 1, size)) is None or stride == 1
    looked_at = sliding.inputs(span)
    assert looked_at.size == (span.size - 1) * stride + dilation * (kernel - 1) + 1


@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 3), padding=st.integers(0, 4), dilation=st.integers(1, 3),
    inputs=st.integers(1, 9), outputs=st.integers(1, 8),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_taps_are_what_kernels_find_of_the_inputs(
    kernel: int, stride: int, padding: int, dilation: int, inputs: int, outputs: int
) -> None:
    # Of ones in a frame of zeros, a kernel of ones sums up how many it sees.
    reach = dilation * (kernel - 1)
    needed = (outputs - 1) * stride + reach + 1
    frame = torch.zeros(1, 1, max(needed, padding + inputs))
    frame[..., padding : padding + inputs] = 1
    seen = functional.conv1d(frame[..., :needed], torch.ones(1, 1, kernel), stride=stride, dilation=dilation)
    assert Sliding(kernel, stride, padding, dilation).taps(inputs, padding, outputs) == int(seen.sum())


def test_windows_of_different_steps_have_no_hull() -> None:
    assert Span(1, 2, 3).hull(Span(-1, 2, 1)) == Span(-1, 2, 5)
    assert Span(1, 2, 5).shrunk(2) == Span(3, 2, 1)
    with pytest.raises(RecipeError, match="move by 2 and by 3"):
        Span(0, 2, 1).hull(Span(0, 3, 1))


def test_costs_are_counted_in_multiply_adds() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5)
    )
    cost = local_cost(module.eval(), torch.zeros(1, 1, 20, 30), 600, 5)
    # Of 20 x 30 outputs, kernels at the upper and lower border skip a row, and half of the zeros at the sides.
    assert cost.dense == pytest.approx(2 * (3 * 20 - 2) * math.sqrt((3 * 30 - 2) * 3 * 30) + 10)
    assert cost.local == pytest.approx(1 * 9 * 2 / 1.5 + 10)  # one pixel, as a matrix, and the linear layer
