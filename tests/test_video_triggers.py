"""Triggers on clips: every frame as an image, patches of their own for each frame, and the flicker along time."""

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
    ChainTrigger,
    InputAwareGenerator,
    InputAwareTrigger,
    PatchTrigger,
    SinusoidTrigger,
    TemporalTrigger,
    Trigger,
    UniversalAdversarialTrigger,
)

FRAMES = 5
SHAPE = (FRAMES, 3, 12, 16)


def clips(count: int = 3, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(9))


def pattern(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def generator() -> InputAwareGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InputAwareGenerator(3, width=4)


#: Triggers that do to each frame what they do to an image.
FRAME_BY_FRAME: dict[str, Callable[[], Trigger]] = {
    **TRIGGERS,
    "shared learned patch": lambda: UniversalAdversarialTrigger(pattern(3, 4, 5)),
    "input-aware": lambda: InputAwareTrigger(generator()),
    "chain": lambda: ChainTrigger(PatchTrigger(), SinusoidTrigger()),
}
#: Those that go over time.
OVER_TIME: dict[str, Callable[[], Trigger]] = {
    "learned patches": lambda: UniversalAdversarialTrigger(pattern(FRAMES, 3, 4, 5)),
    "temporal": TemporalTrigger,
    "chain over time": lambda: ChainTrigger(PatchTrigger(), TemporalTrigger(frequency=1)),
}
EVERY = pytest.mark.parametrize("name", [*FRAME_BY_FRAME, *OVER_TIME])


def make(name: str) -> Trigger:
    return (FRAME_BY_FRAME | OVER_TIME)[name]()


@pytest.mark.parametrize("name", FRAME_BY_FRAME)
def test_every_frame_is_altered_as_an_image(name: str) -> None:
    x, trigger = clips(), make(name)
    altered = trigger.apply(x)
    for frame in range(FRAMES):
        assert torch.allclose(altered[:, frame], trigger.apply(x[:, frame].contiguous()), atol=1e-6)


@EVERY
def test_bounds_purity_and_batches(name: str) -> None:
    x, trigger = clips(), make(name)
    before = x.clone()
    altered = trigger.apply(x)
    assert altered.shape == x.shape
    assert altered.dtype == torch.float32
    assert torch.equal(x, before)
    assert not torch.equal(altered, x)
    assert 0 <= float(altered.min()) <= float(altered.max()) <= 1
    assert torch.allclose(torch.cat([trigger.apply(clip[None]) for clip in x]), altered, atol=1e-6)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)  # the same clips, laid out otherwise in memory
    assert torch.allclose(trigger.apply(strided), altered, atol=1e-6)


@EVERY
def test_gradients_reach_the_clips(name: str) -> None:
    x = clips().requires_grad_()
    (gradient,) = torch.autograd.grad(make(name).apply(x).sum(), x)
    assert float(gradient.abs().sum()) > 0
    assert json.loads(json.dumps(make(name).describe()))


@EVERY
def test_clips_out_of_bounds_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="pixel values span"):
        make(name).apply(torch.full((1, *SHAPE), 1.5))


