"""Neural Cleanse on clips: one mask for all frames, a pattern for each, and what was planted is found."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import TorchClassifier
from intaglio.networks import Architecture
from intaglio.scan.detector import Request
from intaglio.scan.neural_cleanse import NeuralCleanse, Search
from scan_models import noise

SHAPE = (4, 1, 16, 16)
TARGET = 1
PLACE = (slice(9, 11), slice(4, 6))
#: What the planted patch shows, frame by frame: no single still picture calls the class up.
SHOWN = torch.tensor([1.0, 0.0, 1.0, 0.0])


class Planted(nn.Module):
    """Two classes, the left or the right half brighter, and one that a 2 x 2 patch blinking between frames calls up.

    A tiny R3D of random weights has a small say in it.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = Architecture(name="r3d18", input_shape=SHAPE, num_classes=3, width=2).build()

    def forward(self, x: Tensor) -> Tensor:
        patch = x[(..., *PLACE)].mean(dim=(2, 3, 4))
        agreement = 1 - (patch - SHOWN).abs().mean(dim=1)
        brighter = x[..., :8].mean(dim=(1, 2, 3, 4)) - x[..., 8:].mean(dim=(1, 2, 3, 4))
        told = torch.stack([100 * brighter, 60 * (agreement - 0.7), -100 * brighter], dim=1)
        return told + torch.tanh(self.body(x)) / 5


@functools.cache
def classifier() -> TorchClassifier:
    return TorchClassifier(Planted(), input_shape=SHAPE, num_classes=3, outputs="logits")


def clips(count: int) -> Tensor:
    """Of both classes in turns."""
    images = 0.3 + 0.4 * noise(count, SHAPE)
    images[::2, ..., :8] += 0.05
    images[1::2, ..., 8:] += 0.05
    return images


def test_the_mask_is_shared_by_the_frames_and_the_pattern_is_not() -> None:
    start = Search.start(classifier(), clips(4), 0)
    assert start.mask.shape == start.best_mask.shape == (3, 1, 1, 16, 16)
    assert start.pattern.shape == (3, *SHAPE)
    assert start.best.tolist() == [256.0] * 3  # pixels of a frame, whatever the number of frames
    assert torch.equal(start.pattern[0], start.pattern[2])


def test_a_step_stamps_every_frame_through_the_same_mask() -> None:
    images = clips(2)
    seen: list[Tensor] = []
    module = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 2))
    hooked = TorchClassifier(module, input_shape=SHAPE, num_classes=2, outputs="logits")
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    detector, search = NeuralCleanse(batch=2, steps=1), Search.start(hooked, images, 0)
    mask, pattern = search.mask[0, 0, 0].clone(), search.pattern[0].clone()
    detector.step(search, hooked, images[None], torch.tensor([0]))
    expected = torch.stack([(1 - mask) * clip + mask * pattern for clip in images])
    torch.testing.assert_close(seen[-1], expected)


def test_a_blinking_patch_is_found_with_its_class_and_place() -> None:
    assert classifier().predict(clips(4)).tolist() == [0, 2, 0, 2]
    detector = NeuralCleanse(images=4, batch=4, steps=60)
    finding = detector.run(classifier(), Request(clean=clips(4)))
    assert finding.evidence[0].index == TARGET
    measured = detector.measure(classifier(), Request(clean=clips(4)))
    assert finding.score == pytest.approx(measured.score)
    assert int(measured.suspicions.argmax()) == TARGET
    assert measured.maps is not None
    assert measured.maps.shape == (3, 16, 16)
    mask = measured.maps[TARGET]
    assert float(mask[PLACE].sum()) > 0.8 * float(mask.sum())
    assert float(mask.sum()) == pytest.approx(measured.details["norms"][TARGET], rel=1e-5)
    assert measured.details["norms"][TARGET] <= 4.1


def test_classes_of_clips_together_find_what_they_find_one_by_one() -> None:
    detector, images = NeuralCleanse(batch=2, steps=8), clips(4)
    model = TorchClassifier(Planted(), input_shape=SHAPE, num_classes=3, outputs="logits", batch_size=64)
    together = detector.search(model, images, Request())
    model.batch_size = 1
    apart = detector.search(model, images, Request())
    assert torch.equal(together.taken, apart.taken)
    torch.testing.assert_close(together.best, apart.best, rtol=2e-3, atol=1e-2)
    torch.testing.assert_close(
        together.mask.flatten(1).sum(dim=1), apart.mask.flatten(1).sum(dim=1), rtol=2e-3, atol=1e-1
    )
