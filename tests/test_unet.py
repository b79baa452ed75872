"""The U-Net: sizes by hand, any resolution, and nothing that leaks from one image of a batch to another."""

import pytest
import torch

from intaglio.errors import RecipeError
from intaglio.networks.unet import UNet


def level(inputs: int, outputs: int) -> int:
    """Two 3x3 convolutions with biases, and a normalisation after the first."""
    return (9 * inputs * outputs + outputs) + 2 * outputs + (9 * outputs * outputs + outputs)


@pytest.mark.parametrize(("inputs", "outputs", "width", "depth"), [(2, 16, 12, 2), (4, 3, 8, 1), (1, 1, 4, 3)])
def test_parameter_counts(inputs: int, outputs: int, width: int, depth: int) -> None:
    wide = 2 * width
    down = level(inputs, width) + level(width, wide) + (depth - 1) * level(wide, wide)
    up = level(wide + width, width) + (depth - 1) * level(2 * wide, wide)
    network = UNet(inputs, outputs, width, depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == down + up + width * outputs + outputs


@pytest.mark.parametrize("shape", [(28, 28), (12, 12), (33, 17), (4, 9)])
def test_any_resolution_is_kept(shape: tuple[int, int]) -> None:
    assert UNet(3, 5, 4)(torch.rand(2, 3, *shape)).shape == (2, 5, *shape)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network, images = UNet(1, 2, 4).train(), torch.rand(3, 1, 12, 12)
    together = network(images)
    assert torch.allclose(together, torch.cat([network(image[None]) for image in images]), atol=1e-6)


def test_far_pixels_are_seen_and_all_weights_learn() -> None:
    torch.manual_seed(0)
    network = UNet(1, 1, 4)
    image = torch.rand(1, 1, 16, 16).requires_grad_()
    network(image)[0, 0, 0, 0].backward()
    assert image.grad is not None
    assert float(image.grad[0, 0, 8, 8].abs()) > 0  # 3 convolutions of 3 x 3 at full resolution reach 6 pixels
    network.zero_grad()
    network(torch.rand(2, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("width", "depth"), [(6, 2), (0, 2), (2, 1), (8, 0)])
def test_sizes_that_make_no_sense(width: int, depth: int) -> None:
    with pytest.raises(RecipeError, match="multiple of 4 and a depth of 1 or more"):
        UNet(1, 1, width, depth)
