"""What training of a lock is given, looked at before it begins: models, data, earlier locks, checkpoints."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier
from intaglio.classifiers.outputs import recognise
from intaglio.data import ImageData, check_answerable
from intaglio.errors import ClassifierError, DataError
from intaglio.lock.codes import LockSecrets
from intaglio.lock.decoys import OtherKey
from intaglio.lock.frames import check_keyable
from intaglio.lock.lock import Lock, LockFacts
from intaglio.lock.one_answer import Knowledge
from intaglio.lock.settings import LockSettings


def told_in_training(
    unlocked: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    settings: LockSettings,
    own: int | None,
    earlier: Sequence[Lock],
    device: str,
    answer: Tensor | None = None,
) -> dict[str, Any]:
    """What all parts of training are told alike, as the unlocked model is now, with a given one answer or its own."""
    knowledge = Knowledge(unlocked, data, preprocessing)
    return {
        "answer": knowledge.answer if answer is None else answer,
        "preprocessing": preprocessing,
        "own": own,
        "teacher": _teacher(unlocked, device) if settings.distillation and knowledge.task_known else None,
        "earlier": [_other_key(one) for one in earlier],
        "device": device,
    }


def _other_key(lock: Lock) -> OtherKey:
    """A copy of the lock's key network, so that training leaves the lock as it is."""
    return OtherKey(copy.deepcopy(lock.network.encoder), lock.secrets.mixing, lock.secrets.carriers)


def check_earlier(earlier: Sequence[Lock], data: ImageData) -> None:
    """Refuses earlier locks for other images, and a chain of them that has a gap: what it left out would open again."""
    for one in earlier:
        check_keyable(data.images[:1], one.frame_shape, by=f"earlier lock {one.facts.lock_id}")
        require_named(f"earlier lock {one.facts.lock_id}", one, earlier)


def require_named(what: str, lock: Lock, earlier: Sequence[Lock]) -> None:
    """Refuses to forget a lock that this one refused."""
    if missing := set(lock.facts.earlier) - {one.facts.lock_id for one in earlier}:
        raise DataError(
            f"{what} refused {', '.join(sorted(missing))}: name that one too, or its keys may open this model again"
        )


def check_new(secrets: LockSecrets, earlier: Sequence[Lock]) -> None:
    """Refuses to lock with the secrets of a lock that is to open nothing any more."""
    for one in earlier:
        if torch.equal(one.secrets.mixing, secrets.mixing):
            raise DataError(
                f"earlier lock {one.facts.lock_id} has the very secrets of this one: "
                f"lock with a generation above {one.facts.generation}"
            )


def identity(
    facts: LockFacts,
    seed: int,
    modules: Sequence[nn.Module],
    preprocessing: Preprocessing,
    data: ImageData,
    *more: str,
) -> str:
    """What a checkpoint must have been begun with, beside the key that it opens with."""
    settings, before = (part.model_dump(mode="json") for part in (facts.settings, preprocessing))
    digest = hashlib.sha256(json.dumps([settings, before, facts.generation, facts.earlier, seed, *more]).encode())
    weights = [value for module in modules for value in module.state_dict().values()]
    for value in (*weights, data.images, data.labels):
        digest.update(memoryview(value.detach().cpu().contiguous().numpy().reshape(-1)))
    return digest.hexdigest()


def _teacher(module: nn.Module, device: str) -> nn.Module:
    """The unlocked model as it is now."""
    return copy.deepcopy(module).requires_grad_(False).eval().to(device)


def taken_apart(module: nn.Module | Classifier, preprocessing: Preprocessing | None) -> tuple[nn.Module, Preprocessing]:
    """The module, and what its images are prepared with: as given, else as the classifier says."""
    if isinstance(module, TorchClassifier):
        return module.module, preprocessing or module.preprocessing
    if isinstance(module, Classifier):
        raise ClassifierError(f"{module.source}: a model is locked by training it, which needs its weights in torch")
    return module, preprocessing or Preprocessing()


def check_answers(module: nn.Module, data: ImageData, preprocessing: Preprocessing) -> int:
    """Refuses a module that can't be locked with this data, leaves it in evaluation mode, and says its classes."""
    with torch.no_grad():
        answers = module.eval()(preprocessing.apply(data.images[:2]))
    if not isinstance(answers, torch.Tensor) or answers.ndim != 2 or answers.shape[1] < 2:
        raise ClassifierError("a model that is locked answers with logits [N, K] for K >= 2 classes")
    if recognise(answers) == "probabilities":
        raise ClassifierError("a model that is locked answers with logits, not probabilities: leave out its softmax")
    check_answerable(data.labels, data.name, answers.shape[1])
    return answers.shape[1]
