"""What is done to clips before a model sees them: each as its definition says, and refused where it makes no sense."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing, TorchClassifier
from intaglio.errors import DataError, RecipeError
from intaglio.tampering import (
    CLIP_TRANSFORMS,
    INPUT_TRANSFORMS,
    Distil,
    DropFrames,
    InputTransform,
    Recompress,
    ResampleTime,
    ShuffleFrames,
    TemporalBlur,
    TemporalMedian,
    TransformedInput,
    clip_inputs,
)

CODECS = ("h264", "mpeg4", "mjpeg")


def scene(count: int = 2, frames: int = 8, channels: int = 3, sides: tuple[int, int] = (18, 21)) -> Tensor:
    """Smooth shades that drift from one frame to the next, `[N, T, C, H, W]`."""
    time, down, right = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, *sides)), indexing="ij")
    clips = []
    for number in range(count):
        for channel in range(channels):
            wave = 3 * down + (1 + channel) * right + (1.5 + number) * time
            clips.append(0.5 + 0.4 * torch.sin(2 * wave))
    return torch.stack(clips).view(count, channels, frames, *sides).transpose(1, 2).contiguous()


def ticking(frames: int) -> Tensor:
    """Two clips, 1 x 2 pixels: frame t is of the grey t / 100, and in the second clip 0.5 more."""
    return (torch.arange(frames) / 100).view(1, -1, 1, 1, 1).expand(1, -1, 1, 1, 2) + torch.tensor([0.0, 0.5]).view(
        2, 1, 1, 1, 1
    )


def order(clips: Tensor) -> list[int]:
    """Which frame each of the first clip's is."""
    return [round(value * 100) for value in clips[0, :, 0, 0, 0].tolist()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*CLIP_TRANSFORMS, *INPUT_TRANSFORMS])
def test_every_transform_of_clips(name: str, channels: int) -> None:
    clips = scene(channels=channels)
    before, transform = clips.clone(), (CLIP_TRANSFORMS | INPUT_TRANSFORMS)[name]()
    result = transform(clips)
    assert torch.equal(clips, before)
    assert (result.shape, result.dtype) == (clips.shape, torch.float32)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert 0 < float((result - clips).abs().mean()) < 0.15
    assert torch.equal(result, transform(clips))
    if name != "noise":  # clip by clip
        assert torch.equal(result[1:2], transform(clips[1:2]))
    with pytest.raises(DataError, match="pixel values span"):
        transform(clips + 1)


@pytest.mark.parametrize("name", CLIP_TRANSFORMS)
def test_images_are_no_clips(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} works on clips \[N, T, C, H, W\], got images \[2, 3, 18, 21\]"):
        CLIP_TRANSFORMS[name]()(scene()[:, 0])


def test_transforms_of_images_take_each_frame() -> None:
    clips = scene()
    for name in ("jpeg", "resize", "round"):
        transform: InputTransform = INPUT_TRANSFORMS[name]()
        frames = torch.stack([transform(clips[:, place]) for place in range(8)], dim=1)
        torch.testing.assert_close(transform(clips), frames)


