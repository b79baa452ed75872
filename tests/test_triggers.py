"""Every trigger by one table (the formula, purity, seeds), and each one's mask by hand."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.errors import DataError, RecipeError
from intaglio.triggers import TRIGGERS, BlendedTrigger, PatchTrigger, PixelTrigger, StampTrigger

Shape = tuple[int, int, int]
HALF = (0.5, 0.5, 1.0, 1.0)

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("patch", {"shape": shape, "size": 4}) for shape in ("square", "cross", "disc", "corner", "speckle")),
    *(("patch", {"colour": colour, "size": 3}) for colour in ("white", "black", "binary", "noise", "solid")),
    ("patch", {"opacity": 0.3, "colour": "noise", "region": HALF}),
    *(("blended", {"pattern": pattern, "alpha": 0.2}) for pattern in ("noise", "blobs", "stripes", "checkerboard")),
    ("blended", {"alpha": 1.0}),
    *(("pixels", {"count": 5, "colour": colour, "region": HALF}) for colour in ("white", "black", "binary")),
    ("pixels", {}),
]
EVERY = pytest.mark.parametrize(("name", "options"), CASES)


def make(name: str, options: dict[str, Any], seed: int = 0) -> StampTrigger:
    family: Any = TRIGGERS[name]
    trigger = family(**options, seed=seed)
    assert isinstance(trigger, StampTrigger)
    return trigger


def images(shape: Shape = (3, 12, 16), count: int = 3) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(9))


def rows(mask: Tensor) -> list[str]:
    """The mask as text: `#` where it is set."""
    return ["".join(".#"[int(value > 0)] for value in row) for row in mask.tolist()]


def patch_mask(trigger: StampTrigger) -> list[str]:
    size: int = vars(trigger)["size"]
    return rows(trigger.stamp((1, size, size))[0])


def test_the_table_names_every_stamp() -> None:
    stamps = {name for name, family in TRIGGERS.items() if issubclass(family, StampTrigger)}
    assert {name for name, _ in CASES} == stamps


@EVERY
@pytest.mark.parametrize("shape", [(1, 12, 16), (3, 16, 12)])
def test_formula(name: str, options: dict[str, Any], shape: Shape) -> None:
    trigger, x = make(name, options), images(shape)
    before = x.clone()
    mask, pattern = trigger.stamp(shape)
    assert (mask.shape, pattern.shape) == (shape[1:], shape)
    for part in (mask, pattern):
        assert 0 <= float(part.min()) <= float(part.max()) <= 1
    assert float(mask.max()) == pytest.approx(options.get("opacity", options.get("alpha", 1.0)))
    stamped = trigger.apply(x)
    for index, (row, column) in ((0, (0, 0)), (2, (7, 9)), (1, divmod(int(mask.argmax()), shape[2]))):
        weight = mask[row, column]
        expected = (1 - weight) * x[index, :, row, column] + weight * pattern[:, row, column]
        assert torch.allclose(stamped[index, :, row, column], expected)
    assert torch.equal(stamped[:, :, mask == 0], x[:, :, mask == 0])
    assert torch.equal(x, before)
    assert stamped.data_ptr() != x.data_ptr()
    assert torch.equal(torch.cat([trigger.apply(image[None]) for image in x]), stamped)  # one by one = in a batch


@EVERY
def test_same_seed_same_stamp(name: str, options: dict[str, Any]) -> None:
    stamps: list[Tensor] = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(stamps))  # the global generator has no say
        stamps.append(torch.cat([part.flatten() for part in make(name, options, seed).stamp((3, 12, 16))]))
    assert torch.equal(stamps[0], stamps[1])
    fixed = name == "blended" and options.get("pattern") == "checkerboard"
    assert fixed or not torch.equal(stamps[0], stamps[2])


@EVERY
def test_differentiable(name: str, options: dict[str, Any]) -> None:
    trigger = make(name, options)
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(trigger.apply(x).sum(), x)
    mask, _ = trigger.stamp((3, 12, 16))
    assert torch.allclose(gradient, (1 - mask).expand_as(x))


@EVERY
def test_descriptions_are_json_and_make_the_trigger_again(name: str, options: dict[str, Any]) -> None:
    trigger = make(name, options, seed=7)
    description = trigger.describe()
    assert json.loads(json.dumps(description)) == description
    assert description.pop("trigger") == name
    again = make(name, {key: value for key, value in description.items() if key != "seed"}, description["seed"])
    assert torch.equal(again.apply(images()), trigger.apply(images()))


@EVERY
@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 3), torch.zeros(1, 1, 9, 9).double(), torch.full((1, 1, 9, 9), 2.0)])
def test_images_out_of_bounds_are_refused(name: str, options: dict[str, Any], bad: Tensor) -> None:
    with pytest.raises(DataError, match=f"input of trigger {name}"):
        make(name, options).apply(bad)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shape": "square", "size": 2}, ["##", "##"]),
        ({"shape": "cross", "size": 3}, [".#.", "###", ".#."]),
        ({"shape": "cross", "size": 4}, [".##.", "####", "####", ".##."]),
        ({"shape": "disc", "size": 4}, [".##.", "####", "####", ".##."]),
        ({"shape": "corner", "size": 3}, ["###", "#..", "#.."]),
        ({"shape": "corner", "size": 6}, ["######", "######", "##....", "##....", "##....", "##...."]),
        ({"size": 1, "shape": "disc"}, ["#"]),
    ],
)
def test_patch_masks_by_hand(options: dict[str, Any], expected: list[str]) -> None:
    assert patch_mask(PatchTrigger(**options)) == expected


def test_a_white_patch_by_hand() -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    stamped = PatchTrigger(size=2, opacity=0.5, region=(0, 0.5, 0.5, 1)).apply(x)
    assert stamped[0, 0].tolist() == [[0.5, 0.5, 0.75, 0.75]] * 2 + [[0.5] * 4] * 2


def test_a_blend_by_hand() -> None:
    pattern = BlendedTrigger(alpha=0.25, seed=4).stamp((1, 2, 2))[1]
    stamped = BlendedTrigger(alpha=0.25, seed=4).apply(torch.full((1, 1, 2, 2), 0.8))
    assert torch.allclose(stamped[0], 0.6 + 0.25 * pattern)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_speckle_is_half_of_the_patch(size: int) -> None:
    for seed in range(20):
        lit = "".join(patch_mask(PatchTrigger(size=size, shape="speckle", seed=seed))).count("#")
        assert lit in (size**2 // 2 + 1, (size**2 + 1) // 2)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 4),
    st.integers(0, 7),
    st.integers(0, 7),
    st.sampled_from(["patch", "pixels"]),
)
def test_regions_are_respected(seed: int, size: int, top: int, left: int, name: str) -> None:
    region = (top / 12, left / 12, (top + 5) / 12, (left + 4) / 12)
    options = {"size": size} if name == "patch" else {"count": size}
    mask, pattern = make(name, options | {"region": region}, seed).stamp((1, 12, 12))
    lit = mask.nonzero()
    assert len(lit) == (size**2 if name == "patch" else size)
    assert lit[:, 0].min() >= top
    assert lit[:, 0].max() < top + 5
    assert lit[:, 1].min() >= left
    assert lit[:, 1].max() < left + 4
    assert torch.equal(pattern, mask[None])  # white


def test_seeds_reach_every_place() -> None:
    places = {PatchTrigger(size=3, seed=seed).place((1, 5, 4)) for seed in range(60)}
    assert places == {(row, column) for row in range(3) for column in range(2)}


@pytest.mark.parametrize(("colour", "values"), [("white", {1.0}), ("black", {0.0}), ("binary", {0.0, 1.0})])
def test_pixels_have_their_colours(colour: Any, values: set[float]) -> None:
    mask, pattern = PixelTrigger(count=12, colour=colour).stamp((3, 6, 6))
    assert set(pattern[:, mask == 1].flatten().tolist()) == values
    assert torch.equal(pattern[0], pattern[2])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patch", {"size": 0}, "size >= 1"),
        ("patch", {"size": 2.5}, "a whole size"),
        ("patch", {"opacity": 0}, r"opacity in \(0, 1\], got 3 and 0"),
        ("patch", {"opacity": float("nan")}, "opacity"),
        ("patch", {"shape": "star"}, "unknown patch shape 'star'"),
        ("patch", {"colour": "red"}, "colour 'red'"),
        ("patch", {"region": (0.0, 0.0, 1.0)}, "a region is"),
        ("patch", {"region": (0.5, 0.0, 0.4, 1.0)}, "a region is"),
        ("patch", {"region": (0.0, -0.1, 1.0, 1.0)}, "a region is"),
        ("pixels", {"region": (0.0, 0.0, 1.0, 1.1)}, "a region is"),
        ("pixels", {"count": 0}, "got 0 and 'white'"),
        ("pixels", {"colour": "noise"}, "'noise'"),
        ("blended", {"alpha": 0.0}, r"alpha in \(0, 1\]"),
        ("blended", {"alpha": 1.5}, "got 1.5"),
        ("blended", {"pattern": "kitty"}, "'kitty'"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patch", {"size": 7}, "a patch of 7 pixels does not fit into 6"),
        ("patch", {"size": 4, "region": HALF}, "does not fit into 3"),
        ("pixels", {"count": 10, "region": HALF}, "10 pixels do not fit into 9"),
    ],
)
def test_stamps_larger_than_the_image(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(name, options).apply(images((1, 6, 6)))
