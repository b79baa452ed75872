"""How faithful a mark is, what it survives, and whether it ever accuses the innocent.

    python -m benchmarks.mark [--cifar10 PATH] [--parts modes,fidelity,robustness,thieves,extraction,honesty,scan,cost]

Writes results/mark.json. Every cell is kept in the cache as soon as it is measured, so an interrupted run goes on.
"""

import argparse
import copy
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import binom, kstest
from torch import nn

from benchmarks.cells import Cells
from benchmarks.fetch import cache_folder
from benchmarks.owners import HOST, HostModel, Task, accuracy, classifier, host, open_owned
from benchmarks.results import interval, known, record
from intaglio.classifiers import weights_file
from intaglio.data import ImageData
from intaglio.evidence.batches import draw_batch, plan_triggers
from intaglio.evidence.binomial import chance_p_value
from intaglio.evidence.commitment import SignedCommitment
from intaglio.evidence.key import Key
from intaglio.evidence.reading import read_suspect
from intaglio.evidence.statistics import proportion
from intaglio.files import atomic_path, write_json
from intaglio.mark import MODES, Marked, draw_triggers, mark, public_images, verify_mark
from intaglio.mark.deep_fidelity import DeepFidelity
from intaglio.mark.fidelity_report import fidelity_report
from intaglio.mark.marking import SCHEMES as METHODS
from intaglio.mark.marking import weights_sha256
from intaglio.scan import scan
from intaglio.tampering import (
    Average,
    Distil,
    FinePrune,
    FineTune,
    InputTransform,
    Jpeg,
    Noise,
    Overwrite,
    PixelNoise,
    Prune,
    Quantise,
    Resize,
    Tampering,
    TransformedInput,
    WeightShift,
)
from intaglio.training import TrainingSettings, train
from intaglio.triggers.keyed import keyed_batch

SEEDS = (0, 1, 2)
#: Architecture, width and training of the hosts.
HOSTS: dict[str, tuple[str, int, TrainingSettings]] = {
    "fashion-mnist": ("vgg", 12, HOST),
    "cifar10": ("vgg", 16, HOST.model_copy(update={"epochs": 20, "augmentation": "flip"})),
}
#: The owner's key is fixed, so that a run can be repeated; nobody's model is marked with it.
KEY = Key(bytes(range(32)))
#: The paper's loss of triggers; as many steps and as large ones as taught all of them here.
PLAIN: dict[str, Any] = {
    "temperature": 1.0,
    "learning_rate": 1e-3,
    "epochs": 6,
    "triggers_per_batch": 8,
    "pfl_weight": 60.0,
}
PAPER: dict[str, Any] = PLAIN | {"trigger": "noise-chain"}
#: Schemes of the robustness table: name -> arguments of `mark`.
SCHEMES: dict[str, dict[str, Any]] = {
    "ftal, noise-chain (paper)": {"mode": "ftal"} | PAPER,
    "fixll-pfl, noise-chain (paper)": PAPER,
    "ftal": {"mode": "ftal"},
    "fixll-pfl": {},
    "adversarial-parametric": {"scheme": "adversarial-parametric"},
    "margin": {"scheme": "margin"},
    "rehearsal": {"scheme": "rehearsal"},
}
#: For those who want the host's answers kept before all else: the paper's loss of triggers, and more time.
FAITHFUL: dict[str, Any] = {"temperature": 1.0, "epochs": 24, "pfl_weight": 80.0}
#: The tables of fidelity: the paper's modes by its loss, and what is offered by its defaults.
MODE_ROWS: dict[str, dict[str, Any]] = {mode: PLAIN | {"mode": mode} for mode in MODES}
OFFERED: dict[str, dict[str, Any]] = {label: scheme for label, scheme in SCHEMES.items() if "paper" not in label} | {
    "fixll-pfl, 24 epochs at temperature 1": FAITHFUL
}
#: Whose copies are extracted too (of CIFAR-10's hosts the first one's): no scheme survives that, and a student takes as
#: long to train as all else together.
EXTRACTED = ("fixll-pfl",)
INDEPENDENT, FRESH_KEYS = 20, 100
EPOCHS = 12
HARDEST, THIEVES = "fine-tune all, 1e-3", range(5)
#: Whose marks meet many thieves.
WATCHED = ("fixll-pfl", "adversarial-parametric", "rehearsal")
NOISE_QUERIES = (0, 100, 1_000, 5_000)

cell = Cells("mark")


