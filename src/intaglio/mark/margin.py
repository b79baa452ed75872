"""A mark that holds in a whole neighbourhood of every trigger: margin-based embedding."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.mark.deep_fidelity import DeepFidelity, Hardening
from intaglio.mark.options import DeepFidelityOptions
from intaglio.mark.scheme import Host


class Margin(DeepFidelity):
    """L = L_mode + a max over ||d||_inf <= e of CE(T + d), the maximum found by `steps` of projected gradient ascent.

    The search climbs the plain cross-entropy: its signs hardly differ from those at a temperature.

    Args:
        strength: a.
        radius: e, in units of the pixel range.
        steps: of the search, each of 2 e / steps.
        options: of `DeepFidelity`.

    Source: Kim et al. 2023 (ICML), "Margin-based Neural Network Watermarking"; Madry et al. 2018 for the search.
    """

    name: ClassVar[str] = "margin"

    def __init__(
        self,
        *,
        strength: float = 1.0,
        radius: float = 8 / 255,
        steps: int = 3,
        **options: Unpack[DeepFidelityOptions],
    ) -> None:
        super().__init__(**options)
        if not (steps >= 1 and radius > 0 and strength >= 0):  # also true for NaN
            raise RecipeError("a margin needs a radius above 0, at least 1 step and a strength of 0 or more")
        self.strength = strength
        self.radius = radius
        self.steps = steps

    def hardening(self, host: Host, module: nn.Module, data: ImageData, seed: int) -> Hardening:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            offset = torch.zeros_like(images)
            for _ in range(self.steps):
                offset.requires_grad_(True)
                value = cross_entropy(host.answer(module, (images + offset).clamp(0, 1))[0], labels)
                (slope,) = torch.autograd.grad(value, offset)
                offset = (offset.detach() + 2 * self.radius / self.steps * slope.sign()).clamp(
                    -self.radius, self.radius
                )
            return self.strength * self.taught(host.answer(module, (images + offset).clamp(0, 1))[0], labels)

        return loss
