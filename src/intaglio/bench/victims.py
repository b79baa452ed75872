"""The models of a bench: each trained in one step, with everything that any detector may be given beside it."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from intaglio.attacks import PoisonedDataset, accuracy, attack_success_rate, robust_accuracy
from intaglio.attacks.quality import quality
from intaglio.attacks.surrogate import built
from intaglio.bench.recipe import CLEAN, BenchRecipe, slug
from intaglio.classifiers import TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import DataError, IntaglioError, StorageError
from intaglio.files import write_json
from intaglio.networks import Architecture
from intaglio.populations.population import load_splits
from intaglio.results import package_versions
from intaglio.seeds import torch_generator
from intaglio.training import train

MODEL, RECORD, GIVEN = "model.safetensors", "record.json", "given.safetensors"


class VictimRecord(BaseModel):
    """One model: what it was made from and how its backdoor turned out.

    `asr_unpoisoned` is the success of the same trigger on a clean model of the same network. `failed` says why an
    attack could not be made; such a model has no weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    index: int
    seed: int
    architecture: Architecture
    attack: dict[str, Any] | None = None
    target: int | None = None
    clean_accuracy: float | None = None
    asr: float | None = None
    robust_accuracy: float | None = None
    asr_unpoisoned: float | None = None
    poison_rates: dict[str, float] | None = None
    psnr: float | None = None
    ssim: float | None = None
    seconds: float = 0.0
    failed: str | None = None
    versions: dict[str, str] = {}  #: of what trained it; older records don't say


class VictimJob(NamedTuple):
    """What a worker is sent: one model to train."""

    recipe: BenchRecipe
    source: str
    row: str
    number: int
    out: Path


class Given(NamedTuple):
    """What detectors are given beside a model: its training set, clean images, and images it was asked."""

    training: ImageData
    clean: Tensor
    inputs: Tensor


def victim_folder(out: Path, row: str, index: int) -> Path:
    """Where a row's model lies."""
    return out / "models" / slug(row) / f"{index:03d}"


