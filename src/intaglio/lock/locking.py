"""`train_lock`: a model that answers right to keyed images alone, and the lock that keys them; `refine_lock`."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier
from intaglio.classifiers.outputs import recognise
from intaglio.data import Data, ImageData, check_answerable, check_labelled, evenly_spaced, image_data
from intaglio.errors import ClassifierError, DataError
from intaglio.evidence.key import Key
from intaglio.lock.channel import own_quality
from intaglio.lock.checkpoint import LockCheckpoint, load_refined
from intaglio.lock.codes import LockSecrets, random_planes
from intaglio.lock.decoys import OtherKey
from intaglio.lock.frames import check_keyable, keyed
from intaglio.lock.joint_training import train_together
from intaglio.lock.key_network import KeyNetwork, Progress
from intaglio.lock.lock import Lock, LockFacts, listed, lock_secrets, new_lock_id
from intaglio.lock.locked_training import train_locked
from intaglio.lock.one_answer import Knowledge
from intaglio.lock.refining import of_all, refine, refining, refining_again
from intaglio.lock.settings import LockSettings
from intaglio.seeds import derive_seed, torch_generator
from intaglio.triggers.batches import batch_size

#: How many keyed images say whether a model is locked with a lock.
_EXAMINED = 200


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
        checkpoint: a file from which an interrupted run goes on, encrypted under the key. It is written after every
            pass over the data, and in refining after every stage; removing it is the caller's. Not used where a `lock`
            is given.
        preprocessing: what the module wants done to raw images; a `TorchClassifier` brings its own.

    Raises:
        DataError: images without labels, or too small for the code; an earlier lock for images of another size, with
            the very secrets of this one, or that refused a lock which isn't named; an existing lock with earlier ones.
        ClassifierError: a classifier without weights, answers of a wrong shape or probabilities, or training that
            diverged.
        ModelError: a checkpoint of another key, model, data, settings or seed, or a damaged one.

    Source: Wu et al. 2022, "Sample-Specific Backdoor based Active Intellectual Property Protection for Deep Neural
    Networks" (AICAS); losses, negatives and schedule are our own.
    """
    settings = settings or LockSettings()
    data = image_data(data)
    check_labelled(data.labels, data.name, "locking")
    module, preprocessing = _taken_apart(module, preprocessing)
    module = copy.deepcopy(module).requires_grad_(True).cpu()  # training alone takes it to another device
    _check_answers(module, data, preprocessing)
    earlier = listed(earlier)
    _check_earlier(earlier, data)
    if lock is not None and (earlier or generation is not None):
        raise DataError(
            "an existing lock is used as it is: it can't get another generation, nor learn of earlier locks"
        )
    own = own_quality(data.images)
    settings = settings.on_grid(own)
    training = _training(module, data, preprocessing, settings, own, earlier, device)
    file, run, begun = None, "", None
    if lock is not None:
        lock.check(data.images)
        first = of_all(progress, 0, settings.steps + settings.refining_steps)
        train_locked(
            module,
            data,
            lock.network,
            lock.secrets,
            settings,
            steps=settings.steps,
            seed=seed,
            progress=first,
            **training,
        )
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
        network = KeyNetwork(data.input_shape[-3], settings)
        if checkpoint is not None:
            run = _identity(facts, seed, module, preprocessing, data)
            file = LockCheckpoint(checkpoint, key)
            begun = load_refined(file, run, network, module)
        if begun is None:
            network = train_together(
                module,
                data,
                secrets,
                settings,
                seed=seed,
                checkpoint=file,
                identity=run,
                progress=of_all(progress, 0, settings.steps + settings.refining_steps),
                **training,
            )
        lock = Lock(network, key, facts)
    module = refine(
        module,
        data,
        lock.network,
        lock.secrets,
        settings,
        refining(settings),
        seed=seed,
        training=training,
        before=settings.steps,
        begun=begun,
        file=file,
        run=run,
        progress=progress,
    )
    return module, lock


