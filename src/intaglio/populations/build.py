"""One model of a population: planned, poisoned, trained, measured, and put in its place in one step."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from intaglio.attacks import PoisonedDataset, accuracy, attack_success_rate
from intaglio.data import ImageData
from intaglio.errors import StorageError
from intaglio.files import sha256_file, write_bytes, write_json
from intaglio.populations.manifest import ModelRecord, model_folder
from intaglio.populations.recipe import Plan
from intaglio.seeds import derive_seed
from intaglio.training import train


def build_model(plan: Plan, train_data: ImageData, test_data: ImageData, task: str, out: Path) -> ModelRecord:
    """Trains model `plan.index` and renames its finished folder into `out`; until then nothing of it is there.

    Raises:
        StorageError: the folder can't be written.
    """
    started = time.perf_counter()
    architecture = plan.build_architecture(train_data.input_shape, train_data.num_classes)
    torch.manual_seed(derive_seed(plan.seed, "initialisation"))
    module = architecture.build()
    attack = plan.build_attack(train_data.num_classes)
    poisoned = attack.poison(train_data).as_stored() if attack else None  # as a file of pictures holds it
    train(module, poisoned.data if poisoned else train_data, plan.training, seed=plan.seed)
    clean_accuracy, asr = _measure(module, test_data, poisoned)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=out) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            write_bytes(folder / "model.safetensors", save(weights))
            record = ModelRecord(
                index=plan.index,
                seed=plan.seed,
                task=task,
                architecture=architecture,
                training=plan.training,
                attack=poisoned.describe() if poisoned else None,
                clean_accuracy=clean_accuracy,
                asr=asr,
                sha256=sha256_file(folder / "model.safetensors"),
                seconds=round(time.perf_counter() - started, 2),
            )
            write_json(folder / "record.json", record.model_dump(mode="json"))
            sidecar = {
                "architecture": architecture.model_dump(mode="json"),
                "task": task,
                "classes": train_data.classes,
            }
            write_json(folder / "intaglio.json", sidecar)
            final = model_folder(out, plan.index)
            if final.exists():  # left by a version that wrote in place, or by hand: without a record it is not a model
                shutil.rmtree(final)
            os.replace(folder, final)
    except OSError as error:
        raise StorageError(f"can't write {out}: {error.strerror or error}") from error
    return record


def _measure(module: nn.Module, data: ImageData, poisoned: PoisonedDataset | None) -> tuple[float, float | None]:
    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = torch.split(images.contiguous(memory_format=torch.channels_last), 256)
            return torch.cat([module(part).argmax(1) for part in parts])

    clean = accuracy(predict, data)
    if poisoned is None:
        return clean, None
    classes = poisoned.data.num_classes
    return clean, attack_success_rate(predict, data, poisoned.trigger, poisoned.goal, num_classes=classes)
