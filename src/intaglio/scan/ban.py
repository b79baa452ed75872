"""BAN (Xu et al., NeurIPS 2024): how much adversarial noise on neurons makes a model err, and towards which class."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from intaglio.classifiers import Access, Classifier, TorchClassifier
from intaglio.errors import ModelError
from intaglio.scan.detector import Request
from intaglio.scan.differentiable import log_probs, with_gradients
from intaglio.scan.images import clean_sample
from intaglio.scan.score_detector import Measured, ScoreDetector

#: The noise may cross its whole range in half of the steps.
_STRIDE = 2.0
#: Images differentiated at once, at least.
_TOGETHER = 8


class BAN(ScoreDetector):
    """Loss on clean images under the worst noise (1 + delta) w, (1 + xi) b with |delta|, |xi| <= radius.

    Each channel of every batch normalisation has one delta for its weight and one xi for its bias; in networks
    without any, each channel of every convolution and linear layer but the last. Hooks add what the noise changes;
    the module itself is never written to. The loss is that of the model's own answers, maximised by signed gradient
    steps; the suspicion of a class is its share of the answers under noise, less its share without.

    Reconstructed from the paper without its second half, the inversion of a trigger in feature space. On small
    networks it tells little: while it was designed, on 12 clean and 24 backdoored networks of Fashion-MNIST (ASR of .9
    or more), AUROC was .58, and between .5 and .61 for radii from .1 to .5; with noise towards each class at most .66.

    Args:
        images: number of clean images.
        steps: of the noise's ascent.
        radius: of the noise, relative to each weight.
        calibration: folder of clean scores of your own.

    Raises (when inspecting):
        ClassifierError: no gradients, or answers that are not finite.
        DataError: no clean images.
        ModelError: no layer to put noise on.
    """

    name = "ban"
    requires = Access.WEIGHTS

    def __init__(
        self, *, images: int = 64, steps: int = 10, radius: float = 0.3, calibration: Path | None = None
    ) -> None:
        super().__init__(calibration=calibration)
        self.images = images
        self.steps = steps
        self.radius = radius

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        model = with_gradients(classifier)
        images = clean_sample(model, request, self.images).to(model.device)
        own = model.predict(images)
        noise = Noise(model.module, model.device)
        with noise.applied():
            for step in range(self.steps):
                noise.climb(slopes(model, images, own, noise), _STRIDE * self.radius / self.steps, self.radius)
                if request.progress is not None:
                    request.progress(step + 1, self.steps)
            answers = model.log_probs(images)
        return Measured(
            score=float(nll_loss(answers, own)),
            suspicions=shares(answers.argmax(dim=1), model.num_classes) - shares(own, model.num_classes),
        )


class Noise:
    """Relative noise on the channels of a module's layers: for layer i `values[2i]` is delta, `values[2i + 1]` xi.

    Raises:
        ModelError: the module has no layer to put it on.
    """

    def __init__(self, module: nn.Module, place: torch.device) -> None:
        self.layers = noisy_layers(module)
        self.values = [
            torch.zeros(_channels(layer), device=place).requires_grad_() for layer in self.layers for _ in ("w", "b")
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the layers answer with noise."""
        with ExitStack() as hooks:
            for layer, delta, xi in zip(self.layers, self.values[::2], self.values[1::2], strict=True):
                hooks.callback(layer.register_forward_hook(_hook(delta, xi)).remove)
            yield

    @torch.no_grad()
    def climb(self, slopes: list[Tensor], step: float, radius: float) -> None:
        """A step along the sign of the slopes, within the radius."""
        for value, slope in zip(self.values, slopes, strict=True):
            value.add_(step * slope.sign()).clamp_(-radius, radius)


def slopes(classifier: TorchClassifier, images: Tensor, labels: Tensor, noise: Noise) -> list[Tensor]:
    """Derivatives of the summed loss with respect to the noise; 0 for layers that have no part in the answer.

    Raises:
        ModelError: no layer has a part in it.
    """
    size = max(_TOGETHER, 2 * classifier.batch_size)
    total = [torch.zeros_like(value) for value in noise.values]
    for batch, wanted in zip(torch.split(images, size), torch.split(labels, size), strict=True):
        with torch.enable_grad():
            loss = nll_loss(log_probs(classifier, batch), wanted, reduction="sum")
            parts = torch.autograd.grad(loss, noise.values, allow_unused=True) if loss.requires_grad else ()
        if all(part is None for part in parts):
            raise ModelError(f"{classifier.source}: none of the layers that ban puts noise on has a part in the answer")
        for sum_, part in zip(total, parts, strict=True):
            if part is not None:
                sum_ += part
    return total


def _hook(delta: Tensor, xi: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def answer(layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return noisy(output, cast(Tensor | None, layer.bias), delta, xi, -1 if isinstance(layer, nn.Linear) else 1)

    return answer


def _channels(layer: nn.Module) -> int:
    return layer.num_features if isinstance(layer, _BatchNorm) else len(layer.get_parameter("weight"))


def noisy(output: Tensor, bias: Tensor | None, delta: Tensor, xi: Tensor, axis: int = 1) -> Tensor:
    """(1 + delta) w x + (1 + xi) b, of the output w x + b, whose channels lie along `axis`."""
    shape = [1] * output.ndim
    shape[axis] = -1
    if bias is None:
        return output + delta.view(shape) * output
    constant = bias.detach().view(shape)
    return output + delta.view(shape) * (output - constant) + xi.view(shape) * constant


def noisy_layers(module: nn.Module) -> list[nn.Module]:
    """All batch normalisations; if there are none, all convolutions and linear layers but the last.

    Raises:
        ModelError: neither.
    """
    layers = list(module.modules())
    found: list[nn.Module] = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    if not found:
        found = list[nn.Module](layer for layer in layers if isinstance(layer, _ConvNd | nn.Linear))[:-1]
    if not found:
        raise ModelError("ban puts noise on batch normalisations, or on layers before the last, and this has neither")
    return found


def shares(classes: Tensor, count: int) -> Tensor:
    """The share of each class `[K]` among the answers."""
    return (classes.bincount(minlength=count) / len(classes)).cpu()
