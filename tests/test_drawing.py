"""What a secret draws: mixed features, or atoms, beyond which no U-Net can draw."""

import pytest
import torch
from torch import Tensor

from intaglio.triggers.drawing import Atoms, Drawing, Mixing, cosines, drawing

EVERY = pytest.mark.parametrize("way", [Mixing(5), Atoms(3, 4), Atoms(2, 2)], ids=["mixing", "atoms", "fine atoms"])


def secrets(way: Drawing, count: int = 1, seed: int = 0) -> Tensor:
    return way.secrets(torch.randn(count, *way.shape, generator=torch.Generator().manual_seed(seed)))


def matrix(way: Drawing, secret: Tensor, side: int) -> Tensor:
    """Everything that can be drawn, as rows: what each value of every feature draws alone."""
    features = torch.eye(way.features * side * side).view(-1, way.features, side, side)
    return way.draw(features, secret).flatten(1)


@EVERY
@pytest.mark.parametrize("size", [(12, 12), (14, 9)])
def test_each_secret_draws_its_own_and_linearly(way: Drawing, size: tuple[int, int]) -> None:
    several = secrets(way, 4)
    features = torch.randn(4, way.features, *size, generator=torch.Generator().manual_seed(1))
    drawn = way.draw(features, several)
    assert drawn.shape == (4, 1, *size)
    alone = [way.draw(features[i : i + 1], several[i : i + 1]) for i in range(4)]
    assert torch.allclose(drawn, torch.cat(alone), atol=1e-5)
    assert torch.allclose(way.draw(2 * features, several), 2 * drawn, atol=1e-5)
    assert float((way.draw(features, several[:1]) - drawn)[1:].abs().max()) > 0.1
    norms = several.flatten(1).norm(dim=1)
    assert torch.allclose(norms, norms[:1].expand(4))


def test_what_is_drawn_with_atoms_has_few_dimensions_and_mixed_residuals_have_all() -> None:
    atoms, mixing = Atoms(3, 4), Mixing(3)
    assert int(torch.linalg.matrix_rank(matrix(atoms, secrets(atoms), 16).double())) == 3 * 16
    assert int(torch.linalg.matrix_rank(matrix(mixing, secrets(mixing), 16).double())) == 16 * 16


def test_a_good_part_of_what_others_draw_cannot_be_drawn_with_ones_own_atoms() -> None:
    atoms = Atoms(3, 4)
    spans = [torch.linalg.svd(matrix(atoms, secrets(atoms, seed=seed), 28).double()).Vh[: 3 * 49] for seed in range(6)]
    shared = [float((mine @ theirs.T).square().sum() / 147) for mine in spans for theirs in spans if mine is not theirs]
    assert min(shared) > 0.3
    assert max(shared) < 0.55  # residuals at random would share 0.19; atoms are few, and of frequencies that JPEG keeps
    assert float((spans[0] @ spans[0].T).square().sum() / 147) == pytest.approx(1)


def test_atoms_hold_no_brightness_and_no_fine_grain() -> None:
    found = secrets(Atoms(3, 4), 20)[:, 0].double()
    spectrum = (cosines(8) @ found @ cosines(8).T).square().mean(dim=(0, 1))
    order = torch.arange(8)[:, None] + torch.arange(8)
    assert float(found.sum(dim=(2, 3)).abs().max()) < 1e-5
    assert float(spectrum[order > 6].max()) < 1e-9
    assert float(spectrum[(order > 0) & (order < 5)].min()) > 2 * float(spectrum[order == 6].max())


def test_atoms_are_found_where_they_were_drawn() -> None:
    atoms, secret = Atoms(3, 4), secrets(Atoms(3, 4))
    amounts = torch.zeros(1, 3, 7, 7)
    amounts[0, 1, 3, 4] = 1.0
    drawn = atoms.draw(atoms.enlarged(amounts, 28, 28), secret)
    found = atoms.found(drawn, secret)
    assert found.shape == amounts.shape
    assert int(found.abs().argmax()) == int(amounts.argmax())
    assert float(found.max()) == pytest.approx(float(secret[0, 0, 1].square().sum()), rel=1e-5)
    uneven = torch.randn(2, 1, 14, 9)
    assert atoms.found(uneven, secret).shape == (2, *atoms.plane_shape(14, 9)) == (2, 3, 4, 3)
    assert atoms.enlarged(torch.randn(2, 3, 4, 3), 14, 9).shape == (2, 3, 14, 9)


def test_a_stride_of_1_mixes() -> None:
    assert isinstance(drawing(4, 1), Mixing)
    assert (drawing(4, 2).shape, drawing(4, 1).shape) == ((1, 4, 4, 4), (1, 4, 3, 3))
    features, secret = torch.randn(2, 5, 8, 8), secrets(Mixing(5))
    expected = torch.nn.functional.conv2d(features, secret[0], padding=1)
    assert torch.equal(Mixing(5).draw(features, secret), expected)
    assert float(secret.square().sum()) == pytest.approx(9.0)
    assert torch.allclose(cosines(5) @ cosines(5).T, torch.eye(5, dtype=torch.float64))
