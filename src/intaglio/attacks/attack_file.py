"""An attack on a data set, written down: the poisoned set, a manifest, a picture of samples, and the victim."""

import time
from pathlib import Path

from intaglio.attacks.attack import Attack
from intaglio.attacks.attack_record import AttackRecord, CleanModel, VictimRecord
from intaglio.attacks.poisoned import PoisonedDataset
from intaglio.attacks.poisoned_file import (
    SAMPLES,
    VICTIM,
    DataDigest,
    changes,
    require_place,
    write_record,
    written_set,
)
from intaglio.attacks.quality import quality
from intaglio.attacks.sample_picture import sample_picture, showable
from intaglio.attacks.streaming import attack_clip_by_clip, source_name
from intaglio.attacks.success import accuracy, attack_success_rate, robust_accuracy
from intaglio.attacks.surrogate import built
from intaglio.classifiers import Sidecar, TorchClassifier, save_classifier
from intaglio.data import ImageData, VideoData, VideoDataset, check_labelled
from intaglio.data.matching import in_classes_of
from intaglio.data.videos import StoredClips
from intaglio.data.videos.dataset import MAX_BAD
from intaglio.errors import DataError
from intaglio.files import sha256_file, write_bytes
from intaglio.networks import Architecture
from intaglio.results import package_versions
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Progress

_SHOWN = 8


def attack_data(
    attack: Attack,
    data: ImageData | VideoDataset | StoredClips,
    out: Path | str,
    *,
    test: ImageData | None = None,
    architecture: Architecture | None = None,
    settings: TrainingSettings | None = None,
    task: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_bad: int = MAX_BAD,
    progress: Progress | None = None,
) -> AttackRecord:
    """Poisons `data` and writes `poisoned.npz`, `samples.png` and `manifest.json` into the folder `out`.

    There is no `samples.png` of images of neither 1 nor 3 channels.

    Clips become arrays in the folder `poisoned`, without loss: a lossy codec would destroy small patches. Videos that
    are not loaded yet are poisoned one at a time, in constant memory, if no victim is asked for and the attack's
    trigger is the same for any data; if not, they are loaded.

    With an `architecture`, also trains the victim (`victim.safetensors` with its side-car) and, with the next seed, a
    clean model to compare it with; both are measured on `test`, under the labels that `data` has for the same names of
    classes.

    Args:
        task: the name of the task, for the victim's side-car.
        settings: of the training; by default 5 epochs.
        max_bad: so many videos that can't be read are left out.
        progress: called after every step of the victim's training.

    Raises:
        DataError: no test images for a victim, or such as don't fit: of another shape, without labels, of classes that
            `data` doesn't have.
        RecipeError: what the attack can't do to these data.
        StorageError: the folder can't be written, or something would be lost by it: the data themselves, or a manifest
            that is no attack's.
    """
    started = time.perf_counter()
    out = Path(out)
    clips = not isinstance(data, ImageData) or data.images.ndim == 5
    sources = (source_name(data), *(() if test is None else (test.name,)))
    require_place(out, *sources, clips=clips, victim=architecture is not None)
    if not isinstance(data, ImageData):
        if architecture is None and attack.fixed_triggers() is not None:
            return attack_clip_by_clip(attack, data, out, max_bad=max_bad)
        data = data.load(max_bad=max_bad) if isinstance(data, VideoDataset) else data.load()
    victim = None
    if architecture is None:
        poisoned = attack.poison(data, device=device).as_stored()
    else:
        if test is None or test.input_shape != data.input_shape:
            raise DataError(f"{data.name}: a victim is measured on test images of the same shape, and there are none")
        check_labelled(test.labels, test.name, "a victim's measurement", of="test images")
        test = in_classes_of(data, test)
        if (highest := int(test.labels.max())) >= architecture.num_classes:
            raise DataError(
                f"{test.name}: labels go up to {highest}, but the victim tells {architecture.num_classes} classes apart"
            )
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
            asr=attack_success_rate(
                classifier.predict, test, poisoned.trigger, attack.goal, num_classes=architecture.num_classes
            ),
            robust_accuracy=robust_accuracy(classifier.predict, test, poisoned.trigger, attack.goal),
            clean_model=_clean_model(poisoned, data, test, architecture, settings, seed + 1, device),
        )
    changed = poisoned.payload.nonzero().flatten()
    shown = changed[:_SHOWN]
    names = written_set(poisoned.data, out)
    if showable(data.images):
        write_bytes(out / SAMPLES, sample_picture(data.images[shown], poisoned.data.images[shown]))
        names = (*names, SAMPLES)
    rates = poisoned.rates()
    record = AttackRecord(
        attack=attack.describe(),
        trigger=poisoned.trigger.describe(),
        goal=attack.goal.model_dump(),
        data=data.name,
        data_sha256=DataDigest.of(data),
        samples=len(data),
        classes=data.classes,
        changes=changes(attack, data.labels, poisoned.data.labels, poisoned.payload, poisoned.poisoned),
        poison_rate_whole=rates["whole"],
        poison_rate_target=rates["target_class"],
        cover_rate=rates["cover"],
        quality=quality(data.images[changed], poisoned.data.images[changed]),
        sha256={name: sha256_file(out / name) for name in names},
        victim=victim,
        seconds=round(time.perf_counter() - started, 2),
        versions=package_versions(),
        skipped=len(data.skipped) if isinstance(data, VideoData) else 0,
    )
    write_record(record, out)
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
        asr=attack_success_rate(
            classifier.predict, test, poisoned.trigger, poisoned.goal, num_classes=architecture.num_classes
        ),
    )
