"""Which frames make a clip: against hand-made numbers, and for videos of any length."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intaglio.data.videos import Sampling
from intaglio.errors import DataError

ANY = st.builds(
    Sampling, st.sampled_from(["dense", "segments"]), st.integers(1, 20), st.integers(1, 5), st.integers(1, 6)
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sampling", "count", "expected"),
    [
        (Sampling("dense", 4), 10, [[3, 4, 5, 6]]),
        (Sampling("dense", 4), 4, [[0, 1, 2, 3]]),
        (Sampling("dense", 4), 3, [[0, 1, 2, 0]]),  # played again from its start
        (Sampling("dense", 3, stride=3), 9, [[1, 4, 7]]),
        (Sampling("dense", 3, stride=3), 5, [[0, 3, 1]]),
        (Sampling("dense", 2, clips=3), 10, [[0, 1], [4, 5], [8, 9]]),
        (Sampling("dense", 2, clips=2), 1, [[0, 0], [0, 0]]),
        (Sampling("segments", 4), 8, [[1, 3, 5, 7]]),
        (Sampling("segments", 4), 4, [[0, 1, 2, 3]]),
        (Sampling("segments", 4), 2, [[0, 0, 1, 1]]),
        (Sampling("segments", 2, clips=2), 8, [[1, 5], [3, 7]]),
        (Sampling("segments", 3), 100, [[16, 50, 83]]),
    ],
)
def test_testing_by_hand(sampling: Sampling, count: int, expected: list[list[int]]) -> None:
    assert sampling.testing(count).tolist() == expected


@given(ANY, st.integers(1, 300), st.integers(0, 50))
def test_any_video_gives_clips_of_frames_that_it_has(sampling: Sampling, count: int, seed: int) -> None:
    training, testing = sampling.training(count, generator(seed)), sampling.testing(count)
    assert training.shape == (1, sampling.frames)
    assert testing.shape == (sampling.clips, sampling.frames)
    for places in (training, testing):
        assert places.dtype == torch.int64
        assert 0 <= int(places.min()) <= int(places.max()) < count
    assert torch.equal(training, sampling.training(count, generator(seed)))
    assert torch.equal(testing, sampling.testing(count))


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 50))
def test_dense_frames_are_a_stride_apart(frames: int, stride: int, seed: int) -> None:
    count = (frames - 1) * stride + 1 + seed
    places = Sampling("dense", frames, stride).training(count, generator(seed))[0]
    assert torch.equal(places - places[0], stride * torch.arange(frames))


@given(st.integers(1, 12), st.integers(0, 100))
def test_segments_give_one_frame_of_each_part(frames: int, seed: int) -> None:
    count = 10 * frames
    for places in (Sampling("segments", frames).training(count, generator(seed))[0],
                   Sampling("segments", frames).testing(count)[0]):  # fmt: skip
        assert (places // 10).tolist() == list(range(frames))


@pytest.mark.parametrize("kind", ["dense", "segments"])
def test_training_reaches_every_frame(kind: Any) -> None:
    seen = {place for seed in range(200) for place in Sampling(kind, 3).training(9, generator(seed)).flatten().tolist()}
    assert seen == set(range(9))


@pytest.mark.parametrize("change", [{"frames": 0}, {"stride": 0}, {"clips": -1}, {"kind": "sparse"}])
def test_samplings_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="1 or more frames, stride and clips"):
        Sampling(**change)
