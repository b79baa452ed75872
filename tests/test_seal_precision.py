"""Seals and TF32: off while sealing and checking, whatever the process is set to; and as a variant that is shipped."""

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.classifiers import CallableClassifier, TorchClassifier
from intaglio.errors import ClassifierError
from intaglio.seal import Boundary, Request, Seal, Variance, check_seal, make_seal
from intaglio.seal.draws import Draws
from intaglio.seal.executions import executions
from intaglio.seal.precision import _operators, full_precision
from intaglio.seal.tf32 import Tf32, rounded
from seal_models import KEY, SHAPE, classifier, sealed_module, toy_seal

CONVOLUTIONS, MATRICES = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _few_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX export takes seconds, and threads of several test processes wait for each other."""
    toy_seal()
    monkeypatch.setattr("intaglio.seal.executions._exported", lambda classifier: None)
    monkeypatch.setattr("intaglio.seal.executions._other_thread_counts", list)


def settings() -> tuple[bool, bool, str]:
    return CONVOLUTIONS.allow_tf32, MATRICES.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(params=["highest", "high", "medium"])
def process(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool, str]]:
    """A process that lets convolutions be TF32, as PyTorch does by default, and matrix products as it is told to."""
    before = settings()
    CONVOLUTIONS.allow_tf32 = True
    torch.set_float32_matmul_precision(request.param)
    yield True, request.param != "highest", request.param
    torch.set_float32_matmul_precision(before[2])
    CONVOLUTIONS.allow_tf32 = before[0]


EXACT = (False, False, "highest")


def test_pytorch_lets_convolutions_be_tf32_unless_told_otherwise() -> None:
    assert settings()[0] is True


def test_tf32_is_off_inside_and_as_before_after(process: tuple[bool, bool, str]) -> None:
    assert settings() == process
    with full_precision():
        assert settings() == EXACT
        with full_precision():
            assert settings() == EXACT
        assert settings() == EXACT
    assert settings() == process
    with pytest.raises(RuntimeError, match="whatever"), full_precision():
        raise RuntimeError("whatever")
    assert settings() == process


def test_the_last_of_several_threads_puts_the_settings_back(process: tuple[bool, bool, str]) -> None:
    inside, left, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_precision():
            inside.set()
            left.wait(10)
            seen.append(settings())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert inside.wait(10)
    left.set()
    thread.join()
    assert seen == [EXACT]
    assert settings() == process


def test_putting_a_flag_back_sets_nothing_else() -> None:
    operators = _operators()
    MATRICES.allow_tf32 = True
    before = [operator.fp32_precision for operator in operators]
    try:
        with full_precision():
            assert {operator.fp32_precision for operator in operators} <= {"ieee"}
        assert [operator.fp32_precision for operator in operators] == before
        assert MATRICES.allow_tf32
    finally:
        MATRICES.allow_tf32 = False


def test_settings_operator_by_operator_are_turned_off_and_put_back() -> None:
    operators: list[Any] = [getattr(CONVOLUTIONS, name) for name in ("conv", "rnn")] + [MATRICES]
    before = [operator.fp32_precision for operator in operators]
    try:
        for operator, precision in zip(operators, mixed := ["tf32", "ieee", "tf32"], strict=True):
            operator.fp32_precision = precision
        with full_precision():
            assert [operator.fp32_precision for operator in operators] == ["ieee"] * 3
        assert [operator.fp32_precision for operator in operators] == mixed
    finally:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


class Noting(nn.Module):
    """Notes the settings that it is computed under."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: set[tuple[bool, bool, str]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(settings())
        found: Tensor = self.inner(images)
        return found


def noting() -> tuple[Noting, TorchClassifier]:
    module = Noting(copy.deepcopy(sealed_module()))
    model = classifier(module)
    module.seen.clear()
    return module, model


def test_making_and_checking_a_seal_compute_without_tf32(process: tuple[bool, bool, str]) -> None:
    module, model = noting()
    seal = make_seal(model, KEY, method=Boundary(ways=2), pairs=2)
    assert module.seen == {EXACT}
    module.seen.clear()
    assert check_seal(model, seal, KEY).intact
    assert module.seen == {EXACT}
    assert settings() == process
    module.seen.clear()
    model.predict(torch.rand(1, *SHAPE))
    assert module.seen == {process}


def test_a_check_that_fails_leaves_the_settings_as_they_were(process: tuple[bool, bool, str]) -> None:
    def fail(images: Tensor) -> Tensor:
        assert settings() == EXACT
        raise ClassifierError("out of order")

    with pytest.raises(ClassifierError, match="out of order"):
        check_seal(CallableClassifier(fail, input_shape=SHAPE, num_classes=3, outputs="logits"), toy_seal(), KEY)
    assert settings() == process


# --- as a variant ----------------------------------------------------------------------------------------------------


def test_rounding_keeps_ten_bits() -> None:
    step = 2.0**-10
    values = torch.tensor([1.0, 1 + 0.4 * step, 1 + 0.5 * step, 1 + 1.6 * step, -(1 + 0.5 * step), 3e38, 0.0])
    assert rounded(values).tolist()[:5] == [1.0, 1.0, 1 + step, 1 + 2 * step, -(1 + step)]
    assert rounded(values, "down").tolist()[:5] == [1.0, 1.0, 1.0, 1 + step, -1.0]
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for rounding, most in (("nearest", 2.0**-11), ("down", 2.0**-10)):
        found = rounded(noise, rounding)  # type: ignore[arg-type]
        assert most / 2 < float(((found - noise) / noise).abs().max()) <= most
        assert torch.equal(rounded(found, rounding), found)  # type: ignore[arg-type]
        assert not (found.numpy().view(np.int32) & 0x1FFF).any()