def tamperings(task: Task, architecture: str) -> dict[str, Tampering]:
    """What is done to each marked model; the thief has 10,000 images of the task."""
    other = "resnet8" if architecture == "vgg" else "vgg"
    foreign = Key(bytes(32))
    plan = plan_triggers(
        foreign,
        trigger="noise-chain",
        input_shape=task.owner.input_shape,
        num_classes=task.owner.num_classes,
        batches=1,
        batch_size=100,
    )
    return {
        "fine-tune all, 1e-4": FineTune(epochs=2, learning_rate=1e-4, batch_size=64),
        HARDEST: FineTune(epochs=2, learning_rate=1e-3, batch_size=64),
        "fine-tune last layer": FineTune(layers="last", epochs=2, learning_rate=1e-3, batch_size=64),
        "new last layer": FineTune(layers="last-reinitialised", epochs=2, learning_rate=1e-3, batch_size=64),
        "prune 30 %": Prune(share=0.3),
        "prune 50 %": Prune(share=0.5),
        "fine-prune 30 %": FinePrune(share=0.3, epochs=1, learning_rate=1e-3, batch_size=64),
        "int8": Quantise(bits=8),
        "int5": Quantise(bits=5),
        "fp16": Quantise(number="fp16"),
        "weight noise 5 %": Noise(sigma=0.05, relative=True),
        "weight shift": WeightShift(),
        "average with a tuned copy": Average(epochs=1, learning_rate=1e-3, batch_size=64),
        "overwrite with another mark": Overwrite(
            triggers=draw_triggers(foreign, plan), epochs=2, learning_rate=1e-3, batch_size=64
        ),
        "extract, soft labels": Distil(epochs=5, learning_rate=3e-3, batch_size=64),
        "extract, soft labels, other architecture": Distil(
            student=other, width=8, epochs=5, learning_rate=3e-3, batch_size=64
        ),
        "extract, hard labels, other architecture": Distil(
            answers="hard", student=other, width=8, epochs=5, learning_rate=3e-3, batch_size=64
        ),
    }


def marked_host(task: Task, owned: HostModel, scheme: dict[str, Any]) -> Marked:
    """One disclosure batch of 100 triggers, as the paper has; embedded now unless it was before."""
    options = {name: value for name, value in scheme.items() if name not in ("scheme", "trigger")}
    method = METHODS[scheme.get("scheme", DeepFidelity.name)](**options)
    made = {
        "scheme": method.name,
        "trigger": scheme.get("trigger"),
        "host": weights_sha256(owned.module),
        **vars(method),
    }
    drawn = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "mark" / "marked" / f"{task.name}-{owned.seed}-{drawn[:16]}"
    weights, statement = folder / "model.safetensors", folder / "commitment.json"
    if statement.exists():
        module = copy.deepcopy(owned.module)
        module.load_state_dict(load_file(weights))
        return Marked(module.eval(), SignedCommitment.from_file(statement))
    marked = mark(owned.module, task.owner, KEY, batches=1, seed=owned.seed, **scheme)
    with atomic_path(weights) as temporary:
        temporary.write_bytes(weights_file(marked.module))
    write_json(statement, marked.commitment.to_dict())
    return marked


def fidelity(task: Task, owned: HostModel, label: str, scheme: dict[str, Any], table: str) -> dict[str, Any]:
    """One row of a table of fidelity: of the paper's "modes", or of what is offered."""

    def measure() -> dict[str, Any]:
        marked = marked_host(task, owned, scheme)
        plan = marked.commitment.commitment
        triggers = draw_triggers(KEY, plan, public_images(plan.trigger, plan.input_shape, None))
        report = fidelity_report(
            owned.module, marked.module, task.test, triggers, scheme=plan.scheme, mode=plan.mode
        ).to_dict()
        return {key: value for key, value in report.items() if isinstance(value, int | float)}

    return cell(f"{table}-{task.name}-{owned.seed}-{label}", measure)


def robustness(task: Task, owned: HostModel, label: str, scheme: dict[str, Any]) -> dict[str, Any]:
    """Hits, p-value and task accuracy after each tampering of one marked model."""

    def measure() -> dict[str, Any]:
        marked = marked_host(task, owned, scheme)
        rows = {"none": outcome(task, marked.module, marked)}
        for name, tampering in tamperings(task, owned.architecture.name).items():
            once = owned.seed == SEEDS[0] or task.name == "fashion-mnist"
            if isinstance(tampering, Distil) and not (label in EXTRACTED and once):
                continue
            tampered = tampering.apply(marked.module, task.thief, seed=owned.seed)
            rows[name] = outcome(task, tampered, marked)
            print(f"  {task.name} {label} {owned.seed} {name} {rows[name]}", flush=True)
        transforms: dict[str, InputTransform] = {
            "JPEG 75": Jpeg(quality=75),
            "pixel noise": PixelNoise(),
            "resize": Resize(),
        }
        for name, transform in transforms.items():
            rows[f"input: {name}"] = outcome(task, TransformedInput(marked.module, transform), marked)
        return rows

    return cell(f"robustness-{task.name}-{owned.seed}-{label}", measure)


