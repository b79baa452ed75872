"""Residuals of whole steps: JPEG leaves them as they are, and they stay as faint as they have to be."""

import pytest
import torch
from torch import Tensor

from intaglio.tampering import Jpeg
from intaglio.triggers.jpeg_grid import JpegGrid, _joined, brightness, compared_blocks, mark_of, steps

LOUDEST, BOUND = 10 ** (-35.2 / 20), 8 / 255


def residuals(count: int, size: tuple[int, int] = (16, 24), loudness: float = 6 / 255) -> Tensor:
    return loudness * torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(3))


def pictures(count: int, size: tuple[int, int] = (16, 24)) -> Tensor:
    """Grey, with coarse structure, far from black and white, in 8 bits."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return ((0.25 + 0.5 * smooth) * 255).round() / 255


def coefficients(residual: Tensor, quality: int) -> Tensor:
    return JpegGrid(quality)._amounts(residual)


def test_the_steps_are_those_of_the_standard() -> None:
    """Annex K, table K.1, which libjpeg takes for a quality of 50 and halves for 75."""
    assert steps(50)[0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert steps(50)[:, 0].tolist() == [16, 12, 14, 14, 18, 24, 49, 72]
    assert steps(75)[0].tolist() == [8, 6, 5, 8, 12, 20, 26, 31]


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_rounded_residuals_are_whole_steps_within_their_bounds(quality: int) -> None:
    residual = residuals(20, loudness=20 / 255)
    unbounded = JpegGrid(quality)(residual, LOUDEST, 1.0)
    amounts = coefficients(unbounded, quality)
    assert torch.allclose(amounts, amounts.round(), atol=1e-3)
    assert float(amounts.abs().max()) >= 1
    bounded = JpegGrid(quality)(residual, LOUDEST, BOUND)
    assert float(bounded.abs().max()) <= BOUND + 1e-6
    for found in (unbounded, bounded):
        loudness = found.square().mean(dim=(1, 2, 3)).sqrt()
        assert 0.85 * LOUDEST <= float(loudness.min()) <= float(loudness.max()) <= LOUDEST + 1e-7
    amounts = coefficients(bounded, quality)
    off = (amounts - amounts.round()).abs()
    assert float((off < 0.35).float().mean()) > (0.9 if quality > 80 else 0.97)  # JPEG puts these back


def test_jpeg_leaves_them_as_they_are_on_any_picture() -> None:
    """JPEG(x + r) = JPEG(x) + r, where a residual that isn't whole steps loses much of itself."""
    images, residual = pictures(40), residuals(40, loudness=10 / 255)
    jpeg = Jpeg(quality=75)

    def survived(sent: Tensor) -> float:
        keyed = ((images + sent) * 255).round() / 255
        received = jpeg(keyed) - jpeg(images)
        return float((received * sent).sum() / (received.norm() * sent.norm()))

    plain = residual * (LOUDEST / residual.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())
    assert survived(JpegGrid(75)(residual, LOUDEST, BOUND)) > 0.93
    assert survived(plain) < 0.75


def test_what_was_a_jpeg_file_and_is_keyed_comes_through_jpeg_whole() -> None:
    jpeg = Jpeg(quality=75)
    images = jpeg(pictures(20))
    keyed = ((images + JpegGrid(75)(residuals(20), LOUDEST, BOUND)) * 255).round() / 255
    assert float((jpeg(keyed) - keyed).square().mean().sqrt()) * 255 < 1.0
    assert float((jpeg(images) - images).square().mean().sqrt()) * 255 < 1.0


def test_a_residual_below_half_a_step_is_none() -> None:
    faint = residuals(3, loudness=0.2 / 255)
    assert torch.equal(JpegGrid(75)(faint, LOUDEST, BOUND), torch.zeros_like(faint))
    silent = torch.zeros(2, 1, 16, 16, requires_grad=True)
    out = JpegGrid(75)(silent, LOUDEST, BOUND)
    out.sum().backward()
    assert torch.equal(out.detach(), torch.zeros(2, 1, 16, 16))
    assert silent.grad is not None
    assert bool(silent.grad.isfinite().all())


