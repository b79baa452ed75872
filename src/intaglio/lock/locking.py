"""`train_lock`: a model that answers right to keyed images alone, and the lock that keys them."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from intaglio.classifiers import Classifier, Preprocessing
from intaglio.data import Data, check_labelled, image_data
from intaglio.errors import DataError
from intaglio.evidence.key import Key
from intaglio.lock.channel import own_quality
from intaglio.lock.checkpoint import LockCheckpoint, load_refined
from intaglio.lock.joint_training import train_together
from intaglio.lock.key_network import KeyNetwork, Progress
from intaglio.lock.lock import Lock, LockFacts, listed, lock_secrets, new_lock_id
from intaglio.lock.locked_training import train_locked
from intaglio.lock.preparing import check_answers, check_earlier, check_new, identity, taken_apart, told_in_training
from intaglio.lock.refining import of_all, refine, refining
from intaglio.lock.settings import LockSettings


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
    module, preprocessing = taken_apart(module, preprocessing)
    module = copy.deepcopy(module).requires_grad_(True).cpu()  # training alone takes it to another device
    check_answers(module, data, preprocessing)
    earlier = listed(earlier)
    check_earlier(earlier, data)
    if lock is not None and (earlier or generation is not None):
        raise DataError(
            "an existing lock is used as it is: it can't get another generation, nor learn of earlier locks"
        )
    own = own_quality(data.images)
    settings = settings.on_grid(own)
    training = told_in_training(module, data, preprocessing, settings, own, earlier, device)
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
        check_new(secrets, earlier)
        network = KeyNetwork(data.input_shape[-3], settings)
        if checkpoint is not None:
            run = identity(facts, seed, (module,), preprocessing, data)
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
