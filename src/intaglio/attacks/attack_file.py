"""An attack on a data set, written down: the poisoned set, a manifest, a picture of samples, and the victim."""

import hashlib
import time
from io import BytesIO
from pathlib import Path

import numpy as np

from intaglio.attacks.attack import Attack
from intaglio.attacks.attack_record import AttackRecord, Change, CleanModel, VictimRecord
from intaglio.attacks.poisoned import PoisonedDataset
from intaglio.attacks.quality import quality
from intaglio.attacks.sample_picture import sample_picture
from intaglio.attacks.success import accuracy, attack_success_rate, robust_accuracy
from intaglio.attacks.surrogate import built
from intaglio.classifiers import Sidecar, TorchClassifier, save_classifier
from intaglio.data import ImageData
from intaglio.errors import DataError
from intaglio.files import require_writable, sha256_file, write_bytes, write_text
from intaglio.networks import Architecture
from intaglio.results import package_versions
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Progress

POISONED, MANIFEST, SAMPLES, VICTIM = "poisoned.npz", "manifest.json", "samples.png", "victim.safetensors"
_SHOWN = 8


def attack_data(
    attack: Attack,
    data: ImageData,
    out: Path | str,
    *,
    test: ImageData | None = None,
    architecture: Architecture | None = None,
    settings: TrainingSettings | None = None,
    task: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> AttackRecord:
    """Poisons `data` and writes `poisoned.npz`, `samples.png` and `manifest.json` into the folder `out`.

    With an `architecture`, also trains the victim (`victim.safetensors` with its side-car) and, with the next seed, a
    clean model to compare it with; both are measured on `test`.

    Args:
        task: the name of the task, for the victim's side-car.
        settings: of the training; by default 5 epochs.
        progress: called after every step of the victim's training.

    Raises:
        DataError: no test images for a victim, or such as don't fit.
        RecipeError: what the attack can't do to these data.
        StorageError: the folder can't be written.
    """
    started = time.perf_counter()
    out = Path(out)
    for name in (POISONED, SAMPLES, MANIFEST):
        require_writable(out / name)
    victim = None
    if architecture is None:
        poisoned = attack.poison(data, device=device).as_stored()
    else:
        if test is None or test.input_shape != data.input_shape:
            raise DataError(f"{data.name}: a victim is measured on test images of the same shape, and there are none")
        settings = settings or TrainingSettings(epochs=5)
        module, _, poisoned = attack.train_victim(
            architecture, data, settings, seed=seed, device=device, progress=progress
        )
        sidecar = Sidecar(architecture=architecture, task=task, classes=data.classes, outputs="logits")
        save_classifier(module, out / VICTIM, sidecar)
        classifier = TorchClassifier(
            module, input_shape=data.input_shape, num_classes=architecture.num_classes, device=device
        )
        victim = VictimRecord(
            file=VICTIM,
            sha256=sha256_file(out / VICTIM),
            architecture=architecture,
            training=settings,
            seed=seed,
            clean_accuracy=accuracy(classifier.predict, test),
            asr=attack_success_rate(classifier.predict, test, poisoned.trigger, attack.goal),
            robust_accuracy=robust_accuracy(classifier.predict, test, poisoned.trigger, attack.goal),
            clean_model=_clean_model(poisoned, data, test, architecture, settings, seed + 1, device),
        )
    changed = poisoned.payload.nonzero().flatten()
    shown = changed[:_SHOWN]
    write_bytes(out / POISONED, _archive(poisoned.data))
    write_bytes(out / SAMPLES, sample_picture(data.images[shown], poisoned.data.images[shown]))
    rates = poisoned.rates()
    record = AttackRecord(
        attack=attack.describe(),
        trigger=poisoned.trigger.describe(),
        goal=attack.goal.model_dump(),
        data=data.name,
        data_sha256=_digest(data),
        samples=len(data),
        classes=data.classes,
        changes=_changes(attack, data, poisoned),
        poison_rate_whole=rates["whole"],
        poison_rate_target=rates["target_class"],
        cover_rate=rates["cover"],
        quality=quality(data.images[changed], poisoned.data.images[changed]),
        sha256={name: sha256_file(out / name) for name in (POISONED, SAMPLES)},
        victim=victim,
        seconds=round(time.perf_counter() - started, 2),
        versions=package_versions(),
    )
    write_text(out / MANIFEST, record.to_json())
    return record


def _clean_model(
    poisoned: PoisonedDataset,
    data: ImageData,
    test: ImageData,
    architecture: Architecture,
    settings: TrainingSettings,
    seed: int,
    device: str,
) -> CleanModel:
    module = train(built(architecture, data, seed=seed), data, settings, seed=seed, device=device)
    classifier = TorchClassifier(module, input_shape=data.input_shape, num_classes=architecture.num_classes)
    return CleanModel(
        seed=seed,
        clean_accuracy=accuracy(classifier.predict, test),
        asr=attack_success_rate(classifier.predict, test, poisoned.trigger, poisoned.goal),
    )


def _changes(attack: Attack, data: ImageData, poisoned: PoisonedDataset) -> tuple[Change, ...]:
    label = "altered, its label as it was" if attack.clean_label else "carries the trigger and the wanted label"
    reasons = {
        "poisoned": (poisoned.payload, f"teaches the wanted answer: {label}"),
        "cover": (poisoned.poisoned & ~poisoned.payload, "teaches when not to answer: carries a trigger, label kept"),
    }
    found = []
    for role, (mask, why) in reasons.items():
        if bool(mask.any()):
            before, after = (tuple(labels[mask].tolist()) for labels in (data.labels, poisoned.data.labels))
            indices = tuple(mask.nonzero().flatten().tolist())
            found.append(Change(role=role, why=why, indices=indices, labels_before=before, labels_after=after))
    return tuple(found)


def _archive(data: ImageData) -> bytes:
    """A set as `.npz`, images as uint8 `[N, C, H, W]`; the same set gives the same bytes."""
    arrays = {
        "x_train": (data.images * 255).round().numpy().astype(np.uint8),
        "y_train": data.labels.numpy(),
    }
    if data.classes:
        arrays["classes"] = np.array(data.classes)
    stream = BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _digest(data: ImageData) -> str:
    digest = hashlib.sha256()
    for tensor in (data.images, data.labels):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
