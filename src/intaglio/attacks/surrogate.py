"""Networks that an attacker trains for himself: to learn a trigger against, or to weaken images with."""

import copy

import torch
from torch import Tensor, nn

from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.networks import Architecture
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings, train

#: A module, an architecture, or an architecture's name, with its width after a colon where it isn't the usual one.
Network = nn.Module | Architecture | str

TRAINING = TrainingSettings(epochs=5, batch_size=64)
#: Sets of clips are small, and a network for them learns slowly.
TRAINING_ON_CLIPS = TrainingSettings(epochs=20, batch_size=32)


def small_network(input_shape: tuple[int, ...], num_classes: int) -> Architecture:
    """What is taken where no network is named: `resnet8`, or `r3d18` of width 8 for clips `(T, C, H, W)`."""
    if len(input_shape) == 4:
        return Architecture(name="r3d18", input_shape=input_shape, num_classes=num_classes, width=8)
    return Architecture(name="resnet8", input_shape=input_shape, num_classes=num_classes)


def victim_architecture(data: ImageData, name: str | None, width: int | None) -> Architecture:
    """The network of this name and width for these data; without a name, `small_network`."""
    usual = small_network(data.input_shape, data.num_classes)
    if name is None:
        return usual if width is None else usual.model_copy(update={"width": width})
    return usual.model_copy(update={"name": name, "width": width})


def built(network: Network, data: ImageData, *, seed: int) -> nn.Module:
    """The module itself; or a fresh one of this architecture for these data, initialised from the seed.

    Raises:
        ModelError: an unknown architecture.
        RecipeError: one that can't take images of this size, or a width that is none.
    """
    if isinstance(network, nn.Module):
        return network
    if isinstance(network, str):
        name, colon, width = network.partition(":")
        if colon and not width.isdecimal():
            raise RecipeError(f"'{network}' does not end with a width; write a name, or name:width as in r3d18:8")
        network = Architecture(
            name=name,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            width=max(int(width), 1) if colon else None,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initialisation"))
        return network.build()


def trained_surrogate(network: Network | None, data: ImageData, *, seed: int, device: str = "cpu") -> nn.Module:
    """A classifier of these data in evaluation mode, without gradients to its weights.

    A module is taken as trained, and copied; an architecture (`small_network`, if none is named) is trained on the
    data, 5 epochs of Adam, on clips 20.
    """
    if network is None:
        network = small_network(data.input_shape, data.num_classes)
    if isinstance(network, nn.Module):
        module = copy.deepcopy(network)
    else:
        settings = TRAINING_ON_CLIPS if data.images.ndim == 5 else TRAINING
        module = train(built(network, data, seed=seed), data, settings, seed=seed, device=device)
    module = module.to(device).eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.RNNBase) and part.dropout == 0:
            part.train()  # the same without dropout, and cuDNN differentiates it in this mode alone
    return module


def ascend(images: Tensor, slope: Tensor, origin: Tensor, *, step: float, epsilon: float) -> Tensor:
    """One step of projected gradient ascent: x + a sign(g), within epsilon of the origin and within [0, 1].

    Source: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", sec. 2.1.
    """
    moved = images + step * slope.sign()
    return (origin + (moved - origin).clamp(-epsilon, epsilon)).clamp(0.0, 1.0)
