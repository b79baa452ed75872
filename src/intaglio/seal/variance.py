"""`variance`: the generator of the first fragile watermark without model change. A baseline."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from intaglio.classifiers import Access, Classifier
from intaglio.errors import RecipeError
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.surface import LEVELS, probabilities, require_module

_SLOPE = 0.2
_EPSILON = 1e-8
_LEAST = torch.finfo(torch.float32).tiny


class Variance(SealMethod):
    """A generator G is trained until f(G(z)) answers with keyed labels s, at low variance of the probabilities p.

        L = CE(f(G(z)), s) + weight * Var(p)        over all N K entries of p, unbiased

    z is fixed noise `[N, 512]`, drawn from the key; f's weights are never updated. Adam at 1e-4 with betas (0.5, 0.999)
    for at most 300 steps, stopping when all labels match; labels that don't match by then are taken as they are. The
    images, in [0, 1] by a tanh, are rounded to grey levels.

    Args:
        weight: of the variance (150; 4000 for CIFAR-100).
        steps: at most.
        channels: of the generator's layers (512 in the progressive GAN it is modelled on; fewer run on a CPU).

    Raises:
        RecipeError: a value that makes no sense.

    Source: Yin, Yin & Zhang, "Neural Network Fragile Watermarking With No Model Performance Degradation", ICIP 2022.
    """

    name = "variance"
    requires = Access.GRADIENTS
    latent: ClassVar[int] = 512

    def __init__(self, *, weight: float = 150.0, steps: int = 300, channels: int = 64) -> None:
        if weight < 0 or steps < 1 or channels < 1:
            raise RecipeError(f"a weight from 0, steps and channels from 1, got {weight}, {steps} and {channels}")
        self.weight = weight
        self.steps = steps
        self.channels = channels

    def run(self, classifier: Classifier, request: Request) -> Triggers:
        module = require_module(classifier, self.name)
        count = 2 * request.pairs
        latent = torch.randn(count, self.latent, generator=request.draws.generator("latent"))
        wanted = torch.tensor(request.draws.targets(count, classifier.num_classes)).to(module.device)
        generator = Generator(classifier.input_shape, latent=self.latent, channels=self.channels)
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.999))
        with torch.enable_grad():
            for step in range(self.steps):
                found = probabilities(module, generator(latent))
                if bool((found.argmax(dim=1) == wanted).all()):
                    break
                optimizer.zero_grad()
                loss(found, wanted, self.weight).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if request.progress is not None:
                    request.progress(step + 1, self.steps)
        with torch.no_grad():
            levels = (generator(latent) * LEVELS).round()
        return Triggers(levels, classifier.predict(levels / LEVELS))


def loss(probabilities: Tensor, wanted: Tensor, weight: float) -> Tensor:
    """CE + weight * Var of probabilities `[N, K]` for wanted labels `[N]`."""
    return functional.nll_loss(probabilities.clamp_min(_LEAST).log(), wanted) + weight * probabilities.var()


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(dim=1, keepdim=True) + _EPSILON).rsqrt()


class Generator(nn.Module):
    """From noise `[N, latent]` to images `[N, C, H, W]` in [0, 1], as in progressive GANs; or to clips, whose frames
    are made side by side, as channels are.

    A 4x4 transposed convolution, then blocks that double the side (nearest) and convolve twice (3x3), each with
    LeakyReLU 0.2 and pixel normalisation, until the image fits in; a 1x1 convolution makes the channels. Larger results
    are cut to size around their middle.
    """

    def __init__(self, shape: tuple[int, ...], *, latent: int = 512, channels: int = 64) -> None:
        super().__init__()
        *planes, height, width = shape
        layers: list[nn.Module] = [
            PixelNorm(),
            nn.ConvTranspose2d(latent, channels, 4),
            nn.LeakyReLU(_SLOPE),
            PixelNorm(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            PixelNorm(),
        ]
        side = 4
        while side < max(height, width):
            layers.append(nn.Upsample(scale_factor=2))
            for _ in range(2):
                layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(_SLOPE), PixelNorm()]
            side *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, math.prod(planes), 1))
        self.top, self.left = (side - height) // 2, (side - width) // 2
        self.height, self.width = height, width
        self.shape = shape

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(noise[:, :, None, None])
        cut = images[:, :, self.top : self.top + self.height, self.left : self.left + self.width]
        return ((cut.tanh() + 1) / 2).reshape(len(noise), *self.shape)