@given(frames=st.integers(1, 12), share=st.floats(0, 0.99), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_dropped_frames_are_replaced_by_the_nearest_kept(frames: int, share: float, seed: int) -> None:
    found = order(DropFrames(share=share, seed=seed)(ticking(frames)))
    kept = sorted(set(found))
    assert all(found[place] == place for place in kept)
    assert len(kept) == max(frames - round(share * frames), 1)
    assert all(abs(one - place) == min(abs(other - place) for other in kept) for place, one in enumerate(found))


@given(frames=st.integers(1, 12), window=st.integers(2, 14), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_frames_are_shuffled_within_windows(frames: int, window: int, seed: int) -> None:
    found = order(ShuffleFrames(window=window, seed=seed)(ticking(frames)))
    assert sorted(found) == list(range(frames))
    assert all(one // window == place // window for place, one in enumerate(found))


def test_seeds_and_clips() -> None:
    clips = ticking(12)
    for transform in (DropFrames, ShuffleFrames):
        assert order(transform(seed=1)(clips)) != order(transform(seed=2)(clips))
        result = transform()(clips)
        torch.testing.assert_close(result[1], result[0] + 0.5)  # the same frames of every clip


def test_resampling() -> None:
    clips = scene()
    assert torch.equal(ResampleTime(factor=1.0)(clips), clips)
    straight = ticking(9)
    for factor in (0.5, 2.0, 0.25):
        torch.testing.assert_close(ResampleTime(factor=factor)(straight), straight)  # what is linear in time stays
    flicker = (torch.arange(9) % 2).float().view(1, 9, 1, 1, 1)
    assert not ResampleTime(factor=5 / 9)(flicker).any()  # every second frame, and back
    first = ResampleTime(factor=0.01)(clips)
    torch.testing.assert_close(first, clips[:, :1].expand_as(clips))


def test_filters_along_time_by_hand() -> None:
    flash = torch.zeros(1, 6, 1, 1, 1)
    flash[0, 3] = 0.9
    assert TemporalMedian(width=3)(flash).flatten().tolist() == [0.0] * 6
    assert TemporalBlur(width=3)(flash).flatten().tolist() == pytest.approx([0, 0, 0.3, 0.3, 0.3, 0])
    start = torch.zeros(1, 4, 1, 1, 1)
    start[0, 0] = 0.9
    assert TemporalBlur(width=5)(start).flatten().tolist() == pytest.approx([0.54, 0.36, 0.18, 0])
    clips = scene()
    for filter_ in (TemporalMedian, TemporalBlur):
        assert torch.equal(filter_(width=1)(clips), clips)
        assert filter_(width=11)(clips[:, :2]).shape == (2, 2, 3, 18, 21)


@pytest.mark.parametrize("codec", CODECS)
def test_the_better_the_quality_the_less_is_lost(codec: Any) -> None:
    clips = scene(1, channels=1)  # without colours, which every quality halves in resolution
    errors = [float((Recompress(codec=codec, quality=quality)(clips) - clips).abs().mean()) for quality in (100, 40, 1)]
    assert errors == sorted(errors)
    assert errors[0] < 0.015
    assert errors[2] > 2 * errors[0]


@pytest.mark.parametrize("codec", CODECS)
def test_frames_come_back_in_their_order(codec: Any) -> None:
    clips = (torch.arange(12) / 16 + 0.1).view(1, 12, 1, 1, 1).expand(1, 12, 1, 7, 50).contiguous()
    found = Recompress(codec=codec, quality=80)(clips)
    torch.testing.assert_close(found, clips, atol=0.02, rtol=0)


@pytest.mark.parametrize("codec", CODECS)
def test_what_memory_held_before_changes_nothing(codec: Any) -> None:
    """x264 once read memory that it had not written: the same clip came back in several ways."""
    clips, transform = scene(1), Recompress(codec=codec)
    first = transform(clips)
    for number in range(20):
        dirty = [torch.full((size,), number / 20) for size in range(100, 9000, 700)]
        del dirty
        assert torch.equal(transform(clips), first)


def test_a_codec_takes_what_others_leave_alone() -> None:
    """Noise that differs from frame to frame costs bits, and is lost first."""
    still = torch.full((1, 8, 1, 32, 32), 0.5)
    noisy = still + 0.02 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    assert float((Recompress(quality=30)(noisy) - still).std()) < 0.3 * float((noisy - still).std())


def test_recompression_needs_colours_and_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="takes clips of 1 or 3 channels, got 2"):
        Recompress()(scene(channels=2))
    for encoder, message in (
        ("no such encoder", r"h264 can't code clips of \[8, 18, 22, 3\]"),
        ("mjpeg", "recompress"),
    ):
        coding = clip_inputs._Coding(encoder, "h264", "yuvj420p", 31, 2)  # a decoder that makes nothing of mjpeg
        monkeypatch.setitem(clip_inputs._CODINGS, "h264", coding)
        with pytest.raises(DataError, match=message):
            Recompress()(scene())


def test_a_model_of_clips_behind_a_transform() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(8 * 3 * 18 * 21, 3)).eval()
    way, transform, clips = Preprocessing(scale=2.0), TemporalBlur(), scene()
    behind = TorchClassifier(TransformedInput(module, transform, way), input_shape=(8, 3, 18, 21), num_classes=3)
    plain = TorchClassifier(module, input_shape=(8, 3, 18, 21), num_classes=3, preprocessing=way)
    torch.testing.assert_close(behind.scores(clips), plain.scores(transform(clips)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropFrames(share=1), r"share of frames to drop lies in \[0, 1\), got 1"),
        (lambda: DropFrames(share=-0.1), "got -0.1"),
        (lambda: ShuffleFrames(window=1), "windows of 2 or more, got 1"),
        (lambda: ResampleTime(factor=0), "factor is above 0 and finite, got 0"),
        (lambda: ResampleTime(factor=float("inf")), "got inf"),
        (lambda: TemporalMedian(width=2), "an odd number of frames wide, got 2"),
        (lambda: TemporalBlur(width=-1), "got -1"),
        (
            lambda: Recompress(codec="vp9"),  # type: ignore[arg-type]
            "unknown codec 'vp9'; known are h264, mpeg4, mjpeg",
        ),
        (lambda: Recompress(quality=101), "quality lies between 1 and 100, got 101"),
        (lambda: Distil(student="c4d"), "for videos cnn_lstm, i3d"),
    ],
)
def test_values_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
