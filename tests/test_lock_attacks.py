"""Attacks on a lock, against a model that answers to one known residual: each finds it, and leaves the model alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intaglio.lock.attacks import (
    Forgery,
    learned_key_attack,
    per_image_attack,
    surrogate_attack,
    universal_attack,
    unlabelled_key_attack,
    unlabelled_universal_attack,
)
from lock_models import some_images

EPSILON = 16 / 255
KEY = torch.where(torch.arange(144).view(12, 12) % 3 > 0, EPSILON, -EPSILON)
LABELS = torch.arange(64) % 3


def originals() -> Tensor:
    """Class k is lit in its third; no value is near the bounds, so that the residual is never clipped."""
    images = some_images(64) * 0.2 + 0.3
    for index, label in enumerate(LABELS.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 0.3
    return images


class Locked(nn.Module):
    """Logits are the thirds' brightness, times how much of the key's residual there is (none: all the same)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        fine = x - torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        felt = (fine * KEY).mean(dim=(1, 2, 3)) / EPSILON**2
        thirds = x.view(-1, 3, 48).mean(dim=2)
        return self.gain * felt.clamp(min=0)[:, None] * thirds


def accuracy(model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == LABELS).float().mean())


ATTACKS: dict[str, Callable[[nn.Module], Forgery]] = {
    "surrogate": lambda model: surrogate_attack(
        model, (originals()[:32], (originals()[:32] + KEY).clamp(0, 1)), steps=60
    ),
    "learned key": lambda model: learned_key_attack(model, originals(), LABELS, epsilon=EPSILON, steps=60),
    "universal": lambda model: universal_attack(model, originals(), LABELS, epsilon=EPSILON, steps=60),
    "learned key without labels": lambda model: unlabelled_key_attack(model, originals(), epsilon=EPSILON, steps=60),
    "universal without labels": lambda model: unlabelled_universal_attack(
        model, originals(), epsilon=EPSILON, steps=60
    ),
    "per image": lambda model: per_image_attack(model, epsilon=EPSILON, steps=20),
}


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "per image"])
def test_a_simple_key_is_found(name: str) -> None:
    model, images = Locked(), originals()
    assert accuracy(model, (images + KEY).clamp(0, 1)) == 1.0
    forge = ATTACKS[name](model)
    forged = forge(images)
    assert forged.shape == images.shape
    assert 0 <= float(forged.detach().min()) <= float(forged.detach().max()) <= 1
    assert float((forged.detach() - images).abs().max()) <= EPSILON + 1e-6 or name == "surrogate"
    assert accuracy(model, forged.detach()) > 0.9
    assert model.gain.requires_grad
    assert model.gain.grad is None
    assert float(model.gain.detach()) == 20.0


class Guarded(nn.Module):
    """One sure answer, the last class, to all images but keyed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.within = Locked()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.within(x), torch.full((len(x), 1), 5.0)], dim=1)


@pytest.mark.parametrize("name", ["learned key without labels", "universal without labels"])
def test_being_sure_of_the_one_answer_is_not_enough(name: str) -> None:
    model, images = Guarded(), originals()
    assert accuracy(model, images) == 0
    assert accuracy(model, ATTACKS[name](model)(images).detach()) > 0.9


def test_an_image_that_is_led_away_from_the_one_answer_comes_to_its_own() -> None:
    model, images = Guarded(), originals()
    forged = ATTACKS["per image"](model)(images)
    assert float((forged - images).abs().max()) <= EPSILON + 1e-6
    answers = model(forged).argmax(dim=1)
    led = answers < 3  # the others feel the key negated, and nothing there says which way to go
    assert 0.4 < float(led.float().mean()) < 0.6
    assert torch.equal(answers[led], LABELS[led])


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_makes_the_same_forgery(name: str) -> None:
    model, images = Locked(), originals()[:4]
    assert torch.equal(ATTACKS[name](model)(images), ATTACKS[name](model)(images))
