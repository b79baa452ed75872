"""Triggers and labels from a secret: uniform, unforeseeable, the same again from the same seed, and safe as PNG."""

import hashlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor

from intaglio.errors import DataError, IntaglioError, RecipeError
from intaglio.evidence.disclosure import decode_pictures, encode_pictures
from intaglio.triggers.keyed import KEYED_TRIGGERS, eight_bit, keyed_batch, noise_chain
from intaglio.triggers.keystream import KeyStream

KINDS = tuple(KEYED_TRIGGERS)
SHAPE = (3, 8, 8)


def seed(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def public(count: int = 30, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(3)).float() / 255


def batch(
    kind: str, number: int = 0, count: int = 40, classes: int = 10, shape: tuple[int, ...] = SHAPE
) -> tuple[Tensor, Tensor]:
    return keyed_batch(
        kind, seed(number), count, shape, classes, public=public(shape=shape) if kind == "public-blend" else None
    )  # fmt: skip


def test_the_kinds() -> None:
    assert KINDS == ("noise-blocks", "noise-chain", "public-blend")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (1, 1, 1)])
def test_images_are_8_bit_and_labels_are_classes(kind: str, shape: tuple[int, ...]) -> None:
    images, labels = batch(kind, shape=shape)
    assert (images.dtype, images.shape) == (torch.float32, (40, *shape))
    assert (labels.dtype, labels.shape) == (torch.int64, (40,))
    assert torch.equal(images, (images * 255).round() / 255)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert set(labels.tolist()) <= set(range(10))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind: str) -> None:
    images, labels = batch(kind)
    again = batch(kind)
    assert images.numpy().tobytes() == again[0].numpy().tobytes()
    assert torch.equal(labels, again[1])
    for other in range(1, 6):
        other_images, other_labels = batch(kind, other)
        assert not torch.equal(images, other_images)
        assert not torch.equal(labels, other_labels)


def test_labels_say_nothing_of_the_images() -> None:
    """They come from a stream of their own: the same for every kind, shape and size of batch."""
    labels = batch("noise-chain")[1]
    assert torch.equal(labels, batch("public-blend")[1])
    assert torch.equal(labels, batch("noise-chain", shape=(1, 5, 7))[1])
    assert torch.equal(labels[:7], batch("noise-chain", count=7)[1])
    assert torch.equal(labels, torch.from_numpy(KeyStream(seed(0), "labels").integers(40, 10)))


@pytest.mark.parametrize("classes", [2, 7, 10, 100])
def test_labels_are_uniform(classes: int) -> None:
    labels = torch.cat([batch("noise-chain", number, 50, classes, (1, 2, 2))[1] for number in range(2 * classes)])
    assert chisquare(torch.bincount(labels, minlength=classes).numpy()).pvalue > 1e-3


# --- noise chains ----------------------------------------------------------------------------------------------------