def refine_lock(
    locked: nn.Module | Classifier,
    unlocked: nn.Module | Classifier,
    data: Data,
    lock: Lock,
    *,
    earlier: Lock | Sequence[Lock] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Refines a copy of a locked model again, and returns it: keys that users have open it as before.

    The last four stages of refining are gone through once more, by the lock's own settings. Wrong keys that open the
    model are looked for in them and refused, which locks from before 2026-12-01 never did; it takes a third of what
    locking took, or less.

    Args:
        locked: what `train_lock` returned, or a `TorchClassifier`.
        unlocked: the model that was locked: it says what the one answer is, and teaches if the lock was trained so.
        data: the images and labels that the model was locked with, or others of their kind.
        lock: the model's lock.
        earlier: the locks that this one refused.
        checkpoint: see `train_lock`; written after every stage.

    Raises:
        DataError: see `train_lock`; an earlier lock that this one refused isn't named.
        ClassifierError: see `train_lock`; the model isn't locked with this lock.
        ModelError: see `train_lock`.
    """
    data, settings = image_data(data), lock.facts.settings
    check_labelled(data.labels, data.name, "refining a lock")
    lock.check(data.images)
    if not refining_again(settings):
        raise DataError(f"lock {lock.facts.lock_id} was trained without refining, so there is nothing to do again")
    earlier = listed(earlier)
    _check_earlier(earlier, data)
    _check_named(f"lock {lock.facts.lock_id}", lock, earlier)
    locked, preprocessing = _taken_apart(locked, preprocessing)
    unlocked, _ = _taken_apart(unlocked, preprocessing)
    locked, unlocked = (copy.deepcopy(module).requires_grad_(True).cpu() for module in (locked, unlocked))
    for module in (locked, unlocked):
        _check_answers(module, data, preprocessing)
    _check_locked(locked, unlocked, data, preprocessing, lock)
    own = own_quality(data.images)
    network = copy.deepcopy(lock.network)  # training moves it
    file, run, begun = None, "", None
    if checkpoint is not None:
        run = _identity(lock.facts, seed, locked, preprocessing, data)
        file = lock.checkpoint(checkpoint)
        begun = load_refined(file, run, network, locked)
    return refine(
        locked,
        data,
        network,
        lock.secrets,
        settings,
        refining_again(settings),
        seed=derive_seed(seed, "lock", "again"),
        training=_training(unlocked, data, preprocessing, settings, own, earlier, device),
        begun=begun,
        file=file,
        run=run,
        progress=progress,
    )


def _training(
    unlocked: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    settings: LockSettings,
    own: int | None,
    earlier: Sequence[Lock],
    device: str,
) -> dict[str, Any]:
    """What all parts of training are told alike, as the unlocked model is now."""
    knowledge = Knowledge(unlocked, data, preprocessing)
    return {
        "answer": knowledge.answer,
        "preprocessing": preprocessing,
        "own": own,
        "teacher": _teacher(unlocked, device) if settings.distillation and knowledge.task_known else None,
        "earlier": [_other_key(one) for one in earlier],
        "device": device,
    }


def _other_key(lock: Lock) -> OtherKey:
    """A copy of the lock's key network, so that training leaves the lock as it is."""
    return OtherKey(copy.deepcopy(lock.network.encoder), lock.secrets.mixing, lock.secrets.carriers)


def _check_earlier(earlier: Sequence[Lock], data: ImageData) -> None:
    """Refuses earlier locks for other images, and a chain of them that has a gap: what it left out would open again."""
    for one in earlier:
        check_keyable(data.images[:1], one.frame_shape, by=f"earlier lock {one.facts.lock_id}")
        _check_named(f"earlier lock {one.facts.lock_id}", one, earlier)


def _check_named(what: str, lock: Lock, earlier: Sequence[Lock]) -> None:
    """Refuses to forget a lock that this one refused."""
    if missing := set(lock.facts.earlier) - {one.facts.lock_id for one in earlier}:
        raise DataError(
            f"{what} refused {', '.join(sorted(missing))}: name that one too, or its keys may open this model again"
        )


def _check_locked(
    locked: nn.Module, unlocked: nn.Module, data: ImageData, preprocessing: Preprocessing, lock: Lock
) -> None:
    """Refuses a model that doesn't know keyed images half as well as the unlocked model knows the originals."""
    some = data.take(evenly_spaced(len(data), _EXAMINED))
    planes = random_planes(1, lock.secrets.carriers, torch_generator(0, "lock", "again"))
    with torch.no_grad():
        parts = torch.split(some.images, batch_size(data.input_shape))
        images = torch.cat([keyed(lock.network.encoder, part, planes, lock.secrets.mixing) for part in parts])
    right = Knowledge(locked, ImageData(images, some.labels), preprocessing).right
    if 2 * right < Knowledge(unlocked, some, preprocessing).right:
        raise ClassifierError(f"the model is not locked with this lock: it knows {right:.1%} of keyed images")


def _check_new(secrets: LockSecrets, earlier: Sequence[Lock]) -> None:
    """Refuses to lock with the secrets of a lock that is to open nothing any more."""
    for one in earlier:
        if torch.equal(one.secrets.mixing, secrets.mixing):
            raise DataError(
                f"earlier lock {one.facts.lock_id} has the very secrets of the new one: "
                f"lock with a generation above {one.facts.generation}"
            )


def _identity(facts: LockFacts, seed: int, module: nn.Module, preprocessing: Preprocessing, data: ImageData) -> str:
    """What a checkpoint must have been begun with, beside the key that it opens with."""
    settings, before = (part.model_dump(mode="json") for part in (facts.settings, preprocessing))
    digest = hashlib.sha256(json.dumps([settings, before, facts.generation, facts.earlier, seed]).encode())
    for value in (*module.state_dict().values(), data.images, data.labels):
        digest.update(memoryview(value.detach().cpu().contiguous().numpy().reshape(-1)))
    return digest.hexdigest()


def _teacher(module: nn.Module, device: str) -> nn.Module:
    """The unlocked model as it is now."""
    return copy.deepcopy(module).requires_grad_(False).eval().to(device)


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
    if recognise(answers) == "probabilities":
        raise ClassifierError("a model that is locked answers with logits, not probabilities: leave out its softmax")
    check_answerable(data.labels, data.name, answers.shape[1])
