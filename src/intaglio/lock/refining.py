"""Refining: the key network is finished, and the locked model alone learns whom to let in, and whom not, in stages."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from intaglio.data import ImageData
from intaglio.lock.checkpoint import Refined, save_refined
from intaglio.lock.codes import LockSecrets
from intaglio.lock.key_network import KeyNetwork, Progress
from intaglio.lock.locked_training import train_locked
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed
from intaglio.tampering import average_weights
from intaglio.training.checkpoint import CheckpointFile

#: Refining is in seven stages, these shares of it. After the first, multiples of lambda and of the silence: more keyed
#: images are let in again, those that went through JPEG above all. In the third and fourth there are more strangers,
#: for the fourth the unlikeliest class is moved further away, by so many logits, and in the fifth most are let in. The
#: last two have more residuals of images of the same class, one as lenient, one strict.
_STAGES = (8 / 45, 6 / 45, 9 / 45, 4 / 45, 8 / 45, 5 / 45, 5 / 45)
_LETTING_IN, _SILENCING = 0.4, 3.0
_STRANGERS = 3.0
_FURTHER = 3.0
_MOST, _STRICT = 0.3, 0.6
_STRANGERS_AT_LAST = 2.0
#: The weights at the ends of so many last stages are averaged (Izmailov et al. 2018): the mean lets in more keyed
#: images for what it refuses than any of them.
_AVERAGED = 5


class Stage(NamedTuple):
    """One stage of refining: how many steps, with which weights, how many times the strangers, how much further away
    the unlikeliest class of the one answer is moved before, and whether most of what is refused is of the same class.
    """

    steps: int
    settings: LockSettings
    strangers: float = 1.0
    further: float = 0.0
    alike: bool = False


def refining(settings: LockSettings) -> list[Stage]:
    """The stages of refining, those that have any steps."""
    steps = [round(share * settings.refining_steps) for share in _STAGES[:-1]]
    steps.append(settings.refining_steps - sum(steps))

    def weighing(multiple: float) -> LockSettings:
        changes = {"weight": multiple * settings.weight, "silence": _SILENCING * settings.silence}
        return settings.model_copy(update=changes)

    stages = [
        Stage(steps[0], settings),
        Stage(steps[1], weighing(_LETTING_IN)),
        Stage(steps[2], weighing(_LETTING_IN), _STRANGERS),
        Stage(steps[3], weighing(_LETTING_IN), _STRANGERS, _FURTHER),
        Stage(steps[4], weighing(_MOST)),
        Stage(steps[5], weighing(_MOST), alike=True),
        Stage(steps[6], weighing(_STRICT), _STRANGERS_AT_LAST, alike=True),
    ]
    return [stage for stage in stages if stage.steps]


def refine(
    module: nn.Module,
    data: ImageData,
    network: KeyNetwork,
    secrets: LockSecrets,
    settings: LockSettings,
    *,
    seed: int,
    training: Mapping[str, Any],
    begun: Refined | None = None,
    file: CheckpointFile | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> nn.Module:
    """Refines `module` in all stages that are left, in place, and returns the mean of the last ends of them.

    Args:
        training: what else `train_locked` is told.
        begun: how far it had come.
        file: written after every stage, as of the run `run`.
    """
    refined = begun or Refined()
    done, stages = settings.steps, refining(settings)
    first = max(0, len(stages) - _AVERAGED)
    for number, stage in enumerate(stages):
        if number >= refined.stages:
            train_locked(
                module,
                data,
                network,
                secrets,
                stage.settings,
                steps=stage.steps,
                seed=derive_seed(seed, "refining", number),
                fresh=False,
                strangers=stage.strangers,
                further=stage.further,
                alike=stage.alike,
                progress=of_all(progress, done, settings),
                **training,
            )
            mean = refined.mean
            if number >= first:
                share = 1 / (number - first + 1)
                mean = copy.deepcopy(module) if mean is None else average_weights(mean, module, share=share)
            refined = Refined(number + 1, mean)
            if file is not None:
                save_refined(file, run, network, module, refined)
        done += stage.steps
    return (refined.mean or module).cpu().eval()


def of_all(progress: Progress | None, before: int, settings: LockSettings) -> Progress | None:
    """What tells `progress` of steps that come after `before` others."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, settings.steps + settings.refining_steps)
