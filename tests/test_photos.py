"""Pieces of photographs: any size, grey or in colour, the same for everyone."""

import pytest
import torch

from intaglio.data.photos import public_photos
from intaglio.errors import DataError
from intaglio.evidence.batches import images_sha256


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 32, 32), (3, 7, 20), (1, 1, 1), (3, 224, 224)])
def test_any_shape_in_8_bits(shape: tuple[int, int, int]) -> None:
    images = public_photos(shape, 6)
    assert (images.dtype, images.shape) == (torch.float32, (6, *shape))
    assert torch.equal(images, (images * 255).round() / 255)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    images_sha256(images)  # raises where they could not be committed to


def test_everyone_gets_the_same() -> None:
    images = public_photos((3, 16, 16), 20)
    assert torch.equal(images, public_photos((3, 16, 16), 20))
    assert torch.equal(images[:7], public_photos((3, 16, 16), 7))
    assert not torch.equal(images, public_photos((3, 16, 16), 20, seed=1))
    state = torch.random.get_rng_state()
    public_photos((3, 16, 16), 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_they_are_many_and_differ() -> None:
    images = public_photos((1, 12, 12))
    assert len(images) == 256
    distance = torch.cdist(images.flatten(1), images.flatten(1)) + 100 * torch.eye(256)
    assert float(distance.min()) > 0.05
    assert float(images.flatten(1).std(1).median()) > 0.05  # pictures, not plain colours


def test_two_photographs_take_turns() -> None:
    """The temple's pieces are brighter than the flower's."""
    images = public_photos((3, 16, 16), 100)
    assert float(images[0::2].mean()) > float(images[1::2].mean()) + 0.1


def test_grey_is_the_mean_of_the_colours() -> None:
    colour, grey = public_photos((3, 16, 16), 10), public_photos((1, 16, 16), 10)
    assert float((colour.mean(1, keepdim=True) - grey).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (8, 3, 16, 16), (8, 8)])
def test_shapes_that_are_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"photographs are grey or RGB \[1 or 3, H, W\], not \["):
        public_photos(shape)
