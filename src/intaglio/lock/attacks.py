"""Attacks on a lock. The attacker holds the locked model's weights, and images, labelled ones or none, or keyed pairs.

Attacks on the key:
    surrogate        a U-Net of the attacker's own learns E from N pairs (x, E(x)), through the locked model
    learned key      the same U-Net without a pair: it learns what the model answers rightly to, from labelled images
    universal        one residual for all images, optimised on labelled images
    without labels   either of those two, optimised until the model is sure of each image and of many classes
    per image        one residual for each image, optimised until the model answers something else; no data
Attacks on the model:
    fine-tune, head  training on with labelled images; the last layer alone, drawn anew
    distil           a model of the attacker's own learns the answers an authorised user gets for the same images

Each result stands beside training from scratch on the same labelled images: the lock's worth is the difference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from intaglio.lock.frames import frames
from intaglio.lock.key_network import relief
from intaglio.networks.unet import UNet
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings, train
from intaglio.triggers.sample_specific import EPSILON

#: Maps images to what the attacker hands to the locked model.
Forgery = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]

_BATCH = 250
_SMALLEST = 1e-9


class SurrogateEncoder(nn.Module):
    """The attacker's own key network: x + e tanh(UNet(x)), as bold as the attacker likes."""

    def __init__(self, channels: int, *, epsilon: float = EPSILON, width: int = 12) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.relief = 1.0
        self.network = UNet(channels, channels, width)

    def forward(self, images: Tensor) -> Tensor:
        drawn = self.epsilon * self.relief * torch.tanh(self.network(frames(images) - 0.5)).view_as(images)
        forged: Tensor = (images + drawn).clamp(0, 1)
        return forged


def surrogate_attack(model: nn.Module, pairs: Pair, *, steps: int = 1000, seed: int = 0) -> Forgery:
    """Learns E from originals and keyed images `[N, C, H, W]`: their difference, and the model's answer to them."""
    originals, keyed = pairs
    with torch.no_grad():
        answers = torch.cat([log_softmax(model(part), dim=1) for part in torch.split(keyed, _BATCH)])
    places = torch.arange(len(originals))

    def loss(encoder: nn.Module, images: Tensor, chosen: Tensor) -> Tensor:
        forged: Tensor = encoder(images)
        distance = (forged - keyed[chosen]).square().mean() / (keyed[chosen] - images).square().mean()
        told: Tensor = kl_div(
            log_softmax(model(forged), dim=1), answers[chosen], log_target=True, reduction="batchmean"
        )
        return distance + told

    return _trained_encoder(model, originals, places, loss, steps, seed)