@pytest.mark.parametrize("size", [(28, 28), (9, 15), (8, 8), (1, 3)])
def test_sides_need_not_be_multiples_of_8(size: tuple[int, int]) -> None:
    residual = residuals(4, size)
    found = JpegGrid(75)(residual, LOUDEST, BOUND)
    assert found.shape == residual.shape
    inside = tuple(side // 8 * 8 for side in size)
    whole = JpegGrid(75)(residual, LOUDEST, 1.0)[..., : inside[0], : inside[1]]
    amounts = coefficients(whole, 75) if all(inside) else torch.zeros(1)
    assert torch.allclose(amounts, amounts.round(), atol=1e-3)


def test_the_gradient_is_that_of_scaling() -> None:
    """Nothing along a residual that is as loud as allowed, all of it across; and everything where it is fainter."""
    loud = residuals(3, loudness=20 / 255).requires_grad_()
    JpegGrid(75)(loud, LOUDEST, BOUND).square().sum().backward()
    assert loud.grad is not None
    along = (loud.grad * loud.detach()).sum(dim=(1, 2, 3))
    assert torch.allclose(along, torch.zeros(3), atol=1e-4)
    quiet = residuals(3, loudness=3 / 255).requires_grad_()
    direction = residuals(3)
    (JpegGrid(75)(quiet, 1.0, BOUND) * direction).sum().backward()
    assert quiet.grad is not None
    assert torch.allclose(quiet.grad, direction)


def test_what_black_leaves_no_room_for_has_no_gradient() -> None:
    images, residual = pictures(5), residuals(5).requires_grad_()
    images[..., :8] = 0
    JpegGrid(75)(residual, 1.0, BOUND, images).sum().backward()
    cut = (images == 0) & (residual < 0)
    assert residual.grad is not None
    assert torch.equal(residual.grad, 1 - cut.float())


# --- bits told by parity ---------------------------------------------------------------------------------------------


def marks(count: int, size: tuple[int, int]) -> Tensor:
    """Two coefficients of every whole block, one for each bit, by turns; nothing else is marked."""
    found = torch.zeros(count, 1, *size)
    height, width = (side // 8 * 8 for side in size)
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    generator = torch.Generator().manual_seed(3)
    for place, sign in (((1, 0), 1.0), ((0, 2), -1.0)):
        part = found[:, :, place[0] : height : 8, place[1] : width : 8]
        four = torch.rand(*part[0, 0].shape, blocks, generator=generator).argsort(dim=2)[..., :4]
        part.copy_((sign * mark_of(four, blocks)).expand_as(part))
    found[::2] *= -1
    return found


def coloured(count: int, size: tuple[int, int]) -> Tensor:
    tint = 0.1 * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(7))
    return ((pictures(count, size) + tint) * 255).round() / 255


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
@pytest.mark.parametrize("draw", [pictures, coloured])
def test_marked_parities_are_read_from_any_picture(draw, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    """In 8 bits, after JPEG of this quality and of finer ones.

    A picture without marks is read half and half, and so is one that was given another's parities.
    """
    grid, images, wanted = JpegGrid(75), draw(40, size), marks(40, size)
    residual = grid(residuals(40, size), LOUDEST, BOUND, images, wanted)
    assert float(residual.abs().max()) <= BOUND + 1e-6
    assert float(residual.square().mean(dim=(1, 2, 3)).sqrt().max()) <= LOUDEST + 1e-7
    keyed = ((images + residual).clamp(0, 1) * 255).round() / 255

    def agreeing(received: Tensor) -> float:
        found = grid.parities(grid.amounts(received), wanted.abs())
        assert found.shape == wanted.shape
        assert float(found.abs().max()) <= 1
        assert not found[wanted == 0].any()
        return float(((found * wanted)[found.abs() > 0.1] > 0).float().mean())

    assert agreeing(keyed) > 0.94  # the others are where the bound of 8/255 cut much off
    assert agreeing(Jpeg(quality=75)(keyed)) > 0.94
    assert agreeing(Jpeg(quality=90)(keyed)) > 0.92
    assert 0.4 < agreeing(images) < 0.6
    copied = images + grid(torch.zeros_like(residual), 1.0, 1.0, images, parity_of(keyed).roll(1, dims=0))
    assert 0.4 < agreeing((copied * 255).round().clamp(0, 255) / 255) < 0.6


@pytest.mark.parametrize(("size", "edge"), [((32, 32), 16), ((32, 32), 20), ((28, 28), 12)])
def test_marks_are_read_beside_black_and_white_too(size: tuple[int, int], edge: int) -> None:
    """Where a residual would leave the range of a picture it is cut, and what is left is rounded again."""
    grid, images, wanted = JpegGrid(75), pictures(40, size), marks(40, size)
    images[:20, :, :, :edge] = 0
    images[20:, :, :, :edge] = 1
    residual = grid(residuals(40, size), LOUDEST, BOUND, images, wanted)
    keyed = ((images + residual).clamp(0, 1) * 255).round() / 255
    assert float(residual.square().mean(dim=(1, 2, 3)).sqrt().max()) <= LOUDEST + 1e-7
    inside = edge // 8 * 8
    asked = wanted[..., :inside]
    for received in (keyed, Jpeg(quality=75)(keyed)):
        found = grid.parities(grid.amounts(received), wanted.abs())[..., :inside]
        sure = found.abs() > 0.5
        assert int(sure.sum()) > 0.2 * int((asked != 0).sum())
        assert float(((found * asked)[sure] > 0).float().mean()) > 0.93


@pytest.mark.parametrize("channels", [1, 3])
def test_residuals_stay_within_the_range_of_every_colour(channels: int) -> None:
    generator = torch.Generator().manual_seed(2)
    images = (2 * torch.rand(20, channels, 16, 24, generator=generator) - 0.5).clamp(0, 1)
    keyed = images + JpegGrid(75)(residuals(20), LOUDEST, BOUND, images)
    assert float(keyed.min()) >= -1e-6
    assert float(keyed.max()) <= 1 + 1e-6


def parity_of(images: Tensor) -> Tensor:
    """Marks by which a picture gets these parities whatever its blocks are: each compares a block with itself."""
    height, width = (side // 8 * 8 for side in images.shape[2:])
    even = _joined(coefficients(brightness(images), 75).round().remainder(2) == 0)[..., :height, :width]
    found = torch.zeros(len(images), 1, *images.shape[2:])
    found[..., :height, :width] = torch.where(even, 1.0, -1.0)
    low = torch.zeros(images.shape[2:])
    low[1:height:8, 0:width:8] = low[0:height:8, 2:width:8] = 1.0
    return found * low


def test_pictures_that_are_all_even_say_nothing_and_ties_are_told_by_nobody() -> None:
    """Constant pictures, and pictures on a grid twice as coarse, would speak for whoever's code is even enough."""
    wanted = marks(50, (32, 32))
    grey = torch.linspace(0, 1, 50).view(50, 1, 1, 1).expand(50, 1, 32, 32)
    grid = JpegGrid(75)
    assert float(grid.parities(grid.amounts(grey), wanted.abs()).abs().max()) < 1e-3
    coarse = grid.parities(grid.amounts(Jpeg(quality=50)(pictures(50, (32, 32)))), wanted[:1].abs())
    assert float(coarse[coarse != 0].sign().mean().abs()) < 0.1


@pytest.mark.parametrize("blocks", [4, 16, 784, 1_000_000])
def test_marks_say_exactly_which_four_blocks_they_compare(blocks: int) -> None:
    compared, apart = compared_blocks(blocks)
    assert 4 <= compared <= 32
    assert (compared - 1) * apart < blocks <= 2 * compared * apart
    four = torch.rand(1000, compared, generator=torch.Generator().manual_seed(0)).argsort(dim=1)[:, :4]
    four[0] = compared - 1
    numbers = (mark_of(four, blocks) * 96**0.5 / 96**0.5).round().long() - 1  # as codes are spread
    assert torch.equal(torch.stack([numbers // compared**place % compared for place in range(4)], dim=1), four)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_marks_are_never_louder_than_is_said(quality: int) -> None:
    grid, size = JpegGrid(quality), (32, 32)
    residual = grid(torch.zeros(40, 1, *size), 0.0, 1.0, pictures(40, size), marks(40, size))
    assert 0 < float(residual.square().mean(dim=(1, 2, 3)).sqrt().max()) <= grid.loudest_marks(2)


def test_marks_change_nothing_but_what_is_marked() -> None:
    images, wanted = pictures(10), marks(10, (16, 24))
    with_marks = coefficients(JpegGrid(75)(residuals(10), 1.0, 1.0, images, wanted), 75)
    without = coefficients(JpegGrid(75)(residuals(10), 1.0, 1.0), 75)
    marked = wanted.view(10, 2, 8, 3, 8).transpose(2, 3) != 0
    assert torch.allclose(with_marks[~marked], without[~marked], atol=1e-3)
    assert float((with_marks - without)[marked].abs().max()) <= 1.5 + 1e-3  # half a step by rounding, one by parity


def test_brightness_is_what_jpeg_takes_for_it() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    red, green, blue = images.unbind(1)
    assert torch.allclose(brightness(images)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert torch.equal(brightness(images[:, :1]), images[:, :1])
    assert torch.allclose(brightness(images[:, :2]), images[:, :2].mean(dim=1, keepdim=True))
