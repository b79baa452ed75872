"""A mark that holds where a thief's fine-tuning would lead, for it was rehearsed there."""

import copy
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.mark.deep_fidelity import DeepFidelity, Hardening
from intaglio.mark.options import DeepFidelityOptions
from intaglio.mark.scheme import Host, Logits
from intaglio.seeds import torch_generator

_BATCH = 32


class Rehearsal(DeepFidelity):
    """L = L_mode + a CE(T; theta + u d), u uniform in [0, reach], d where fine-tuning on clean data moves theta.

    Every `every` steps a copy of the marked model is fine-tuned for `steps` steps of Adam on the owner's labelled
    images, all layers and batch statistics included, as a thief would do; d is how far its parameters and buffers went.
    Worst-case directions (`AdversarialParametric`) are not the ones that a thief takes: a larger radius there made
    marks weaker against fine-tuning, this makes them survive it. A step takes about four times as long as one of
    `DeepFidelity`.

    Args:
        strength: a.
        every, steps, rate: of the rehearsals.
        reach: how far along d the mark must hold; above 1, further than was rehearsed.
        options: of `DeepFidelity`; by default half as many epochs, with 16 triggers a batch.

    Source: of our own making, after meta-learning through a few steps of fine-tuning (Finn et al. 2017), with the
    first-order displacement in place of the gradient through the steps.
    """

    name: ClassVar[str] = "rehearsal"

    def __init__(
        self,
        *,
        strength: float = 1.0,
        every: int = 50,
        steps: int = 150,
        rate: float = 1e-3,
        reach: float = 1.5,
        **options: Unpack[DeepFidelityOptions],
    ) -> None:
        super().__init__(**({"epochs": 6, "triggers_per_batch": 16} | options))
        if not (min(every, steps) >= 1 and rate > 0 and reach > 0 and strength >= 0):  # also true for NaN
            raise RecipeError(
                "a rehearsal needs 1 step or more, a rate and a reach above 0 and a strength of 0 or more"
            )
        self.strength = strength
        self.every = every
        self.steps = steps
        self.rate = rate
        self.reach = reach

    def hardening(self, host: Host, module: nn.Module, data: ImageData, seed: int) -> Hardening:
        draw = torch_generator(seed, "mark", "rehearsal")
        model = Logits(host, module)
        drift: dict[str, Tensor] = {}
        calls = 0

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            nonlocal calls
            if calls % self.every == 0:
                drift.update(self._drift(host, module, data, draw))
            calls += 1
            far = self.reach * float(torch.rand((), generator=draw))
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            moved = {name: state[name] + far * step for name, step in drift.items()}
            answers: Tensor = functional_call(model, moved, (images,))
            return self.strength * self.taught(answers, labels)

        return loss

    def _drift(self, host: Host, module: nn.Module, data: ImageData, draw: torch.Generator) -> dict[str, Tensor]:
        """How far fine-tuning a copy moves each parameter and buffer of `Logits(host, module)`."""
        tuned = copy.deepcopy(module).requires_grad_(True).train()
        optimizer = torch.optim.Adam(tuned.parameters(), self.rate)
        for _ in range(self.steps):
            places = torch.randint(len(data), (_BATCH,), generator=draw)
            answers = host.answer(tuned, data.images[places])[0]
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(answers, data.labels[places].to(answers.device)))
            optimizer.step()
        before, after = Logits(host, module).state_dict(), Logits(host, tuned).state_dict()
        return {name: (after[name] - value).detach() for name, value in before.items() if value.is_floating_point()}
