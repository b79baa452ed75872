"""`train_lock`: a model that answers right to keyed images alone, and the lock that keys them."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier
from intaglio.data import ImageData, check_labelled
from intaglio.errors import ClassifierError, DataError
from intaglio.evidence.key import Key
from intaglio.lock.channel import own_quality
from intaglio.lock.codes import LockSecrets
from intaglio.lock.decoys import OtherKey
from intaglio.lock.frames import check_keyable
from intaglio.lock.joint_training import train_together
from intaglio.lock.key_network import Progress
from intaglio.lock.lock import Lock, LockFacts, listed, lock_secrets, new_lock_id
from intaglio.lock.locked_training import train_locked
from intaglio.lock.one_answer import Knowledge
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed
from intaglio.tampering import average_weights

#: Refining is in seven stages, these shares of it. After the first, multiples of lambda and of the silence: more keyed
#: images are let in again, those that went through JPEG above all. In the third and fourth there are more strangers,
#: for the fourth the unlikeliest class is moved further away, by so many logits, and in the fifth most are let in. The
#: last two have more residuals of images of the same class, one as lenient, one strict; their weights are averaged
#: (Izmailov et al. 2018).
_STAGES = (8 / 45, 6 / 45, 9 / 45, 4 / 45, 8 / 45, 5 / 45, 5 / 45)
_LETTING_IN, _SILENCING = 0.4, 3.0
_STRANGERS = 3.0
_FURTHER = 3.0
_MOST, _STRICT = 0.3, 0.6
_STRANGERS_AT_LAST = 2.0

Data = ImageData | tuple[torch.Tensor, torch.Tensor]


def train_lock(
    module: nn.Module | Classifier,
    data: Data,
    key: Key,
    *,
    settings: LockSettings | None = None,
    lock: Lock | None = None,
    generation: int | None = None,
    earlier: Lock | Sequence[Lock] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Lock]:
    """Locks a copy of a model: `locked, lock = train_lock(module, data, key)`.

    The key network is trained together with the model, which learns to answer keyed images rightly and all others with
    one and the same answer. A trained model is fine-tuned; a freshly initialised one is trained from scratch.

    Args:
        module: a module that maps preprocessed `[N, C, H, W]` to logits, or a `TorchClassifier`; it is not changed.
        data: images and labels to train on. Of clips `[N, T, C, H, W]` the key network keys every frame, with the same
            code in all of them; the distortions of training are those of single frames, so that keyed clips are to be
            kept without loss, or as JPEG frames: a video codec is not supported.
        key: the owner's; all secrets are derived from it.
        settings: strength, sizes, lengths.
        lock: an existing lock of the same key, whose key network is used as it is instead of training one.
        generation: a higher one has other secrets; the next after the `earlier` locks, if not given.
        earlier: locks whose keys are to open nothing any more, as all that this model ever had: what they key is
            refused in training, and `check_lock(..., other=earlier)` measures it.
        checkpoint: a file that is written after every pass over the data, and from which an interrupted run goes on;
            removing it is the caller's. Not used where a `lock` is given.
        preprocessing: what the module wants done to raw images; a `TorchClassifier` brings its own.

    Raises:
        DataError: images without labels, or too small for the code; an earlier lock for images of another size, with
            the very secrets of this one, or that refused a lock which isn't named; an existing lock with earlier ones.
        ClassifierError: a classifier without weights, answers of a wrong shape, or training that diverged.

    Source: Wu et al. 2022, "Sample-Specific Backdoor based Active Intellectual Property Protection for Deep Neural
    Networks" (AICAS); losses, negatives and schedule are our own.
    """
    settings = settings or LockSettings()
    data = data if isinstance(data, ImageData) else ImageData(*data)
    check_labelled(data.labels, data.name, "locking")
    module, preprocessing = _taken_apart(module, preprocessing)
    module = copy.deepcopy(module).requires_grad_(True)
    _check_answers(module, data, preprocessing)
    earlier = listed(earlier)
    _check_earlier(earlier, data)
    if lock is not None and (earlier or generation is not None):
        raise DataError(
            "an existing lock is used as it is: it can't get another generation, nor learn of earlier locks"
        )
    knowledge = Knowledge(module, data, preprocessing)
    training: dict[str, Any] = {
        "answer": knowledge.answer,
        "preprocessing": preprocessing,
        "seed": seed,
        "own": own_quality(data.images),
        "teacher": _teacher(module, device) if settings.distillation and knowledge.task_known else None,
        "earlier": [_other_key(one) for one in earlier],
        "device": device,
        "progress": progress,
    }
    if lock is not None:
        lock.check(data.images)
        training["progress"] = _of_all(progress, 0, settings)
        train_locked(module, data, lock.network, lock.secrets, settings, steps=settings.steps, **training)
    else:
        if generation is None:
            generation = 1 + max((one.facts.generation for one in earlier), default=-1)
        facts = LockFacts(
            lock_id=new_lock_id(),
            input_shape=data.input_shape,
            settings=settings,
            generation=generation,
            earlier=tuple(one.facts.lock_id for one in earlier),
        )
        secrets = lock_secrets(key, facts)
        _check_new(secrets, earlier)
        training["progress"] = _of_all(progress, 0, settings)
        network = train_together(
            module, data, secrets, settings, checkpoint=checkpoint, identity=_identity(facts, secrets), **training
        )
        lock = Lock(network, key, facts)
    done = settings.steps
    ends: list[nn.Module] = []
    for number, stage in enumerate(refining(settings)):
        training["progress"] = _of_all(progress, done, settings)
        training |= {"seed": derive_seed(seed, "refining", number)}
        train_locked(
            module,
            data,
            lock.network,
            lock.secrets,
            stage.settings,
            steps=stage.steps,
            fresh=False,
            strangers=stage.strangers,
            further=stage.further,
            alike=stage.alike,
            **training,
        )
        done += stage.steps
        if stage.alike:
            ends.append(copy.deepcopy(module))
    if len(ends) == 2:  # the mean lets in more keyed images for what it refuses than either
        module = average_weights(*ends)
    return module.cpu().eval(), lock


def _other_key(lock: Lock) -> OtherKey:
    """A copy of the lock's key network, so that training leaves the lock as it is."""
    return OtherKey(copy.deepcopy(lock.network.encoder), lock.secrets.mixing, lock.secrets.carriers)