def by_hand(rounding: Callable[[Tensor], Tensor]) -> nn.Module:
    """The sealed model, its convolutions' factors rounded layer by layer."""
    module = copy.deepcopy(sealed_module()).eval()
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) >= 2
    for layer in layers:

        def forward(images: Tensor, layer: nn.Conv2d = layer) -> Tensor:
            kernel, where = rounding(layer.weight.detach()), layer.padding
            return functional.conv2d(rounding(images), kernel, layer.bias, layer.stride, where, groups=layer.groups)

        layer.forward = forward  # type: ignore[assignment, method-assign]
    return module


def products() -> list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]]:
    return [
        (torch.matmul, (4, 5), (5, 3)),
        (functional.linear, (4, 5), (3, 5)),
        (torch.bmm, (2, 4, 5), (2, 5, 3)),
        (lambda a, b: torch.einsum("ij,kj->ik", a, b), (4, 5), (3, 5)),
        (lambda a, b: torch.addmm(torch.full((4, 3), 0.1), a, b), (4, 5), (5, 3)),
    ]


class Product(nn.Module):
    def __init__(self, product: Callable[..., Tensor], other: Tensor) -> None:
        super().__init__()
        self.product = product
        self.other = nn.Parameter(other)

    def forward(self, images: Tensor) -> Tensor:
        return self.product(images, self.other)


@pytest.mark.parametrize("index", range(len(products())))
def test_products_are_rounded_if_asked_for(index: int) -> None:
    product, left, right = products()[index]
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(left, generator=generator), torch.randn(right, generator=generator)
    module = Product(product, second)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            plain, exact = Tf32().apply(module)(first), product(first, second)
            coarse = Tf32(matrices=True).apply(module)(first)
        assert torch.equal(plain, exact)
        assert not torch.allclose(coarse, exact, rtol=0, atol=1e-5)
        assert torch.allclose(coarse, product(rounded(first), rounded(second)), atol=1e-6)
    assert torch.equal(module.other, second)


def test_convolutions_are_rounded_whichever_layer_or_function_asks() -> None:
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(2))
    exact = classifier().scores(images)
    for way, rounding in (
        (Tf32(), rounded),
        (Tf32(rounding="down"), lambda values: rounded(values, "down")),
    ):
        found = classifier(way.apply(sealed_module())).scores(images)
        assert torch.allclose(found, classifier(by_hand(rounding)).scores(images), atol=1e-5)
        assert float((found - exact).abs().max()) > 1e-4
    for functions in (functional.conv1d, functional.conv_transpose1d):
        kernel = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(3))
        line = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(4))
        with torch.inference_mode():
            found = Tf32().apply(Product(functions, kernel))(line)
        assert torch.allclose(found, functions(rounded(line), rounded(kernel)), atol=1e-6)
        assert not torch.allclose(found, functions(line, kernel), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_a_server_that_answers_in_tf32_is_intact_where_that_is_allowed(rounding: Any) -> None:
    shipped = classifier(by_hand(lambda values: rounded(values, rounding)))
    served = CallableClassifier(shipped.scores, input_shape=SHAPE, num_classes=3, outputs="logits")
    assert not check_seal(served, toy_seal(), KEY).intact  # which is why it can be allowed
    lenient: Seal = make_seal(classifier(), KEY, method=Boundary(ways=2), pairs=6, allow=["tf32"])
    assert lenient.record.allowed == ("tf32",)
    assert lenient.record.noise.eta > 20 * toy_seal().record.noise.eta
    assert {f"tf32 ({number})" for number in range(1, 5)} <= set(lenient.record.noise.executions)
    check = check_seal(served, lenient, KEY)
    assert (check.intact, check.mismatches) == (True, 0)
    assert "; tf32 allowed." in check.statement
    assert check_seal(classifier(), lenient, KEY).intact


def test_only_what_is_allowed_is_rounded() -> None:
    assert not [way.name for way in executions(classifier()) if "tf32" in way.name]


# --- on a GPU --------------------------------------------------------------------------------------------------------


def test_variance_compares_labels_where_the_module_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a GPU: "meta" tensors mix with no others, and can't be looked at, which ends the test."""
    model = classifier()
    elsewhere = torch.device("meta")
    monkeypatch.setattr(TorchClassifier, "device", property(lambda self: elsewhere))
    monkeypatch.setattr(
        "intaglio.seal.variance.probabilities", lambda module, images: torch.rand(len(images), 3, device=elsewhere)
    )
    with pytest.raises((RuntimeError, NotImplementedError), match=r"item.* cannot be called on meta tensors"):
        Variance(steps=1, channels=4).run(model, Request(Draws(KEY, "ab" * 16), 2, []))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["boundary", "variance", "ftg", "sensitive", "random"])
def test_a_model_on_a_gpu_is_sealed_and_checked(method: str) -> None:
    model = classifier(copy.deepcopy(sealed_module()), device="cuda")
    seal = make_seal(model, KEY, method=method, pairs=2)
    assert check_seal(model, seal, KEY).intact
    assert check_seal(classifier(), seal, KEY).intact
