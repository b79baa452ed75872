"""A mark that holds where its weights are moved in the worst direction: adversarial parametric perturbation."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from intaglio.mark.deep_fidelity import DeepFidelity
from intaglio.mark.options import DeepFidelityOptions
from intaglio.mark.scheme import Host


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
        self.strength = strength
        self.radius = radius

    def trigger_loss(self, host: Host, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        inputs = host.preprocessing.apply(images)
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        gradients = torch.autograd.grad(cross_entropy(module(inputs), labels), list(trained.values()))
        moved = {
            name: value + self.radius * value.detach().norm() * gradient / gradient.norm().clamp_min(1e-12)
            for (name, value), gradient in zip(trained.items(), gradients, strict=True)
        }
        answers: Tensor = functional_call(module, moved, (inputs,))
        return self.strength * cross_entropy(answers, labels)
