"""`refine_lock`: a locked model is refined again, and wrong keys that open it are refused."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier
from intaglio.data import Data, ImageData, check_labelled, evenly_spaced, image_data
from intaglio.errors import ClassifierError, DataError, ModelError
from intaglio.lock.channel import own_quality, rounded
from intaglio.lock.checkpoint import load_refined
from intaglio.lock.key_network import Progress
from intaglio.lock.lock import Lock, listed
from intaglio.lock.mining import looks_in
from intaglio.lock.one_answer import Knowledge
from intaglio.lock.preparing import (
    check_answers,
    check_earlier,
    check_new,
    identity,
    require_named,
    taken_apart,
    told_in_training,
)
from intaglio.lock.refining import refine, refining_again
from intaglio.seeds import derive_seed

#: How many images say whether a model is locked with a lock, and whether that was made of the unlocked one.
_EXAMINED = 200
#: Keys them; the list of users isn't asked.
_NOBODY = "nobody in particular"


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
    model are looked for in them and refused, which locks from before 2026-12-01 never did, and other ones are looked
    for each time. Of `train_lock` that is half of refining.

    Args:
        locked: what `train_lock` returned, or a `TorchClassifier`.
        unlocked: the model that was locked; it teaches if the lock was trained so.
        data: the images and labels that the model was locked with, or others of their kind.
        lock: the model's lock.
        earlier: the locks that this one refused.
        preprocessing: of both modules; `TorchClassifier`s bring it.
        checkpoint: a file from which an interrupted run goes on, see `train_lock`; written after every stage.

    Raises:
        DataError: see `train_lock`; an earlier lock that this one refused isn't named, or is the lock itself; a lock
            that doesn't answer all the unauthorised alike, or was hardly refined.
        ClassifierError: see `train_lock`; the model isn't locked with this lock, or is not the unlocked one's.
        ModelError: a checkpoint of another run, or a damaged one.
    """
    data, settings, stages = image_data(data), lock.facts.settings, refining_again(lock.facts.settings)
    check_labelled(data.labels, data.name, "refining a lock")
    lock.check(data.images)
    if settings.mislabel != "uniform":
        raise DataError(
            f"lock {lock.facts.lock_id} gives other answers to everybody ({settings.mislabel}): only keys that open "
            "a model which gives one answer to all of them can be looked for"
        )
    if not any(looks_in(stage.steps) for stage in stages):
        raise DataError(
            f"lock {lock.facts.lock_id} was refined for {settings.refining_steps} steps: too few to look for wrong keys"
        )
    earlier = listed(earlier)
    check_earlier(earlier, data)
    check_new(lock.secrets, earlier)
    require_named(f"lock {lock.facts.lock_id}", lock, earlier)
    brought = [one.preprocessing for one in (locked, unlocked) if isinstance(one, TorchClassifier)]
    if preprocessing is None and any(one != brought[0] for one in brought):
        raise ClassifierError("the locked model and the unlocked one prepare their images in different ways")
    locked, preprocessing = taken_apart(locked, preprocessing)
    unlocked, _ = taken_apart(unlocked, preprocessing)
    locked, unlocked = (copy.deepcopy(module).requires_grad_(True).cpu() for module in (locked, unlocked))
    if len({check_answers(module, data, preprocessing) for module in (locked, unlocked)}) > 1:
        raise ClassifierError("the locked model and the unlocked one know different numbers of classes")
    answer = Knowledge(locked, data, preprocessing).given_to_all
    _check_locked(locked, unlocked, data, int(answer.argmax()), preprocessing, lock)
    network = copy.deepcopy(lock.network)  # training moves it
    named = (lock.facts.lock_id, *(one.facts.lock_id for one in earlier))
    run = identity(lock.facts, seed, (locked, unlocked, network), preprocessing, data, "refined again", *named)
    file, begun = None, None
    if checkpoint is not None:
        file = lock.checkpoint(checkpoint)
        begun = load_refined(file, run, network, locked)
        if begun is None and checkpoint.exists():
            raise ModelError(
                f"{checkpoint}: not a checkpoint of this training run (of training a lock, not of refining)"
            )
    return refine(
        locked,
        data,
        network,
        lock.secrets,
        settings,
        stages,
        seed=derive_seed(seed, "lock", run),
        training=told_in_training(
            unlocked, data, preprocessing, settings, own_quality(data.images), earlier, device, answer
        ),
        begun=begun,
        file=file,
        run=run,
        progress=progress,
    )


def _check_locked(
    locked: nn.Module, unlocked: nn.Module, data: ImageData, given: int, preprocessing: Preprocessing, lock: Lock
) -> None:
    """Refuses models that are not what they are said to be, by images of other classes than the `given` one."""
    others = (data.labels != given).nonzero()[:, 0]
    if not len(others):
        raise DataError(f"{data.name}: all images are of class {given}, which everybody is answered")
    some = data.take(others[evenly_spaced(len(others), _EXAMINED)])
    with torch.no_grad():
        keyed = ImageData(rounded(lock.trigger(_NOBODY).apply(some.images)), some.labels)
    known, opened, bare = (
        Knowledge(module, images, preprocessing).right
        for module, images in ((unlocked, some), (locked, keyed), (locked, some))
    )
    if 2 * opened < known or 2 * bare > opened:
        raise ClassifierError(
            f"the model is not locked with this lock: it knows {opened:.1%} of keyed images and {bare:.1%} of others"
        )
    if 2 * known < opened:
        raise ClassifierError(
            f"the model was not made of this unlocked one, which knows {known:.1%} of images, and the locked one "
            f"{opened:.1%} if they are keyed"
        )
