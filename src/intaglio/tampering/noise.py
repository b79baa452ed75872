"""Gaussian noise on every weight."""

import math

import torch
from torch import nn

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.tampering.tampering import Material, Tampering


class Noise(Tampering):
    """w + sigma N(0, 1) for every parameter, biases and normalisation included.

    Args:
        sigma: standard deviation, above 0.
        relative: whether sigma is a share of each tensor's own root mean square.

    Raises:
        RecipeError: a sigma that isn't above 0.
    """

    name = "noise"

    def __init__(self, *, sigma: float = 1e-3, relative: bool = False) -> None:
        if not (sigma > 0 and math.isfinite(sigma)):
            raise RecipeError(f"sigma is above 0 and finite, got {sigma}")
        self.sigma = sigma
        self.relative = relative

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                generator = torch_generator(material.seed, self.name, name)
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                size = float(parameter.detach().square().mean().sqrt()) if self.relative else 1.0
                parameter.detach().add_(noise, alpha=self.sigma * size)
        return module