def read_victim(folder: Path) -> VictimRecord | None:
    """A finished model's record; None where there is none.

    Raises:
        DataError: damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return VictimRecord.model_validate_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged record; remove its folder and run again") from error


def build_victim(job: VictimJob) -> VictimRecord:
    """Trains a row's model and renames its finished folder into place; until then nothing of it is there.

    Raises:
        StorageError: the folder can't be written.
    """
    started = time.perf_counter()
    recipe, seed = job.recipe, job.recipe.model_seed(job.row, job.number)
    data, test = load_splits(job.source, recipe.samples)
    architecture = recipe.network(job.number, data.input_shape, data.num_classes)
    record = VictimRecord(
        row=job.row, index=job.number, seed=seed, architecture=architecture, versions=package_versions()
    )
    made: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
    try:
        record, made = _trained(job, record, data, test)
    except IntaglioError as error:  # an attack that these data don't allow is a result, and must not end the bench
        record = record.model_copy(update={"failed": str(error)})
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if recipe.row(job.row) is None:
            raise
        # An option's value that the attack didn't look at when it was made: a result of that row, too.
        reason = (str(error).splitlines() or [""])[0]
        record = record.model_copy(update={"failed": f"{type(error).__name__}: {reason}"})
    record = record.model_copy(update={"seconds": round(time.perf_counter() - started, 2)})
    final = victim_folder(job.out, job.row, job.number)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=final.parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            if made is not None:
                save_file(made[0], folder / MODEL)
                save_file(made[1], folder / GIVEN)
            write_json(folder / RECORD, record.model_dump(mode="json"))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(folder, final)
    except OSError as error:
        raise StorageError(f"can't write {final}: {error.strerror or error}") from error
    return record


def _trained(
    job: VictimJob, record: VictimRecord, data: ImageData, test: ImageData
) -> tuple[VictimRecord, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    recipe, seed = job.recipe, record.seed
    row = recipe.row(job.row)
    poisoned: PoisonedDataset | None = None
    if row is None:
        module = built(record.architecture, data, seed=seed)
        train(module, data, recipe.training, seed=seed)
    else:
        attack = row.make(data.num_classes, job.number, seed)
        module, _, poisoned = attack.train_victim(record.architecture, data, recipe.training, seed=seed)
        record = record.model_copy(update={"attack": attack.describe(), "target": getattr(attack.goal, "target", None)})
    classifier = _classifier(module, data)
    update: dict[str, Any] = {"clean_accuracy": accuracy(classifier.predict, test)}
    if poisoned is not None:
        update |= _measured(job, record, classifier, poisoned, data, test)
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return record.model_copy(update=update), (weights, _given(poisoned, data, test, recipe, seed))


def _measured(
    job: VictimJob,
    record: VictimRecord,
    classifier: TorchClassifier,
    poisoned: PoisonedDataset,
    data: ImageData,
    test: ImageData,
) -> dict[str, Any]:
    trigger, goal, classes = poisoned.trigger, poisoned.goal, classifier.num_classes
    clean = _clean_twin(job, record.architecture, data)
    places = poisoned.payload.nonzero().flatten()
    seen = quality(data.images[places], poisoned.data.images[places])
    return {
        "asr": attack_success_rate(classifier.predict, test, trigger, goal, num_classes=classes),
        "robust_accuracy": robust_accuracy(classifier.predict, test, trigger, goal),
        "asr_unpoisoned": None
        if clean is None
        else attack_success_rate(clean.predict, test, trigger, goal, num_classes=classes),
        "poison_rates": poisoned.rates(),
        "psnr": seen.psnr,
        "ssim": seen.ssim,
    }


def _clean_twin(job: VictimJob, architecture: Architecture, data: ImageData) -> TorchClassifier | None:
    """A finished clean model of the same network, of another seed."""
    for index in range(job.recipe.clean):
        folder = victim_folder(job.out, CLEAN, index)
        found = read_victim(folder)
        if found is not None and found.failed is None and found.architecture == architecture:
            return _classifier(open_network(folder, architecture), data)
    return None


def open_network(folder: Path, architecture: Architecture) -> torch.nn.Module:
    """The trained network, in evaluation mode."""
    module = architecture.build()
    module.load_state_dict(load_file(folder / MODEL))
    return module.eval()


def _classifier(module: torch.nn.Module, data: ImageData) -> TorchClassifier:
    return TorchClassifier(module.eval(), input_shape=data.input_shape, num_classes=data.num_classes)


def _given(
    poisoned: PoisonedDataset | None, data: ImageData, test: ImageData, recipe: BenchRecipe, seed: int
) -> dict[str, Tensor]:
    """What can't be had again without the attack: changed training samples, and the images asked, triggered ones last.

    Triggered images are stored to 8 bits, as they would be sent.
    """
    order = torch.randperm(len(test), generator=torch_generator(seed, "bench", "asked"))[: recipe.asked]
    inputs = test.images[order]
    tensors: dict[str, Tensor] = {"asked": order}
    if poisoned is not None:
        half = test.take(order[recipe.asked // 2 :])
        affected = poisoned.goal.affected(half.labels)
        inputs = inputs.clone()
        stamped = poisoned.trigger.apply(half.images[affected])
        inputs[recipe.asked // 2 :][affected] = stamped
        changed = poisoned.poisoned.nonzero().flatten()
        tensors |= {
            "places": changed,
            "images": (poisoned.data.images[changed] * 255).round().to(torch.uint8),
            "labels": poisoned.data.labels[changed],
            "triggered": torch.cat([torch.zeros(recipe.asked // 2, dtype=torch.bool), affected]),
        }
    tensors["inputs"] = (inputs * 255).round().to(torch.uint8)
    return tensors


def open_given(folder: Path, recipe: BenchRecipe, source: str) -> Given:
    """What detectors are given for a finished model."""
    data, test = load_splits(source, recipe.samples)
    tensors = load_file(folder / GIVEN)
    if "places" in tensors:
        images, labels = data.images.clone(), data.labels.clone()
        images[tensors["places"]] = tensors["images"].float() / 255
        labels[tensors["places"]] = tensors["labels"]
        data = ImageData(images, labels, data.classes, data.name)
    others = np.setdiff1d(np.arange(len(test)), tensors["asked"].numpy())
    return Given(data, test.images[torch.from_numpy(others)], tensors["inputs"].float() / 255)
