"""`Scheme`: the frame of every way to embed a mark. Triggers and labels come from the owner's secret alone."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData, check_labelled
from intaglio.errors import ClassifierError, DataError, ModelError
from intaglio.networks.final_linear import final_linear, forward_with_features
from intaglio.networks.layout import channels_last_is_safe
from intaglio.seeds import derive_seed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Host:
    """The unmarked model: the module, its preprocessing, and the name of its final linear layer."""

    module: nn.Module
    preprocessing: Preprocessing
    head: str

    @classmethod
    def of(cls, module: nn.Module, preprocessing: Preprocessing, images: Tensor, layer: str | None = None) -> Self:
        """A host whose final linear layer is `layer`, or is found by tracing it on two of these raw images.

        Raises:
            ModelError: there is no such layer, or the module can't take the images.
        """
        inputs = preprocessing.apply(images[:2]).to(_device(module))
        if layer is None:
            return cls(module, preprocessing, final_linear(module, inputs))
        try:
            with torch.no_grad():
                answer, logits = module(inputs), forward_with_features(module, layer, inputs)[0]
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"the network can't answer inputs {list(inputs.shape)}: {reason}") from error
        if answer.shape != logits.shape:
            raise ModelError(
                f"layer '{layer}' is not the final one: it gives {list(logits.shape)}, the network {list(answer.shape)}"
            )
        return cls(module, preprocessing, layer)

    @property
    def device(self) -> torch.device:
        """Where the host computes."""
        return _device(self.module)

    def answer(self, module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, K]` and penultimate features `[N, D]` of raw images under a module of the host's kind."""
        inputs = self.preprocessing.apply(images).to(self.device)
        if inputs.ndim == 4 and channels_last_is_safe(module, inputs.shape):
            inputs = inputs.contiguous(memory_format=torch.channels_last)  # 1.5 to 2 times faster on CPUs
        return forward_with_features(module, self.head, inputs)

    def answers(self, module: nn.Module, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """The same for many images, on the CPU, without gradients, in evaluation mode.

        `batch_size` images at a time, or clips of as many frames in all.
        """
        module.eval()
        together = max(1, batch_size // math.prod(images.shape[1:-3]))
        with torch.no_grad():
            parts = [self.answer(module, batch) for batch in torch.split(images, together)]
        logits, features = zip(*parts, strict=True)
        return torch.cat(logits).cpu(), torch.cat(features).cpu()


class Logits(nn.Module):
    """A module of the host's kind from raw images to logits, before a softmax that may follow: one to call with other
    weights.
    """

    def __init__(self, host: Host, module: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.host.answer(self.module, images)[0]


class Scheme(ABC):
    """Embeds trigger images with their labels. Hyper-parameters go to `__init__`; a subclass writes `run` alone."""

    name: ClassVar[str]

    @abstractmethod
    def run(
        self, host: Host, data: ImageData, triggers: ImageData, *, seed: int, progress: Progress | None
    ) -> nn.Module:
        """A marked copy of `host.module`, in evaluation mode; the host itself stays as it is."""

    @final
    def embed(
        self,
        module: nn.Module,
        data: ImageData,
        triggers: ImageData,
        *,
        preprocessing: Preprocessing | None = None,
        layer: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> nn.Module:
        """A marked copy of `module`, in evaluation mode, with its parameters trainable again.

        Args:
            data: clean training images with labels, raw pixels.
            triggers: the mark.
            preprocessing: from raw pixels to the module's input.
            layer: name of the final linear layer; by default found by tracing.

        Raises:
            ModelError: there is no final linear layer, or the module can't take the images.
            DataError: triggers of another shape than the data, or labels the module has no class for.
            ClassifierError: training diverged.
        """
        preprocessing = preprocessing or Preprocessing()
        module = copy.deepcopy(module).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        if tuple(data.images.shape[1:]) != tuple(triggers.images.shape[1:]):
            raise DataError(
                f"triggers are {list(triggers.images.shape[1:])}, but the data {list(data.images.shape[1:])}"
            )
        host = Host.of(module, preprocessing, data.images, layer)
        _check_labels(host, data, triggers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "mark", self.name))
            marked = self.run(host, data, triggers, seed=seed, progress=progress)
        for parameter in marked.parameters():
            parameter.requires_grad_(True)
        return marked.eval()


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _check_labels(host: Host, data: ImageData, triggers: ImageData) -> None:
    classes = host.answers(host.module, data.images[:2])[0].shape[1]
    if not torch.isfinite(host.answers(host.module, triggers.images)[0]).all():
        raise ClassifierError("the host's answers to the triggers are not finite")
    for part in (data, triggers):
        check_labelled(part.labels, part.name, "a mark")
        low, high = int(part.labels.min()), int(part.labels.max())
        if high >= classes:
            raise DataError(f"{part.name}: labels span {low}..{high}, but the model has {classes} classes")
