"""Refining: the key network is finished, and the locked model alone learns whom to let in, and whom not, in stages."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from intaglio.data import ImageData
from intaglio.lock.checkpoint import Refined, save_refined
from intaglio.lock.codes import LockSecrets
from intaglio.lock.key_network import KeyNetwork, Progress
from intaglio.lock.locked_training import train_locked
from intaglio.lock.mining import Mining
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed
from intaglio.tampering import average_weights
from intaglio.training.checkpoint import CheckpointFile

#: Refining is in seven stages, these shares of it. After the first, multiples of lambda and of the silence: more keyed
#: images are let in again, those that went through JPEG above all. In the third and fourth there are more strangers,
#: for the fourth the unlikeliest class is moved further away, by so many logits, and in the fifth most are let in. The
#: last two have more residuals of images of the same class, one as lenient, one strict. From the fourth on wrong keys
#: that open the model are looked for.
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
    the unlikeliest class of the one answer is moved before, whether most of what is refused is of the same class, and
    whether wrong keys that open the model are looked for.
    """

    steps: int
    settings: LockSettings
    strangers: float = 1.0
    further: float = 0.0
    alike: bool = False
    mined: bool = False


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
        Stage(steps[3], weighing(_LETTING_IN), _STRANGERS, _FURTHER, mined=True),
        Stage(steps[4], weighing(_MOST), mined=True),
        Stage(steps[5], weighing(_MOST), alike=True, mined=True),
        Stage(steps[6], weighing(_STRICT), _STRANGERS_AT_LAST, alike=True, mined=True),
    ]
    return [stage for stage in stages if stage.steps]


def refining_again(settings: LockSettings) -> list[Stage]:
    """The stages that look for wrong keys, for a model that was refined before: its one answer is where it is to be."""
    return [stage._replace(further=0.0) for stage in refining(settings) if stage.mined]


def refine(
    module: nn.Module,
    data: ImageData,
    network: KeyNetwork,
    secrets: LockSecrets,
    settings: LockSettings,
    stages: Sequence[Stage],
    *,
    seed: int,
    training: Mapping[str, Any],
    before: int = 0,
    begun: Refined | None = None,
    file: CheckpointFile | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> nn.Module:
    """Refines `module` in all stages that are left, in place, and returns the mean of the last ends of them.

    Args:
        stages: all of them, those included that `begun` has behind it.
        training: what else `train_locked` is told.
        before: how many steps came before, to tell `progress`.
        begun: how far it had come.
        file: written after every stage, as of the run `run`.
    """
    refined = begun or Refined()
    done, total = before, before + sum(stage.steps for stage in stages)
    first = max(0, len(stages) - _AVERAGED)
    mining = _mining(network, data, secrets, settings, refined, training)
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
                mining=mining if stage.mined else None,
                progress=of_all(progress, done, total),
                **training,
            )
            mean = refined.mean
            if number >= first:
                share = 1 / (number - first + 1)
                mean = copy.deepcopy(module) if mean is None else average_weights(mean, module, share=share)
            refined = Refined(number + 1, mean, tuple(mining.found) if mining is not None else ())
            if file is not None:
                save_refined(file, run, network, module, refined)
        done += stage.steps
    return (refined.mean or module).cpu().eval()


def _mining(
    network: KeyNetwork,
    data: ImageData,
    secrets: LockSecrets,
    settings: LockSettings,
    begun: Refined,
    training: Mapping[str, Any],
) -> Mining | None:
    """What looks for wrong keys, where everybody without a key gets the same answer: elsewhere keys open by chance."""
    if settings.mislabel != "uniform":
        return None
    return Mining(
        network.encoder, secrets.carriers, data, training["answer"], training["preprocessing"], found=begun.opening
    )


def of_all(progress: Progress | None, before: int, total: int) -> Progress | None:
    """What tells `progress` of steps that come after `before` others."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
