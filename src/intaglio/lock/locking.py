"""`train_lock`: a model that answers right to keyed images alone, and the lock that keys them."""

import copy

import torch
from torch import nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError
from intaglio.evidence.key import Key
from intaglio.lock.key_network import Progress, train_key_network
from intaglio.lock.lock import Lock, LockFacts, lock_secrets, new_lock_id
from intaglio.lock.locked_training import train_locked
from intaglio.lock.settings import LockSettings

Data = ImageData | tuple[torch.Tensor, torch.Tensor]


def train_lock(
    module: nn.Module | Classifier,
    data: Data,
    key: Key,
    *,
    settings: LockSettings | None = None,
    lock: Lock | None = None,
    generation: int = 0,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[nn.Module, Lock]:
    """Locks a copy of a model: `locked, lock = train_lock(module, data, key)`.

    First the key network is trained, on the images alone; then the model, to answer keyed images rightly and all
    others with one and the same answer. A trained model is fine-tuned; a freshly initialised one is trained from
    scratch, which takes more `settings.steps`.

    Args:
        module: a module that maps preprocessed `[N, C, H, W]` to logits, or a `TorchClassifier`; it is not changed.
        data: images and labels to train on.
        key: the owner's; all secrets are derived from it.
        settings: strength, sizes, lengths.
        lock: an existing lock of the same key, whose key network is used instead of training one.
        generation: a higher one makes the keys of all earlier ones wrong: how a leaked key is revoked for good.
        preprocessing: what the module wants done to raw images; a `TorchClassifier` brings its own.

    Raises:
        DataError: images without labels, or too small for the code.
        ClassifierError: a classifier without weights, answers of a wrong shape, or training that diverged.

    Source: Wu et al. 2022, "Sample-Specific Backdoor based Active Intellectual Property Protection for Deep Neural
    Networks" (AICAS); losses, negatives and schedule are our own.
    """
    settings = settings or LockSettings()
    data = data if isinstance(data, ImageData) else ImageData(*data)
    if int(data.labels.min()) < 0:
        raise DataError(f"{data.name}: locking needs a label for every image")
    module, preprocessing = _taken_apart(module, preprocessing)
    module = copy.deepcopy(module).requires_grad_(True)
    num_classes = _class_count(module, data, preprocessing)
    steps = settings.key_steps if lock is None else 0
    total = steps + settings.steps

    def report(offset: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(offset + done, total)

    if lock is None:
        facts = LockFacts(lock_id=new_lock_id(), input_shape=data.input_shape, settings=settings, generation=generation)
        network = train_key_network(
            module,
            data.images,
            lock_secrets(key, facts),
            settings,
            preprocessing=preprocessing,
            seed=seed,
            device=device,
            progress=report(0),
        )
        lock = Lock(network, key, facts)
    lock.check(data.images)
    locked = train_locked(
        module,
        data,
        lock.network,
        lock.secrets,
        settings,
        num_classes=num_classes,
        preprocessing=preprocessing,
        seed=seed,
        device=device,
        progress=report(steps),
    )
    return locked.cpu(), lock


def _taken_apart(
    module: nn.Module | Classifier, preprocessing: Preprocessing | None
) -> tuple[nn.Module, Preprocessing]:
    if isinstance(module, TorchClassifier):
        return module.module, preprocessing or module.preprocessing
    if isinstance(module, Classifier):
        raise ClassifierError(f"{module.source}: a model is locked by training it, which needs its weights in torch")
    return module, preprocessing or Preprocessing()


def _class_count(module: nn.Module, data: ImageData, preprocessing: Preprocessing) -> int:
    """The number of classes the module answers with."""
    with torch.no_grad():
        answers = module.eval()(preprocessing.apply(data.images[:2]))
    if not isinstance(answers, torch.Tensor) or answers.ndim != 2 or answers.shape[1] < 2:
        raise ClassifierError("a model that is locked answers with logits [N, K] for K >= 2 classes")
    if int(data.labels.max()) >= answers.shape[1]:
        raise DataError(f"{data.name}: has labels up to {int(data.labels.max())}, but the model answers with "
                        f"{answers.shape[1]} classes")  # fmt: skip
    return answers.shape[1]