def learned_key_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float = EPSILON, steps: int = 1000, seed: int = 0
) -> Forgery:
    """Learns a key network that makes the model answer rightly, from labelled images alone."""

    def loss(encoder: nn.Module, batch: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(model(encoder(batch)), wanted)

    return _trained_encoder(model, images, labels, loss, steps, seed, epsilon=epsilon, loud_at_first=True)


def universal_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float = EPSILON, steps: int = 500, seed: int = 0
) -> Forgery:
    """One residual within `epsilon` for all images, optimised with labels through the model."""

    def loss(residual: nn.Module, batch: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(model(residual(batch)), wanted)

    return _trained_residual(model, images, labels, loss, epsilon, steps, seed)


def unlabelled_key_attack(
    model: nn.Module, images: Tensor, *, epsilon: float = EPSILON, steps: int = 1000, seed: int = 0
) -> Forgery:
    """Learns a key network that makes the model sure of each image, and of many classes, without labels (`_told`)."""

    def loss(encoder: nn.Module, batch: Tensor, wanted: Tensor) -> Tensor:
        return -_told(model(encoder(batch)))

    nothing = torch.zeros(len(images))
    return _trained_encoder(model, images, nothing, loss, steps, seed, epsilon=epsilon, loud_at_first=True)


def unlabelled_universal_attack(
    model: nn.Module, images: Tensor, *, epsilon: float = EPSILON, steps: int = 500, seed: int = 0
) -> Forgery:
    """One residual within `epsilon` for all images that makes the model sure of each, and of many classes (`_told`)."""

    def loss(residual: nn.Module, batch: Tensor, wanted: Tensor) -> Tensor:
        return -_told(model(residual(batch)))

    return _trained_residual(model, images, torch.zeros(len(images)), loss, epsilon, steps, seed)


def per_image_attack(model: nn.Module, *, epsilon: float = EPSILON, steps: int = 40) -> Forgery:
    """For each image, the residual within `epsilon` that leads away from what the model answers to it without a key.

    Sign steps of `epsilon / 8` that make that answer ever less likely, starting from the image itself (Madry et al.
    2018, without a label).
    """

    def forge(images: Tensor) -> Tensor:
        with _as_it_is(model):
            return torch.cat([_led_away(model, part, epsilon, steps) for part in torch.split(images, _BATCH)])

    return forge


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode and its weights take no gradients."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _told(answers: Tensor) -> Tensor:
    """How much a batch of answers tells: H(mean answer) times 2, less the mean entropy H of an answer.

    Twice, for a model that gives everyone one answer is as sure as can be: being sure of each image must not be enough
    (Krause et al. 2010, regularised information maximisation).
    """
    logarithms = log_softmax(answers, dim=1)
    mean = logarithms.exp().mean(dim=0)
    entropies = -(logarithms.exp() * logarithms).sum(dim=1)
    return -2 * (mean * (mean + _SMALLEST).log()).sum() - entropies.mean()


def _led_away(model: nn.Module, images: Tensor, epsilon: float, steps: int) -> Tensor:
    residual = torch.zeros_like(images)
    with torch.no_grad():
        unkeyed = model(images).argmax(dim=1, keepdim=True)
    for _ in range(steps):
        residual.requires_grad_(True)
        answers = log_softmax(model((images + residual).clamp(0, 1)), dim=1)
        (slope,) = torch.autograd.grad(answers.gather(1, unkeyed).sum(), residual)
        residual = (residual.detach() - epsilon / 8 * slope.sign()).clamp(-epsilon, epsilon)
    return (images + residual).clamp(0, 1)


class _Residual(nn.Module):
    """x + e tanh(r): one residual r for all images."""

    def __init__(self, shape: tuple[int, ...], epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.drawn = nn.Parameter(torch.zeros(1, *shape))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch + self.epsilon * torch.tanh(self.drawn)).clamp(0, 1)


def _trained_residual(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    epsilon: float,
    steps: int,
    seed: int,
) -> nn.Module:
    """Trains one residual for all images with the model frozen."""
    with _as_it_is(model):
        settings = TrainingSettings(steps=steps, batch_size=64, learning_rate=0.05)
        residual = _Residual(tuple(images.shape[1:]), epsilon)
        return train(residual, (images, targets), settings, seed=derive_seed(seed, "universal"), loss=loss)


def _trained_encoder(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    steps: int,
    seed: int,
    *,
    epsilon: float = EPSILON,
    loud_at_first: bool = False,
) -> nn.Module:
    """Trains the attacker's encoder with the model frozen; `loud_at_first` gives it the defender's own schedule."""
    torch.manual_seed(derive_seed(seed, "surrogate"))
    encoder = SurrogateEncoder(images.shape[-3], epsilon=epsilon)
    done = 0

    def scheduled(module: nn.Module, batch: Tensor, wanted: Tensor) -> Tensor:
        nonlocal done
        encoder.relief = relief(done / steps) if loud_at_first else 1.0
        done += 1
        return loss(module, batch, wanted)

    with _as_it_is(model):
        settings = TrainingSettings(steps=steps, batch_size=min(64, len(images)), learning_rate=2e-3)
        train(encoder, (images, targets), settings, seed=derive_seed(seed, "surrogate"), loss=scheduled)
    encoder.relief = 1.0
    return encoder
