"""Networks that an attacker trains for himself: to learn a trigger against, or to weaken images with."""

import copy

import torch
from torch import Tensor, nn

from intaglio.data import ImageData
from intaglio.networks import Architecture
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings, train

#: A module, an architecture, or an architecture's name.
Network = nn.Module | Architecture | str

TRAINING = TrainingSettings(epochs=5, batch_size=64)


def built(network: Network, data: ImageData, *, seed: int) -> nn.Module:
    """The module itself; or a fresh one of this architecture for these data, initialised from the seed.

    Raises:
        ModelError: an unknown architecture.
        RecipeError: one that can't take images of this size.
    """
    if isinstance(network, nn.Module):
        return network
    if isinstance(network, str):
        network = Architecture(name=network, input_shape=data.input_shape, num_classes=data.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initialisation"))
        return network.build()


def trained_surrogate(network: Network, data: ImageData, *, seed: int, device: str = "cpu") -> nn.Module:
    """A classifier of these data in evaluation mode, without gradients to its weights.

    A module is taken as trained, and copied; an architecture is trained on the data, 5 epochs of Adam.
    """
    if isinstance(network, nn.Module):
        module = copy.deepcopy(network)
    else:
        module = train(built(network, data, seed=seed), data, TRAINING, seed=seed, device=device)
    return module.to(device).eval().requires_grad_(False)


def ascend(images: Tensor, slope: Tensor, origin: Tensor, *, step: float, epsilon: float) -> Tensor:
    """One step of projected gradient ascent: x + a sign(g), within epsilon of the origin and within [0, 1].

    Source: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", sec. 2.1.
    """
    moved = images + step * slope.sign()
    return (origin + (moved - origin).clamp(-epsilon, epsilon)).clamp(0.0, 1.0)
