"""Weight shifting: convolution kernels scaled, moved away from their mean, and made noisy; then trained on."""

import math
from typing import ClassVar, Unpack

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from intaglio.errors import ModelError, RecipeError
from intaglio.seeds import torch_generator
from intaglio.tampering.retraining import FINE_TUNING, Retraining, retrain, training_settings
from intaglio.tampering.tampering import Material, Tampering


class WeightShift(Tampering):
    """W' = scale W - shift mean(W) - noise std(W) N(0, 1) for every convolution's kernels W, and then fine-tuning.

    The mean is over output channels: what all kernels of a layer have in common. With data, the model is trained on
    afterwards, as published; without, it is left as it is.

    Args:
        scale: factor on the kernels.
        shift: factor on their mean; 1.5 as published.
        noise: factor on noise of their standard deviation; 1 as published.

    Raises:
        RecipeError: a value that is not finite, or negative noise.

    Source: Lukas et al. 2022, "SoK: How Robust is Image Classification Deep Neural Network Watermarking?".
    """

    name = "weight-shift"
    needs_labels = True
    training_defaults: ClassVar[Retraining] = FINE_TUNING

    def __init__(
        self, *, scale: float = 1.0, shift: float = 1.5, noise: float = 0.1, **training: Unpack[Retraining]
    ) -> None:
        if not all(math.isfinite(value) for value in (scale, shift, noise)) or noise < 0:
            raise RecipeError(f"scale, shift and noise are finite, noise not negative: got {scale}, {shift}, {noise}")
        self.scale = scale
        self.shift = shift
        self.noise = noise
        self.training = training_settings(self.training_defaults, training)

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        kernels = {
            name: (part.weight.detach(), 1 if part.transposed else 0)
            for name, part in module.named_modules()
            if isinstance(part, _ConvNd)
        }
        if not kernels:
            raise ModelError("weight-shift: the network has no convolution whose kernels could be shifted")
        for name, (kernel, outputs) in kernels.items():
            noise = torch.randn(kernel.shape, generator=torch_generator(material.seed, self.name, name))
            spread = kernel.std() if kernel.numel() > 1 else 0.0
            noise = noise.to(kernel.device) * spread * self.noise
            kernel.copy_(self.scale * kernel - self.shift * kernel.mean(outputs, keepdim=True) - noise)
        if material.data is None:
            return module
        return retrain(module, material.images, material.labels, self.training, material)
