"""The layer that makes the logits, found in every network of ours and in awkward ones; its input and output."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.errors import ModelError
from intaglio.networks import NETWORKS, Architecture
from intaglio.networks.final_linear import final_linear, forward_with_features, penultimate
from intaglio.training import TrainingSettings, train

X = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network(name: str = "lenet") -> nn.Module:
    torch.manual_seed(1)
    return Architecture(name=name, input_shape=(1, 12, 12), num_classes=3, width=2).build()


class Small(nn.Module):
    """Layers `first` (144 -> 3), `second` (3 -> 3) and `spare`, used as `way` says."""

    def __init__(self, way: Callable[["Small", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.spare = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.first = nn.Linear(144, 3)
        self.drop = nn.Dropout(0.5)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x.flatten(1))


def twice_used(net: Small, x: Tensor) -> Tensor:
    """The first use of `second` makes the answer; its second use and the spare layer make nothing of it."""
    answer: Tensor = net.second(net.first(x))
    net.second(answer)
    net.spare(answer)
    return answer


def through_twice(net: Small, x: Tensor) -> Tensor:
    logits: Tensor = net.second(net.second(net.first(x)))
    return logits


WAYS: dict[str, tuple[Callable[[Small, Tensor], Tensor], str]] = {
    "plain": (lambda net, x: net.second(net.first(x)), "second"),
    "softmax": (lambda net, x: net.second(net.first(x)).softmax(1), "second"),
    "log-softmax": (lambda net, x: net.second(net.first(x).relu()).log_softmax(1), "second"),
    "dropout after": (lambda net, x: net.drop(net.second(net.first(x))), "second"),
    "defined in another order": (lambda net, x: net.first(x), "first"),
    "a later layer that has no say": (lambda net, x: (y := net.first(x), net.second(y))[0], "first"),
    "an earlier use is the answer": (twice_used, "second"),
    "used twice in a row": (through_twice, "second"),
    "one position of one": (lambda net, x: net.second(net.first(x)[:, None])[:, 0], "second"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours(name: str) -> None:
    module = network(name).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert final_linear(module, X) == "fc"
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    module.eval()
    logits, features = forward_with_features(module, "fc", X)
    assert torch.equal(logits, module(X))
    layer = module.get_submodule("fc")
    assert torch.allclose(layer(features), logits, atol=1e-6)


@pytest.mark.parametrize("case", WAYS)
def test_awkward_networks(case: str) -> None:
    way, name = WAYS[case]
    module = Small(way).eval()
    assert final_linear(module, X) == name
    logits, features = forward_with_features(module, name, X)
    layer = module.get_submodule(name)
    assert torch.allclose(layer(features), logits, atol=1e-6)
    answer = module(X)
    ends = (logits, logits.softmax(1), logits.log_softmax(1))
    assert any(torch.allclose(end, answer, atol=1e-6) for end in ends)


def test_modes_are_kept_part_by_part() -> None:
    module = Small(WAYS["dropout after"][0]).train()
    module.first.eval()
    assert final_linear(module, X) == "second"
    assert module.training
    assert module.drop.training
    assert not module.first.training


def test_in_training_mode_logits_are_those_before_dropout() -> None:
    module = Small(WAYS["dropout after"][0]).train()
    logits, _ = forward_with_features(module, "second", X)
    expected = module.second(module.first(X.flatten(1)))
    assert torch.allclose(logits, expected, atol=1e-6)


def test_a_bare_layer_is_its_own_last() -> None:
    layer = nn.Linear(4, 3)
    features = torch.rand(2, 4)
    assert final_linear(layer, features) == ""
    assert torch.equal(forward_with_features(layer, "", features)[1], features)


def test_logits_and_features_are_differentiable() -> None:
    module = network("resnet8")
    images = X.clone().requires_grad_()
    logits, features = forward_with_features(module, "fc", images)
    for value in (logits, features):
        (gradient,) = torch.autograd.grad(value.square().sum(), images, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    weight = module.get_parameter("conv1.weight")
    (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.arange(5) % 3) + features.square().mean(), weight)
    assert float(gradient.abs().sum()) > 0


def test_hooks_are_removed_even_after_an_error() -> None:
    module = network()
    layer = module.get_submodule("fc")
    with pytest.raises(RuntimeError):
        forward_with_features(module, "fc", torch.rand(2, 7, 12, 12))
    with pytest.raises(ModelError, match=r"the network can't answer inputs \[2, 7, 12, 12\]"):
        final_linear(module, torch.rand(2, 7, 12, 12))
    final_linear(module, X)
    with penultimate(module, "fc"):
        pass
    assert all(not part._forward_hooks for part in module.modules())
    assert isinstance(layer, nn.Linear)


def test_features_of_every_call() -> None:
    module = Small(through_twice).eval()
    with penultimate(module, "second") as features:
        module(X)
        module(X[:2])
    assert [len(entry) for entry in features] == [5, 5, 2, 2]
    assert torch.allclose(module.second(features[0]), features[1], atol=1e-6)
    module(X)
    assert len(features) == 4


# --- wrappers --------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.inner(2 * x)
        return answer


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (nn.DataParallel, "module.fc"),
        (Wrapper, "inner.fc"),
        (lambda module: nn.Sequential(module, nn.Softmax(dim=1)), "0.fc"),
        (lambda module: Wrapper(nn.Sequential(nn.Sequential(module), nn.Identity())), "inner.0.0.fc"),
    ],
)
def test_inside_wrappers(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    wrapped = wrap(network("vgg")).eval()
    assert final_linear(wrapped, X) == name
    logits, features = forward_with_features(wrapped, name, X)
    assert torch.allclose(wrapped.get_submodule(name)(features), logits, atol=1e-6)


def test_a_bare_name_is_good_for_the_usual_wrapper() -> None:
    module = network().eval()
    logits, features = forward_with_features(nn.DataParallel(module), final_linear(module, X), X)
    assert torch.equal(logits, module(X))
    assert features.shape == (5, 16)


def test_within_the_training_loop() -> None:
    module = network("resnet8")
    name = final_linear(module, X)
    shapes = []

    def loss(wrapped: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits, features = forward_with_features(wrapped, name, images)
        shapes.append((logits.shape, features.shape))
        return cross_entropy(logits, labels) + 0.01 * features.square().mean()

    before = module.get_parameter("conv1.weight").clone()
    train(module, (X, torch.arange(5) % 3), TrainingSettings(epochs=2), seed=0, loss=loss)
    assert shapes == [((5, 3), (5, 8))] * 2
    assert not torch.equal(before, module.get_parameter("conv1.weight"))


# --- no such layer ---------------------------------------------------------------------------------------------------


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        return logits.mean((2, 3))


class ScoresAndFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x.flatten(1)), x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Small(lambda net, x: net.first(x).relu()),
            r"no linear layer's output is the network's output \[5, 3\] \(.*first",
        ),
        (Small(lambda net, x: net.first(x).relu_()), "no linear layer's output"),
        (Small(lambda net, x: net.first(x) / 3), "let the network end with an nn.Linear"),
        (Small(lambda net, x: net.first(x) + net.spare(net.first(x))), r"\(called were first, spare\)"),
        (Small(lambda net, x: net.first(x).relu() + 100), "no linear layer's output"),
        (Small(lambda net, x: x[:, :3]), "it calls no nn.Linear at all"),
        (Small(lambda net, x: net.first(x) * float("nan")), "not finite"),
        (
            Small(lambda net, x: net.first(x)[:, None]),
            r"expected scores \[5, classes\] from the network, got \[5, 1, 3\]",
        ),
        (nn.Sequential(network(), nn.ReLU()), r"\(called were 0.hidden.0, 0.fc\)"),
        (Convolutional(), "the convolution 'head' makes it; replace it with an nn.Linear"),
        (ScoresAndFeatures(), r"expected scores \[5, classes\] from the network, got tuple"),
        (Small(lambda net, x: net.spare(x)), "can't answer inputs .*144"),
    ],
)
def test_networks_without_one(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        final_linear(module, X)
    assert "\n" not in str(caught.value)


def test_relu_over_positive_logits_is_not_mistaken() -> None:
    """On the example the numbers agree; only replacing them tells."""
    module = Small(lambda net, x: net.first(x).relu())
    nn.init.constant_(module.first.bias, 9.0)
    assert bool((module.first(X.flatten(1)) > 0).all())
    with pytest.raises(ModelError, match="no linear layer's output"):
        final_linear(module, X)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no layer 'nothing'; linear layers are spare, second, first"),
        ("drop", "layer 'drop' is a Dropout, not a linear layer"),
        ("spare", "layer 'spare' was not called"),
    ],
)
def test_names_that_are_wrong(name: str, message: str) -> None:
    module = Small(WAYS["plain"][0])
    with pytest.raises(ModelError, match=re.escape(message)):
        forward_with_features(module, name, X)