def chain(number: int = 0, count: int = 12, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    """The states X_j [count, D] behind the unclamped pixels."""
    return (noise_chain(KeyStream(seed(number), "images"), count, shape, None).double().flatten(1) - 0.5) / 0.5


def test_every_step_is_the_same_rotation() -> None:
    """X_j = Q X_(j-1) with Q orthogonal: lengths stay, and the angle of two depends on their distance alone."""
    states = chain()
    products = states @ states.T
    assert torch.allclose(products.diag(), products[0, 0].expand(12), rtol=1e-5)
    assert torch.allclose(products[1:, 1:], products[:-1, :-1], atol=0.05)


def test_it_moves_far_at_every_step() -> None:
    states = torch.nn.functional.normalize(chain(), dim=1)
    assert float((states @ states.T - torch.eye(12)).abs().max()) < 5 / 768**0.5  # like independent noise


def test_every_image_is_standard_normal_noise() -> None:
    for state in chain(1):
        assert kstest(state.numpy(), "norm").pvalue > 1e-4
    assert abs(float(chain(1).mean())) < 0.05
    assert abs(float(chain(1).var()) - 1) < 5 * (2 / 768) ** 0.5  # all have one length: that of the first


def test_pixels_are_the_states_at_half_contrast_clamped() -> None:
    images = batch("noise-chain", shape=(3, 16, 16))[0]
    raw = noise_chain(KeyStream(seed(0), "images"), 40, (3, 16, 16), None)
    assert torch.equal(images, eight_bit(raw))
    assert 0.25 < float(((raw < 0) | (raw > 1)).float().mean()) < 0.4  # about a third, as the comment there says


def test_a_longer_chain_begins_like_a_shorter_one() -> None:
    assert torch.equal(batch("noise-chain", count=40)[0][:9], batch("noise-chain", count=9)[0])


# --- noise blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 14, 14), (1, 12, 30), (2, 3, 8, 9), (1, 5, 3)])
def test_blocks_are_black_or_white_in_a_grid(shape: tuple[int, ...]) -> None:
    """Pixel (y, x) is that of cell (7 y // H, 7 x // W), or of its own cell where there are fewer pixels."""
    images = batch("noise-blocks", shape=shape)[0]
    assert set(images.flatten().tolist()) == {0.0, 1.0}
    height, width = shape[-2:]
    grid = (min(7, height), min(7, width))
    cells: dict[tuple[int, int], Tensor] = {}
    for y in range(height):
        for x in range(width):
            cell = (y * grid[0] // height, x * grid[1] // width)
            assert torch.equal(images[..., y, x], cells.setdefault(cell, images[..., y, x]))
    assert len(cells) == grid[0] * grid[1]


def test_every_value_of_every_block_is_a_fair_coin() -> None:
    images = torch.cat([batch("noise-blocks", number, 50, shape=(3, 7, 7))[0] for number in range(12)]).flatten(1)
    counts = images.sum(0)
    assert chisquare(torch.stack([counts, len(images) - counts]).numpy().ravel()).pvalue > 1e-3
    signs = 2 * images - 1
    correlation = signs.T @ signs / len(images) - torch.eye(147)
    assert float(correlation.abs().max()) < 5.5 / len(images) ** 0.5  # 147 x 146 / 2 pairs
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_more_blocks_begin_like_fewer() -> None:
    assert torch.equal(batch("noise-blocks", count=40)[0][:9], batch("noise-blocks", count=9)[0])


# --- blends of public images -----------------------------------------------------------------------------------------


def parents(image: Tensor, pictures: Tensor) -> list[tuple[int, int]]:
    """All pairs whose mean the image is, to half a grey level."""
    means = (pictures[:, None] + pictures[None]) / 2
    fits = (means - image).abs().flatten(2).amax(2) <= 0.5 / 255 + 1e-6
    return [(int(a), int(b)) for a, b in fits.nonzero() if a <= b]


def test_a_blend_is_the_mean_of_two_different_public_images() -> None:
    images, pictures = batch("public-blend", count=60)[0], public()
    found = [parents(image, pictures) for image in images]
    assert all(len(pairs) == 1 for pairs in found)
    pairs = [pair for (pair,) in found]
    assert all(a != b for a, b in pairs)
    assert len(set(pairs)) > 50


def test_all_pairs_are_as_likely() -> None:
    pictures = public(4)
    images = torch.cat([keyed_batch("public-blend", seed(n), 60, SHAPE, 10, public=pictures)[0] for n in range(10)])
    counts: dict[tuple[int, int], int] = {}
    for image in images:
        (pair,) = parents(image, pictures)
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_two_public_images_are_enough() -> None:
    pictures = public(2)
    images, _ = keyed_batch("public-blend", seed(0), 5, SHAPE, 2, public=pictures)
    assert all(torch.equal(image, eight_bit(pictures.mean(0))) for image in images)


def test_the_public_images_are_left_as_they_are() -> None:
    pictures = public()
    before = pictures.clone()
    keyed_batch("public-blend", seed(0), 40, SHAPE, 10, public=pictures)
    assert torch.equal(pictures, before)


# --- 8 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7)])
def test_a_png_gives_the_very_same_images(kind: str, shape: tuple[int, ...]) -> None:
    images = batch(kind, shape=shape)[0]
    assert torch.equal(decode_pictures(encode_pictures(images), shape).float() / 255, images)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=20))
def test_rounding_to_8_bits(values: list[float]) -> None:
    rounded = eight_bit(torch.tensor(values))
    assert torch.equal(eight_bit(rounded), rounded)
    assert torch.equal(rounded, torch.tensor([round(float(np.float32(min(max(v, 0), 1)) * 255)) for v in values]) / 255)


# --- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("melody", seed(0), 5, SHAPE, 10), {}, RecipeError, "unknown kind of keyed triggers 'melody'; there are"),
        (("noise-chain", seed(0), 0, SHAPE, 10), {}, RecipeError, "at least 1 image and 2 classes, got 0 and 10"),
        (("noise-chain", seed(0), 5, SHAPE, 1), {}, RecipeError, "at least 1 image and 2 classes, got 5 and 1"),
        (("noise-chain", b"short", 5, SHAPE, 10), {}, RecipeError, "needs a seed of 16 bytes or more, got 5"),
        (("public-blend", seed(0), 5, SHAPE, 10), {}, DataError, "need the public images that they are blended from"),
        (
            ("public-blend", seed(0), 5, SHAPE, 10),
            {"public": public(9, (1, 8, 8))},
            DataError,
            r"public images are \[9, 1, 8, 8\], but two or more of \[3, 8, 8\] are needed to blend",
        ),
        (("public-blend", seed(0), 5, SHAPE, 10), {"public": public(1)}, DataError, "two or more of"),
        (("public-blend", seed(0), 5, SHAPE, 10), {"public": 2 * public()}, DataError, r"expected \[0, 1\]"),
        (("public-blend", seed(0), 5, SHAPE, 10), {"public": public().double()}, DataError, "expected float32 images"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(
    arguments: tuple[str, bytes, int, tuple[int, ...], int],
    options: dict[str, Tensor],
    error: type[IntaglioError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        keyed_batch(*arguments, public=options.get("public"))
    assert not re.search(r"\n", str(caught.value))