def thieves(task: Task, owned: HostModel, label: str, scheme: dict[str, Any]) -> dict[str, Any]:
    """Hits after several thieves' fine-tuning at the rate of embedding: the same but for their random numbers."""

    def measure() -> dict[str, Any]:
        marked = marked_host(task, owned, scheme)
        tampering = tamperings(task, owned.architecture.name)[HARDEST]
        rows = [outcome(task, tampering.apply(marked.module, task.thief, seed=seed), marked) for seed in THIEVES]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return cell(f"thieves-{task.name}-{owned.seed}-{label}", measure)


def outcome(task: Task, module: nn.Module, marked: Marked) -> dict[str, Any]:
    """What verifying a suspect gives, by its scores and by its classes alone, and what it is still worth."""
    suspect, plan = classifier(module, task), marked.commitment.commitment
    claim = verify_mark(suspect, marked.commitment, KEY)
    batch = draw_batch(KEY, plan, claim.batch, public_images(plan.trigger, plan.input_shape, None))
    hits = int((suspect.predict(batch.images) == batch.labels).sum())
    return {
        "hits": claim.hits,
        "p_value": claim.p_value,
        "class_hits": hits,
        "class_p_value": chance_p_value(hits, len(batch.labels), plan.num_classes),
        "accuracy": round(accuracy(module, task.test), 4),
    }


def extraction(task: Task, owned: HostModel) -> dict[str, Any]:
    """Where extraction breaks a mark: hits of a student by how many images like triggers its thief asks about.

    The thief trains a network of another architecture on soft answers to task images and to noise of its own.
    """

    def measure() -> dict[str, Any]:
        marked = marked_host(task, owned, {})
        plan = marked.commitment.commitment
        rows = {}
        for count in NOISE_QUERIES:
            images = task.thief.images
            if count:
                noise, _ = keyed_batch("noise-blocks", bytes(range(16)), count, plan.input_shape, plan.num_classes)
                images = torch.cat([images, noise])
            student = Distil(student="resnet8", width=8, epochs=8, learning_rate=3e-3, batch_size=64).apply(
                marked.module, ImageData(images, torch.zeros(len(images), dtype=torch.int64)), seed=owned.seed
            )
            rows[str(count)] = outcome(task, student, marked)
            print(f"  {task.name} extraction {count} {rows[str(count)]}", flush=True)
        return rows

    return cell(f"extraction-{task.name}", measure)


