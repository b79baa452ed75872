"""A mark that holds where its weights are moved in the worst direction: adversarial parametric perturbation."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from intaglio.errors import RecipeError
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
        if not (strength >= 0 and radius > 0):  # also true for NaN
            raise RecipeError("an adversarial perturbation needs a radius above 0 and a strength of 0 or more")
        self.strength = strength
        self.radius = radius

    def trigger_loss(self, host: Host, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        model = _Logits(host, module)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        gradients = torch.autograd.grad(cross_entropy(model(images), labels), list(trained.values()), allow_unused=True)
        moved = {
            name: value + self.radius * value.detach().norm() * gradient / gradient.norm().clamp_min(1e-12)
            for (name, value), gradient in zip(trained.items(), gradients, strict=True)
            if gradient is not None  # a layer that has no say
        }
        answers: Tensor = functional_call(model, moved, (images,))
        return self.strength * cross_entropy(answers, labels)


class _Logits(nn.Module):
    """The module from raw images to logits, before a softmax that may follow."""

    def __init__(self, host: Host, module: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.host.answer(self.module, images)[0]