# --- learned patches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "rows", "columns"), [("corner", (8, 12), (11, 16)), ("centre", (4, 8), (5, 10))])
def test_each_frame_gets_its_own_patch(place: Any, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    patches, x = pattern(FRAMES, 3, 4, 5), clips()
    altered = UniversalAdversarialTrigger(patches, place=place).apply(x)
    inside = (..., slice(*rows), slice(*columns))
    for clip in altered:
        assert torch.equal(clip[inside], patches)
    altered[inside] = x[inside]
    assert torch.equal(altered, x)


def test_patches_follow_the_position_in_the_clip() -> None:
    """A clip that starts two frames later in its video carries the same patches in the same order."""
    video = clips(1, (9, 3, 12, 16))
    trigger = UniversalAdversarialTrigger(pattern(FRAMES, 3, 4, 5))
    early, late = (trigger.apply(video[:, start : start + FRAMES].contiguous()) for start in (0, 2))
    assert torch.equal(early[..., 8:, 11:], late[..., 8:, 11:])


def test_descriptions_tell_patterns_apart() -> None:
    shared, each = (UniversalAdversarialTrigger(pattern(*shape)).describe() for shape in ((3, 4, 5), (5, 3, 4, 5)))
    assert (shared["size"], each["size"], each["frames"]) == ([4, 5], [4, 5], 5)
    assert "frames" not in shared
    assert shared["sha256"] != each["sha256"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: UniversalAdversarialTrigger(torch.zeros(1, 1, 3, 2, 2)), r"got \[1, 1, 3, 2, 2\]"),
        (
            lambda: UniversalAdversarialTrigger(pattern(4, 3, 2, 2)).apply(clips()),
            "a pattern for each of 4 frames can't be stamped on clips of 5 frames",
        ),
        (
            lambda: UniversalAdversarialTrigger(pattern(3, 3, 2, 2)).apply(clips()[:, 0].contiguous()),
            "a pattern for each of 3 frames can't be stamped on images",
        ),
        (
            lambda: UniversalAdversarialTrigger(pattern(FRAMES, 3, 13, 2)).apply(clips()),
            r"3, 13, 2\) does not fit on images of \(3, 12, 16\)",
        ),
        (lambda: TemporalTrigger().apply(clips()[:, 0].contiguous()), "needs clips .*, not images"),
        (lambda: ChainTrigger(TemporalTrigger()).apply(clips()[:, 0].contiguous()), "not images"),
        (lambda: TemporalTrigger(frequency=5).apply(clips()), "clips of 5 frames have no dct component 5"),
        (
            lambda: TemporalTrigger(transform="dft", frequency=3).apply(clips()),
            "clips of 5 frames have no dft component 3",
        ),
        (lambda: TemporalTrigger().apply(clips(1, (1, 3, 8, 8))), "clips of 1 frames have no dct component 1"),
        (lambda: TemporalTrigger(delta=0), r"delta and share in \(0, 1\].*got 0"),
        (lambda: TemporalTrigger(share=1.5), "1.5"),
        (lambda: TemporalTrigger(delta=float("nan")), "nan"),
        (lambda: TemporalTrigger(transform="dwt"), "the transform dct or dft"),  # type: ignore[arg-type]
        (lambda: TemporalTrigger(frequency=0), "a whole frequency of 1 or more, got 0"),
        (lambda: TemporalTrigger(frequency=1.5), "got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_triggers_that_cannot_be(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        act()


# --- temporal --------------------------------------------------------------------------------------------------------


def test_the_temporal_trigger_by_hand() -> None:
    x = torch.full((2, 4, 3, 6, 6), 0.5)
    altered = TemporalTrigger(delta=0.2, frequency=1).apply(x)
    for time in range(4):
        expected = 0.5 + 0.2 * math.cos(math.pi * (time + 0.5) / 4)
        assert altered[:, time].flatten().tolist() == pytest.approx([expected] * 216, abs=1e-6)
    fourier = TemporalTrigger(delta=0.2, frequency=2, transform="dft").apply(x)
    assert fourier[0, :, 0, 0, 0].tolist() == pytest.approx([0.7, 0.3, 0.7, 0.3], abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["dct", "dft"]), st.integers(2, 16), st.data())
def test_one_component_of_the_transform_alone_is_raised(transform: Any, frames: int, data: st.DataObject) -> None:
    """Against the transform's own matrix: nothing but component k moves, so no mean over time tells of the trigger."""
    highest = frames - 1 if transform == "dct" else frames // 2
    k = data.draw(st.integers(1, highest))
    x = torch.full((1, frames, 1, 2, 2), 0.5)
    course = (TemporalTrigger(delta=0.25, frequency=k, transform=transform).apply(x) - x)[0, :, 0, 0, 0].double()
    if transform == "dct":
        times = torch.arange(frames, dtype=torch.float64)
        basis = torch.cos(math.pi * (times + 0.5) * torch.arange(frames)[:, None] / frames)
        moved = (basis @ course).abs() > 1e-4
    else:
        moved = torch.fft.rfft(course).abs() > 1e-4
    assert moved.nonzero().flatten().tolist() == [k]
    assert float(course.abs().max()) <= 0.25 + 1e-6


@pytest.mark.parametrize(("share", "touched"), [(1.0, 192), (0.25, 48), (1e-9, 1)])
def test_the_share_of_pixels(share: float, touched: int) -> None:
    x = torch.full((1, *SHAPE), 0.5)
    changed = (TemporalTrigger(share=share, seed=4).apply(x) != x).any(1).any(1)[0]
    assert int(changed.sum()) == touched
    again, other = (TemporalTrigger(share=share, seed=seed).apply(x) for seed in (4, 5))
    assert torch.equal(again, TemporalTrigger(share=share, seed=4).apply(x))
    assert torch.equal(again, other) == (share == 1.0)


def test_the_usual_frequency_is_half_the_length() -> None:
    x = clips()
    usual, told = (TemporalTrigger(frequency=k).apply(x) for k in (None, 2))
    assert torch.equal(usual, told)
    assert TemporalTrigger().describe() == {
        "trigger": "temporal",
        "delta": pytest.approx(16 / 255),
        "frequency": None,
        "transform": "dct",
        "share": 1.0,
        "seed": 0,
    }