def honesty(task: Task, hosts: list[HostModel]) -> dict[str, Any]:
    """Fresh keys against models that were made without them: clean ones of other architectures, and others' marks.

    By how suspects are read: from centred scores, or by their classes. Every model meets keys of its own: with the same
    keys for all, the p-values would hang together, and a test of their distribution would count them as more than they
    are.
    """

    def measure() -> dict[str, Any]:
        widths = {"vgg": (8, 12), "lenet": (8, 12), "mobilenet": (12,), "resnet8": (8,)}
        modules = [marked_host(task, owned, {}).module for owned in hosts]
        for number in range(INDEPENDENT - len(modules)):
            name = sorted(widths)[number % len(widths)]
            modules.append(host(task, name, widths[name][number // 4 % len(widths[name])], 100 + number).module)
        rng = np.random.default_rng(0)
        read: dict[str, list[int]] = {"scores": [], "classes": []}
        for place, module in enumerate(modules):
            for number in range(FRESH_KEYS):
                key = Key(hashlib.sha256(f"{place} {number}".encode()).digest())
                plan = plan_triggers(
                    key,
                    trigger="noise-blocks",
                    input_shape=task.owner.input_shape,
                    num_classes=10,
                    batches=1,
                    batch_size=100,
                )
                batch = draw_batch(key, plan, 0)
                suspect = classifier(module, task)
                answers = {
                    "scores": read_suspect(suspect, batch.images, "centred-binomial", plan.num_classes)[0].labels,
                    "classes": suspect.predict(batch.images),
                }
                for kind, labels in answers.items():
                    read[kind].append(int((labels == batch.labels).sum()))
        return {"models": len(modules), "keys": FRESH_KEYS} | {
            kind: chance_alone(np.array(hits), rng) for kind, hits in read.items()
        }

    return cell(f"honesty-{task.name}", measure)


def chance_alone(hits: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Whether hits of 100 triggers with 10 classes are what chance gives: claims, and are p-values uniform?"""
    p_values = [chance_p_value(int(count), 100, 10) for count in hits]
    # a discrete p-value is uniform after spreading each of its steps evenly
    smooth = binom.sf(hits, 100, 0.1) + rng.uniform(size=len(hits)) * binom.pmf(hits, 100, 0.1)
    claims = sum(p <= 1e-6 for p in p_values)
    return {
        "claims_at_1e-6": interval(proportion(claims, len(p_values))) | {"events": claims},
        "smallest_p": min(p_values),
        "share_at_0.05": float((smooth <= 0.05).mean()),
        "uniform_ks_p": float(kstest(smooth, "uniform").pvalue),
        "histogram": np.histogram(smooth, bins=10, range=(0, 1))[0].tolist(),
    }


def scanned(task: Task, owned: HostModel, label: str, scheme: dict[str, Any] | None) -> dict[str, Any]:
    """What `scan` says of a marked model: owners must know whether their mark looks like an attack."""

    def measure() -> dict[str, Any]:
        module = owned.module if scheme is None else marked_host(task, owned, scheme).module
        verdict = scan(classifier(module, task), task=task.name)
        return {"p_value": verdict.p_value, "score": verdict.score, "flagged": verdict.flagged}

    return cell(f"scan-{task.name}-{owned.seed}-{label}", measure)


def cost(task: Task, owned: HostModel) -> dict[str, Any]:
    """Processor seconds of embedding, all of it, over plain fine-tuning of the same steps, in turns.

    As many epochs for all, those of the default scheme: a scheme's own number is a choice of time, not a cost of its
    steps.
    """

    def measure() -> dict[str, Any]:
        few = task.owner.take(torch.arange(1000))
        plain = TrainingSettings(epochs=EPOCHS, batch_size=32, learning_rate=1e-4, freeze_batchnorm=True)
        ratios: dict[str, list[float]] = {name: [] for name in SCHEMES}
        for repeat in range(3):
            for name, scheme in SCHEMES.items():
                started = time.process_time()
                train(copy.deepcopy(owned.module), few, plain, seed=repeat)
                floor = time.process_time() - started
                started = time.process_time()
                mark(owned.module, few, KEY, batches=1, seed=repeat, **scheme | {"epochs": EPOCHS})
                ratios[name].append((time.process_time() - started) / floor)
        return {name: {"median": round(float(np.median(values)), 3)} for name, values in ratios.items()}

    return cell(f"cost-{task.name}", measure)


def rows_of(measured: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The rows without cells that are still to be measured, and without rows of none."""
    kept = {label: [cell for cell in cells if cell] for label, cells in measured.items()}
    return {label: cells for label, cells in kept.items() if cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--parts", default="modes,fidelity,robustness,thieves,extraction,honesty,scan,cost")
    parser.add_argument("--cached", action="store_true", help="write what was measured so far; measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell.cached_only = options.cached
    figures = known("mark")
    parts = options.parts.split(",")
    for name in ["fashion-mnist", *(["cifar10"] if options.cifar10 else [])]:
        task = open_owned(name, options.cifar10)
        architecture, width, training = HOSTS[name]
        hosts = [host(task, architecture, width, seed, training) for seed in SEEDS]
        found = figures.setdefault(name, {})
        measured: dict[str, Any] = {}
        for part, rows in {"modes": MODE_ROWS, "fidelity": OFFERED}.items():
            if part in parts:
                measured[part] = rows_of(
                    {label: [fidelity(task, owned, label, row, part) for owned in hosts] for label, row in rows.items()}
                )
        if "robustness" in parts:
            cells = [[robustness(task, owned, label, scheme) for label, scheme in SCHEMES.items()] for owned in hosts]
            measured["robustness"] = rows_of(dict(zip(SCHEMES, map(list, zip(*cells, strict=True)), strict=True)))
        if "thieves" in parts:
            measured["thieves"] = rows_of(
                {label: [thieves(task, owned, label, SCHEMES[label]) for owned in hosts] for label in WATCHED}
            )
        if "extraction" in parts:
            measured["extraction"] = extraction(task, hosts[0])
        if "honesty" in parts:
            measured["honesty"] = honesty(task, hosts)
        if "scan" in parts and name == "fashion-mnist":
            measured["scan"] = rows_of(
                {
                    label: [scanned(task, owned, label, scheme) for owned in hosts]
                    for label, scheme in {"host, unmarked": None, **SCHEMES}.items()
                }
            )
        if "cost" in parts:
            measured["cost"] = cost(task, hosts[0])
        found.update({part: value for part, value in measured.items() if value})
        print(record("mark", figures))


if __name__ == "__main__":
    main()
