"""A mark that holds where its weights are moved in the worst direction: adversarial parametric perturbation."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call

from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.mark.deep_fidelity import DeepFidelity, Hardening
from intaglio.mark.options import DeepFidelityOptions
from intaglio.mark.scheme import Host, Logits


class AdversarialParametric(DeepFidelity):
    """L = L_mode + a CE(T; theta + delta), delta_l = e ||theta_l|| g_l / ||g_l||, g the gradient of CE(T; theta).

    Args:
        strength: a.
        radius: e, relative to each parameter tensor's norm.
        options: of `DeepFidelity`.

    Source: Gan et al. 2023 (ICCV), "Towards Robust Model Watermark via Reducing Parametric Vulnerability" (there
    a = 0.01 beside a cross-entropy over clean images and triggers; e = 0.02).
    """

    name: ClassVar[str] = "adversarial-parametric"

    def __init__(self, *, strength: float = 1.0, radius: float = 0.02, **options: Unpack[DeepFidelityOptions]) -> None:
        super().__init__(**options)
        if not (strength >= 0 and radius > 0):  # also true for NaN
            raise RecipeError("an adversarial perturbation needs a radius above 0 and a strength of 0 or more")
        self.strength = strength
        self.radius = radius

    def hardening(self, host: Host, module: nn.Module, data: ImageData, seed: int) -> Hardening:
        model = Logits(host, module)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
            slopes = torch.autograd.grad(self.taught(model(images), labels), list(trained.values()), allow_unused=True)
            moved = {
                name: value + self.radius * value.detach().norm() * slope / slope.norm().clamp_min(1e-12)
                for (name, value), slope in zip(trained.items(), slopes, strict=True)
                if slope is not None  # a layer that has no say
            }
            answers: Tensor = functional_call(model, moved, (images,))
            return self.strength * self.taught(answers, labels)

        return loss
