"""Every network by one table: sizes by hand, shapes of any input, and the same seed, the same weights."""

import pytest
import torch
from torch import nn

from intaglio.errors import IntaglioError, ModelError, RecipeError
from intaglio.networks import NETWORKS, Architecture


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolution(inputs: int, outputs: int, size: int = 3) -> int:
    """Weights of a convolution without bias, and of the batch normalisation after it."""
    return inputs * outputs * size**2 + 2 * outputs


def block(inputs: int, outputs: int) -> int:
    """A residual block; its shortcut has weights where the number of channels changes."""
    shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
    return convolution(inputs, outputs) + convolution(outputs, outputs) + shortcut


def separable(inputs: int, outputs: int) -> int:
    return 9 * inputs + 2 * inputs + convolution(inputs, outputs, 1)


# name -> (parameters at width 2 for inputs of 1 x 28 x 28 and 10 classes, smallest side)
SMALL = {
    "lenet": ((25 * 2 + 2) + (25 * 2 * 4 + 4) + (4 * 5 * 5 * 16 + 16) + (16 * 10 + 10), 12),
    "vgg": (sum(convolution(*io) for io in ((1, 2), (2, 4), (4, 4), (4, 8), (8, 8))) + 8 * 10 + 10, 8),
    "resnet8": (convolution(1, 2) + block(2, 2) + block(2, 4) + block(4, 8) + 90, 1),
    "resnet14": (convolution(1, 2) + 2 * block(2, 2) + block(2, 4) + block(4, 4) + block(4, 8) + block(8, 8) + 90, 1),
    "resnet18": (
        convolution(1, 2) + 2 * block(2, 2) + block(2, 4) + block(4, 4) + block(4, 8) + block(8, 8)
        + block(8, 16) + block(16, 16) + 16 * 10 + 10,
        1,
    ),
    "mobilenet": (convolution(1, 2) + sum(separable(*io) for io in ((2, 4), (4, 4), (4, 8), (8, 8))) + 90, 1),
}  # fmt: skip


def build(name: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, width: int | None = 2) -> nn.Module:
    torch.manual_seed(3)
    return Architecture(name=name, input_shape=shape, num_classes=classes, width=width).build()


def test_the_table_names_every_network() -> None:
    assert SMALL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_parameter_counts(name: str) -> None:
    assert count(build(name)) == SMALL[name][0]


def test_resnet18_is_the_well_known_one() -> None:
    module = build("resnet18", (3, 32, 32), width=None)
    assert count(module) == 11_173_962
    assert {
        "conv1.weight",
        "layer4.1.bn2.bias",
        "layer2.0.downsample.0.weight",
        "fc.bias",
    } <= module.state_dict().keys()
    assert sum(isinstance(part, nn.Conv2d) for part in module.modules()) == 17 + 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 16, 25), (1, 33, 12)])
@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("name", SMALL)
def test_output_shapes(name: str, shape: tuple[int, int, int], classes: int) -> None:
    module = build(name, shape, classes).eval()
    images = torch.rand(3, *shape)
    with torch.inference_mode():
        logits = module(images)
        assert logits.shape == (3, classes)
        assert logits.isfinite().all()
        single = torch.cat([module(image[None]) for image in images])
    assert torch.allclose(logits, single, atol=1e-5)  # each image is answered on its own


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_input_is_taken_and_a_smaller_one_refused(name: str) -> None:
    smallest = SMALL[name][1]
    module = build(name, (1, smallest, 40), 5).eval()
    assert module(torch.rand(2, 1, smallest, 40)).shape == (2, 5)
    for shape in ((1, smallest - 1, 40), (1, 40, smallest - 1)):
        if smallest > 1:
            with pytest.raises(RecipeError, match=rf"{name} needs inputs of {smallest} x {smallest} or more"):
                build(name, shape)
        else:
            with pytest.raises(ValueError, match="greater than 0"):
                build(name, shape)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_and_the_seed_decides(name: str) -> None:
    module, again = build(name), build(name)
    assert module.training
    for (key, value), other in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    module(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_width_is_the_networks_own_unless_given() -> None:
    assert [count(build("lenet", width=width)) for width in (None, 8)] == [count(build("lenet", width=8))] * 2
    assert count(build("lenet", width=9)) > count(build("lenet", width=8))


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        (Architecture(name="resnet50", input_shape=(3, 8, 8), num_classes=2), ModelError, "known are lenet, mobilenet"),
        (Architecture(name="", input_shape=(3, 8, 8), num_classes=2), ModelError, "unknown architecture ''"),
        (
            Architecture(name="lenet", input_shape=(1, 10**9, 10**9), num_classes=2),
            RecipeError,
            r"lenet can't take inputs of shape \(1, 1000000000, 1000000000\)",
        ),
    ],
)
def test_what_cannot_be_built(architecture: Architecture, error: type[IntaglioError], message: str) -> None:
    with pytest.raises(error, match=message):
        architecture.build()


@pytest.mark.parametrize(
    "change", [{"num_classes": 1}, {"width": 0}, {"input_shape": (0, 8, 8)}, {"input_shape": (8, 8)}, {"depth": 3}]
)
def test_architectures_that_make_no_sense(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Architecture.model_validate({"name": "lenet", "input_shape": (1, 28, 28), "num_classes": 2} | change)


def test_architectures_survive_json() -> None:
    architecture = Architecture(name="vgg", input_shape=(3, 9, 8), num_classes=4, width=5)
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture
