"""Triggers that are no stamp of a drawn pattern: waves, warps, learned patches and generators, chains."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.errors import DataError, RecipeError
from intaglio.triggers import (
    TRIGGERS,
    BlendedTrigger,
    ChainTrigger,
    InputAwareGenerator,
    InputAwareTrigger,
    PatchTrigger,
    SinusoidTrigger,
    StampTrigger,
    Trigger,
    UniversalAdversarialTrigger,
    WarpTrigger,
)

Shape = tuple[int, int, int]


def images(shape: Shape = (3, 12, 16), count: int = 3) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(9))


def generator(seed: int = 0, channels: int = 3) -> InputAwareGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InputAwareGenerator(channels, width=4)


def learned(seed: int = 0) -> UniversalAdversarialTrigger:
    return UniversalAdversarialTrigger(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(seed)))


#: name -> a maker from a seed
MAKERS: dict[str, Callable[[int], Trigger]] = {
    "sinusoid": lambda seed: SinusoidTrigger(delta=0.3, direction="drawn", seed=seed),
    "warp": lambda seed: WarpTrigger(strength=2.0, seed=seed),
    "universal-adversarial": learned,
    "input-aware": lambda seed: InputAwareTrigger(generator(seed)),
    "chain": lambda seed: ChainTrigger(PatchTrigger(seed=seed), WarpTrigger(seed=seed), BlendedTrigger(seed=seed)),
}
EVERY = pytest.mark.parametrize("name", MAKERS)


def test_every_family_has_its_name() -> None:
    assert {name: family.name for name, family in TRIGGERS.items()} == {name: name for name in TRIGGERS}
    assert {name: make(0).name for name, make in MAKERS.items()} == {name: name for name in MAKERS}
    others = {name for name, family in TRIGGERS.items() if not issubclass(family, StampTrigger)}
    assert others <= MAKERS.keys()


@EVERY
def test_bounds_purity_and_batches(name: str) -> None:
    trigger, x = MAKERS[name](1), images()
    before = x.clone()
    altered = trigger.apply(x)
    assert altered.shape == x.shape
    assert 0 <= float(altered.min()) <= float(altered.max()) <= 1
    assert not torch.equal(altered, x)
    assert torch.equal(x, before)
    alone = torch.cat([trigger.apply(image[None]) for image in x])
    assert torch.allclose(alone, altered, atol=1e-6)


@EVERY
def test_same_seed_same_trigger(name: str) -> None:
    made: list[Trigger] = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(made))  # the global generator has no say
        made.append(MAKERS[name](seed))
    altered = [trigger.apply(images()) for trigger in made]
    assert torch.equal(altered[0], altered[1])
    assert not torch.equal(altered[0], altered[2])
    assert made[0].describe() == made[1].describe()
    assert json.loads(json.dumps(made[0].describe()))["trigger"] == name


@EVERY
def test_gradients_reach_the_images(name: str) -> None:
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(MAKERS[name](0).apply(x).sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0


@EVERY
def test_images_out_of_bounds_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"input of trigger {name}"):
        MAKERS[name](0).apply(torch.full((1, 3, 12, 16), 1.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinusoidTrigger(delta=0), r"delta in \(0, 1\]"),
        (lambda: SinusoidTrigger(delta=float("nan")), "got nan"),
        (lambda: SinusoidTrigger(frequency=0), "frequency above 0"),
        (lambda: SinusoidTrigger(direction="up"), "'up'"),  # type: ignore[arg-type]
        (lambda: WarpTrigger(strength=-1), "strength of 0 or more"),
        (lambda: WarpTrigger(strength=math.inf), "got inf"),
        (lambda: WarpTrigger(grid=1), "a grid of 2 or more, got 0.5 and 1"),
        (lambda: WarpTrigger(grid=2.5), "got 0.5 and 2.5"),  # type: ignore[arg-type]
        (lambda: ChainTrigger(), "at least one trigger"),
        (lambda: UniversalAdversarialTrigger(torch.zeros(3, 3)), r"\[C, h, w\] with values in \[0, 1\], got \[3, 3\]"),
        (lambda: UniversalAdversarialTrigger(torch.full((1, 2, 2), 1.1)), r"got \[1, 2, 2\]"),
        (lambda: UniversalAdversarialTrigger(torch.zeros(1, 2, 2), place="left"), "not in 'left'"),  # type: ignore[arg-type]
        (lambda: learned().apply(images((1, 12, 12))), r"\(3, 4, 5\) does not fit on images of \(1, 12, 12\)"),
        (lambda: learned().apply(images((3, 12, 4))), "does not fit"),
    ],
)
def test_triggers_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


# --- sinusoid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "frequency", "height", "width"), [(0.1, 6, 8, 11), (0.3, 2.5, 5, 28)])
def test_the_sinusoid_is_the_papers_formula(delta: float, frequency: float, height: int, width: int) -> None:
    x = torch.full((2, 3, height, width), 0.5)
    altered = SinusoidTrigger(delta=delta, frequency=frequency).apply(x)
    for i in range(height):
        for j in range(width):
            expected = 0.5 + delta * math.sin(2 * math.pi * (j + 1) * frequency / width)
            assert altered[:, :, i, j].flatten().tolist() == pytest.approx([expected] * 6, abs=1e-6)


def test_directions_of_the_sinusoid() -> None:
    rows = SinusoidTrigger(direction="rows").signal(9, 7)
    assert torch.allclose(rows, SinusoidTrigger().signal(7, 9).T, atol=1e-6)
    drawn = [SinusoidTrigger(direction="drawn", seed=seed, delta=0.2).signal(16, 16) for seed in range(4)]
    for signal in drawn:
        assert 0.15 < float(signal.abs().max()) <= 0.2
        assert float(signal.std(dim=0).max()) > 0.01
    assert len({tuple(signal.flatten().tolist()) for signal in drawn}) == 4


def test_the_sinusoid_is_clipped() -> None:
    altered = SinusoidTrigger(delta=0.5, frequency=1).apply(torch.ones(1, 1, 4, 8))
    assert float(altered.max()) == 1.0
    assert float(altered.min()) == pytest.approx(0.5)


# --- warp ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(2, 6), st.integers(4, 20), st.integers(4, 20))
def test_a_warp_of_strength_0_is_the_identity(seed: int, grid: int, height: int, width: int) -> None:
    x = images((1, height, width), 2)
    assert torch.allclose(WarpTrigger(strength=0.0, grid=grid, seed=seed).apply(x), x, atol=1e-5)


def test_a_warp_fetches_what_its_field_says() -> None:
    """Against a naive loop over pixels, with bilinear interpolation by hand."""
    height, width = 7, 9
    x = images((1, height, width), 1)
    trigger = WarpTrigger(strength=1.5, seed=3)
    field = trigger.field(height, width)
    altered = trigger.apply(x)[0, 0]
    for i in range(height):
        for j in range(width):
            across = min(max(-1 + 2 * j / (width - 1) + 1.5 * float(field[i, j, 0]) / width, -1), 1)
            down = min(max(-1 + 2 * i / (height - 1) + 1.5 * float(field[i, j, 1]) / height, -1), 1)
            column, row = (across + 1) / 2 * (width - 1), (down + 1) / 2 * (height - 1)
            c, r = min(int(column), width - 2), min(int(row), height - 2)
            a, b = column - c, row - r
            near = x[0, 0, r : r + 2, c : c + 2]
            expected = (1 - b) * ((1 - a) * near[0, 0] + a * near[0, 1]) + b * ((1 - a) * near[1, 0] + a * near[1, 1])
            assert float(altered[i, j]) == pytest.approx(float(expected), abs=1e-5)


def test_a_warp_grows_with_its_strength() -> None:
    x = images((1, 28, 28))
    moved = [float((WarpTrigger(strength=s).apply(x) - x).abs().mean()) for s in (0.25, 0.5, 1.0, 2.0)]
    assert moved == sorted(moved)


def test_the_field_has_unit_magnitude_at_its_nodes() -> None:
    field = WarpTrigger(grid=4, seed=2).field(4, 4)  # as large as the grid: nothing to interpolate
    assert float(field.abs().mean()) == pytest.approx(1.0, abs=1e-5)


def test_noise_mode() -> None:
    trigger, x = WarpTrigger(seed=1), images((1, 12, 12), 1).expand(4, -1, -1, -1)
    noisy = trigger.noisy(x, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, trigger.noisy(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(noisy[0], noisy[1])  # drawn anew for every image
    assert not torch.allclose(noisy, trigger.apply(x), atol=1e-3)
    assert 0 <= float(noisy.min()) <= float(noisy.max()) <= 1


# --- the others ------------------------------------------------------------------------------------------------------


def test_a_learned_patch_by_hand() -> None:
    trigger, x = learned(), images()
    altered = trigger.apply(x)
    assert torch.equal(altered[:, :, 8:, 11:], trigger.pattern.expand(3, -1, -1, -1))
    altered[:, :, 8:, 11:] = x[:, :, 8:, 11:]
    assert torch.equal(altered, x)
    assert trigger.describe()["size"] == [4, 5]
    centred = UniversalAdversarialTrigger(trigger.pattern, place="centre").apply(x)
    assert torch.equal(centred[:, :, 4:8, 5:10], trigger.pattern.expand(3, -1, -1, -1))
    assert int((centred != x).any(1).sum()) == 3 * 20
    assert trigger.describe() != learned(1).describe()


def test_input_aware_triggers_are_the_formula() -> None:
    network, x = generator(), images()
    trigger = InputAwareTrigger(network)
    masks, patterns = network.mask(x), network.pattern(x)
    assert (masks.shape, patterns.shape) == ((3, 1, 12, 16), (3, 3, 12, 16))
    for part in (masks, patterns):
        assert 0 <= float(part.min()) <= float(part.max()) <= 1
    assert torch.allclose(trigger.apply(x), (1 - masks) * x + masks * patterns, atol=1e-6)
    crossed = trigger.cross(x, x.roll(1, 0))
    expected = (1 - masks.roll(1, 0)) * x + (masks * patterns).roll(1, 0)
    assert torch.allclose(crossed, expected, atol=1e-6)
    assert torch.allclose(trigger.cross(x, x), trigger.apply(x))


def test_a_chain_is_one_after_the_other() -> None:
    first, second = PatchTrigger(size=2, colour="black"), BlendedTrigger(alpha=0.5)
    chain = ChainTrigger(first, second)
    assert torch.equal(chain.apply(images()), second.apply(first.apply(images())))
    assert chain.describe()["links"] == [first.describe(), second.describe()]
