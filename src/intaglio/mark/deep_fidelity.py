"""Deep fidelity: a mark that leaves the host's features and decision boundary where they were."""

import copy
import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.data import ImageData
from intaglio.errors import ModelError, RecipeError
from intaglio.mark.fidelity import prototype_feature_loss, soft_prediction_loss, total_weight_loss
from intaglio.mark.scheme import Host, Progress, Scheme
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train

Mode = Literal["ftal", "ftll", "fixll", "ftal-twl", "fixll-twl", "fixll-pfl", "fixll-spl", "scratch", "scratch-fixll"]
#: (triggers `[N, C, H, W]`, their labels `[N]`) -> a scalar.
Hardening = Callable[[Tensor, Tensor], Tensor]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Modes that copy the host's last layer and keep it: its rows are the prototypes of the classes.
_FIXED = ("fixll", "fixll-twl", "fixll-pfl", "fixll-spl", "scratch-fixll")


class DeepFidelity(Scheme):
    """Minimises one of the losses below over batches B of clean images and T of triggers; f host, z features.

        ftal, fixll            CE(B and T)                      all layers / all but the last
        ftll                   CE(B and T)                      the last layer alone
        ftal-twl, fixll-twl    CE(B and T) + 0.01 TWL
        fixll-pfl              CE(T) + 120 PFL(B) / V, V the total variance of the host's features
        fixll-spl              CE(T) + 1000 SPL(B)
        scratch, scratch-fixll CE(B and T), from new weights    all layers / all but the host's last

    On triggers CE is t CE(z / t) of the logits z at a temperature t: it goes on until their labels lead by t times as
    many nats, which a thief's fine-tuning has to undo first.

    BatchNorm runs in evaluation mode with frozen affine parameters, so that triggers don't shift its statistics; from
    scratch it learns. Adam, half a cosine down (the paper: x0.1 at half the epochs).

    Args:
        mode: which of them.
        epochs: passes over the clean data.
        batch_size: clean images a batch.
        triggers_per_batch: triggers beside them.
        learning_rate: of Adam.
        temperature: t; 1 is the paper's loss.
        twl_weight, pfl_weight, spl_weight: of the terms above.

    The paper has 50 epochs at a rate of 1e-4 (1e-3 from scratch), 4 triggers beside 32 images and a weight of 0.01 on
    PFL itself. Ten times the rate for a quarter of the time keeps the host's answers better with a weight that is
    larger, and free of the features' scale: with one of 1 on PFL itself a LeNet, whose features vary 7 times as much as
    a VGG's, learned 57 of 100 triggers, the VGG all.

    Source: Hua & Teoh 2022 (2208.00563) and its published code.
    """

    name: ClassVar[str] = "deep-fidelity"

    def __init__(
        self,
        *,
        mode: Mode = "fixll-pfl",
        epochs: int = 12,
        batch_size: int = 32,
        triggers_per_batch: int = 8,
        learning_rate: float = 1e-3,
        temperature: float = 2.0,
        twl_weight: float = 0.01,
        pfl_weight: float = 120.0,
        spl_weight: float = 1000.0,
    ) -> None:
        if mode not in MODES:
            raise RecipeError(f"unknown mode '{mode}'; there are {', '.join(MODES)}")
        if min(epochs, batch_size, triggers_per_batch) < 1:
            raise RecipeError("epochs, batch size and triggers per batch are at least 1")
        if not 0 < learning_rate < math.inf:  # also true for NaN
            raise RecipeError(f"a learning rate is above 0, got {learning_rate}")
        if not 0 < temperature < math.inf:
            raise RecipeError(f"a temperature is above 0, got {temperature}")
        self.mode: Mode = mode
        self.epochs = epochs
        self.batch_size = batch_size
        self.triggers_per_batch = triggers_per_batch
        self.learning_rate = learning_rate
        self.temperature = temperature
        self.twl_weight = twl_weight
        self.pfl_weight = pfl_weight
        self.spl_weight = spl_weight

    def taught(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of triggers, t CE(z / t)."""
        return self.temperature * cross_entropy(logits / self.temperature, labels)

    def hardening(self, host: Host, module: nn.Module, data: ImageData, seed: int) -> Hardening:
        """What is added to the loss of a batch of triggers while `module` is marked; schemes that harden the mark
        override it. Here nothing.
        """
        return lambda images, labels: torch.zeros(())

    def run(
        self, host: Host, data: ImageData, triggers: ImageData, *, seed: int, progress: Progress | None
    ) -> nn.Module:
        module = copy.deepcopy(host.module)
        scratch = self.mode.startswith("scratch")
        if scratch:
            _new_weights(module, host, seed, keep_head=self.mode == "scratch-fixll")
        self._freeze(module, host.head)
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            freeze_batchnorm=not scratch,
        )
        train(
            module,
            (data.images, torch.arange(len(data))),  # targets are places: labels and the host's answers are looked up
            settings,
            seed=derive_seed(seed, "mark", self.mode),
            loss=self._loss(host, module, data, triggers, seed),
            device=str(host.device),
            progress=progress,
        )
        return module

    def _freeze(self, module: nn.Module, head: str) -> None:
        """Leaves trainable what the mode trains."""
        last = module.get_submodule(head)
        if self.mode == "ftll":
            module.requires_grad_(False)
            last.requires_grad_(True)
        elif self.mode in _FIXED:
            last.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ModelError(f"mode {self.mode} leaves nothing to train in this network")

    def _loss(
        self, host: Host, module: nn.Module, data: ImageData, triggers: ImageData, seed: int
    ) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        draw = torch_generator(seed, "mark", "triggers")
        host_logits, host_features = (part.to(host.device) for part in host.answers(host.module, data.images))
        clean_labels, all_trigger_labels = data.labels.to(host.device), triggers.labels.to(host.device)
        pfl_weight = self.pfl_weight / float(host_features.var(dim=0).sum().clamp_min(1e-12))
        host_weights = [parameter.detach().clone() for parameter in host.module.parameters()]
        hardening = self.hardening(host, module, data, seed)

        def loss(_model: nn.Module, images: Tensor, places: Tensor) -> Tensor:
            chosen = torch.randint(len(triggers), (self.triggers_per_batch,), generator=draw)
            trigger_images, trigger_labels = triggers.images[chosen].to(images), all_trigger_labels[chosen]
            clean = len(images)
            logits, features = host.answer(module, torch.cat([images, trigger_images]))
            if self.mode == "fixll-pfl":
                value = pfl_weight * prototype_feature_loss(features[:clean], host_features[places])
                value = value + self.taught(logits[clean:], trigger_labels)
            elif self.mode == "fixll-spl":
                value = self.spl_weight * soft_prediction_loss(logits[:clean], host_logits[places])
                value = value + self.taught(logits[clean:], trigger_labels)
            else:
                share = clean / len(logits)
                value = share * cross_entropy(logits[:clean], clean_labels[places])
                value = value + (1 - share) * self.taught(logits[clean:], trigger_labels)
            if self.mode.endswith("twl"):
                value = value + self.twl_weight * total_weight_loss(module.parameters(), host_weights)
            return value + hardening(trigger_images, trigger_labels)

        return loss


def _new_weights(module: nn.Module, host: Host, seed: int, *, keep_head: bool) -> None:
    """Draws every layer's weights anew, as the layer itself does when it is made.

    Raises:
        ModelError: a layer has parameters of its own and no way to draw them.
    """
    torch.manual_seed(derive_seed(seed, "mark", "initialisation"))
    for name, layer in module.named_modules():
        if keep_head and name == host.head:
            continue
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise ModelError(f"layer '{name}' ({type(layer).__name__}) can't be drawn anew: it has no reset_parameters")
