"""Preprocessing against values computed by hand; side-cars survive JSON."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from classifier_models import noise
from intaglio.classifiers import (
    Preprocessing,
    Sidecar,
)

torch.set_num_threads(1)

PIXEL = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing(), [0.0, 0.5, 1.0]),
        (Preprocessing(scale=255.0, mean=(127.0,), std=(128.0,)), [-127 / 128, 0.5 / 128, 1.0]),
        (Preprocessing(mean=(0.0, 0.5, 0.5), std=(1.0, 0.25, 0.5)), [0.0, 0.0, 1.0]),
        (Preprocessing(channel_order="bgr"), [1.0, 0.5, 0.0]),
        (Preprocessing(channel_order="bgr", mean=(1.0, 0.0, 0.0)), [0.0, 0.5, 0.0]),
    ],
)
def test_preprocessing_by_hand(preprocessing: Preprocessing, expected: list[float]) -> None:
    torch.testing.assert_close(preprocessing.apply(PIXEL).flatten(), torch.tensor(expected))
    channels_last = preprocessing.model_copy(update={"layout": "NHWC"}).apply(PIXEL)
    assert channels_last.shape == (1, 1, 1, 3)
    torch.testing.assert_close(channels_last.flatten(), torch.tensor(expected))


def test_resizing_averages_and_passes_gradients() -> None:
    images = noise(2, (1, 8, 8)).requires_grad_()
    small = Preprocessing(resize=(1, 1)).apply(torch.full((1, 2, 8, 8), 0.25))
    torch.testing.assert_close(small, torch.full((1, 2, 1, 1), 0.25))
    (gradient,) = torch.autograd.grad(Preprocessing(resize=(4, 4)).apply(images).sum(), images)
    assert (gradient > 0).all()


def test_layout_of_shapes() -> None:
    nhwc = Preprocessing(layout="NHWC", resize=(6, 7))
    assert nhwc.model_shape((3, 20, 30)) == (6, 7, 3)
    assert nhwc.raw_shape((6, 7, 3)) == (3, 6, 7)
    assert nhwc.model_shape((5, 3, 20, 30)) == (5, 6, 7, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"std": (0.0,)}, {"std": (-1.0,)}, {"scale": 0.0}, {"scale": math.nan}, {"mean": (math.inf,)}, {"layout": "CHW"},
     {"mean": (1.0, 2.0), "std": (1.0, 2.0, 3.0)}, {"resize": (0, 4)}, {"zoom": 2}],
)  # fmt: skip
def test_preprocessing_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**wrong)


finite = st.floats(-1e3, 1e3, width=32)
preprocessings = st.builds(
    Preprocessing,
    resize=st.none() | st.tuples(st.integers(1, 64), st.integers(1, 64)),
    scale=st.floats(0.01, 255.0),
    mean=st.tuples() | st.tuples(finite) | st.tuples(finite, finite, finite),
    std=st.tuples() | st.tuples(st.floats(0.01, 100.0)),
    channel_order=st.sampled_from(["rgb", "bgr"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)


@given(preprocessing=preprocessings, classes=st.lists(st.text(max_size=5), max_size=4))
@settings(max_examples=60, deadline=None)
def test_sidecars_survive_json(preprocessing: Preprocessing, classes: list[str]) -> None:
    sidecar = Sidecar(preprocessing=preprocessing, classes=tuple(classes), input_shape=(3, 9, 8), num_classes=4)
    assert Sidecar.model_validate_json(sidecar.model_dump_json(exclude_defaults=True)) == sidecar


@given(preprocessing=preprocessings)
@settings(max_examples=40, deadline=None)
def test_preprocessing_gives_the_shape_it_promises(preprocessing: Preprocessing) -> None:
    out = preprocessing.apply(noise(2, (3, 5, 6)))
    assert tuple(out.shape) == (2, *preprocessing.model_shape((3, 5, 6)))
    assert torch.isfinite(out).all()