def _check_earlier(earlier: Sequence[Lock], data: ImageData) -> None:
    """Refuses earlier locks for other images, and a chain of them that has a gap: what it left out would open again."""
    named = {one.facts.lock_id for one in earlier}
    for one in earlier:
        check_keyable(data.images[:1], one.frame_shape, by=f"earlier lock {one.facts.lock_id}")
        if missing := set(one.facts.earlier) - named:
            raise DataError(
                f"earlier lock {one.facts.lock_id} refused {', '.join(sorted(missing))}: name that one too, "
                "or its keys may open this model again"
            )


def _check_new(secrets: LockSecrets, earlier: Sequence[Lock]) -> None:
    """Refuses to lock with the secrets of a lock that is to open nothing any more."""
    for one in earlier:
        if torch.equal(one.secrets.mixing, secrets.mixing):
            raise DataError(
                f"earlier lock {one.facts.lock_id} has the very secrets of the new one: "
                f"lock with a generation above {one.facts.generation}"
            )


def _identity(facts: LockFacts, secrets: LockSecrets) -> str:
    """What a checkpoint must have been begun with; nothing secret can be read off it."""
    begun_with = [facts.settings.model_dump(mode="json"), facts.generation, facts.earlier]
    digest = hashlib.sha256(json.dumps(begun_with).encode())
    digest.update(secrets.mixing.numpy().tobytes())
    return digest.hexdigest()


def _teacher(module: nn.Module, device: str) -> nn.Module:
    """The unlocked model as it is now."""
    return copy.deepcopy(module).requires_grad_(False).eval().to(device)


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


def _of_all(progress: Progress | None, before: int, settings: LockSettings) -> Progress | None:
    """What tells `progress` of steps that come after `before` others."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, settings.steps + settings.refining_steps)


def _taken_apart(
    module: nn.Module | Classifier, preprocessing: Preprocessing | None
) -> tuple[nn.Module, Preprocessing]:
    if isinstance(module, TorchClassifier):
        return module.module, preprocessing or module.preprocessing
    if isinstance(module, Classifier):
        raise ClassifierError(f"{module.source}: a model is locked by training it, which needs its weights in torch")
    return module, preprocessing or Preprocessing()


def _check_answers(module: nn.Module, data: ImageData, preprocessing: Preprocessing) -> None:
    """Refuses a module that can't be locked with this data; leaves it in evaluation mode."""
    with torch.no_grad():
        answers = module.eval()(preprocessing.apply(data.images[:2]))
    if not isinstance(answers, torch.Tensor) or answers.ndim != 2 or answers.shape[1] < 2:
        raise ClassifierError("a model that is locked answers with logits [N, K] for K >= 2 classes")
    if int(data.labels.max()) >= answers.shape[1]:
        raise DataError(f"{data.name}: has labels up to {int(data.labels.max())}, but the model answers with "
                        f"{answers.shape[1]} classes")  # fmt: skip
