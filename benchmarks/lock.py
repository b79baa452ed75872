"""What a lock is worth: its leak tables, its tracing, and what attackers make of it.

    python -m benchmarks.lock [--cifar10 PATH] [--parts leaks,mislabel,attacks,cost] [--cached]

Writes results/lock.json. Every cell and every lock is kept in the cache as soon as it is there, so an interrupted run
goes on; with --cached nothing is measured any more. Half an hour a lock on one core, and three tasks of three seeds.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.faces import faces
from benchmarks.fetch import cache_folder
from benchmarks.lock_attacks import key_attacks, model_attacks
from benchmarks.owners import Task, accuracy, classifier, open_owned
from benchmarks.results import interval, record
from intaglio.classifiers import Sidecar
from intaglio.evidence.key import Key
from intaglio.evidence.statistics import proportion
from intaglio.files import write_json
from intaglio.lock import Lock, LockSettings, check_lock, train_lock
from intaglio.lock.checking import jpeg_files
from intaglio.lock.sealed_model import write_locked
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings, train

SEEDS = (0, 1, 2)
USERS = 64
#: The owner's key is fixed, so that a run can be repeated; nobody's model is locked with it.
KEY = Key(bytes(range(32)))
PARTS = ("leaks", "mislabel", "attacks", "cost")


class Plan(NamedTuple):
    """How a task's host and lock are trained."""

    architecture: str
    width: int
    host: TrainingSettings
    lock: LockSettings
    attacked_seeds: tuple[int, ...] = ()


PLANS = {
    "fashion-mnist": Plan(
        "vgg", 12, TrainingSettings(epochs=8, batch_size=64, learning_rate=3e-3), LockSettings(), attacked_seeds=SEEDS
    ),
    "faces": Plan(
        "vgg",
        12,
        TrainingSettings(steps=600, batch_size=32, learning_rate=3e-3, augmentation="shift"),
        LockSettings(augmentation="shift"),
    ),
    "cifar10": Plan(
        "vgg",
        16,
        TrainingSettings(epochs=8, batch_size=64, learning_rate=3e-3, augmentation="flip"),
        LockSettings(augmentation="flip"),
        attacked_seeds=(0,),
    ),
}


class Run:
    """What the command line said."""

    cached_only = False
    cifar10: Path | None = None


def cell(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement, made now unless it was before; with --cached it is left out (empty) unless it was."""
    path = cache_folder() / "lock" / f"{name.replace('/', '_').replace(' ', '-')}.json"
    if not path.exists():
        if Run.cached_only:
            return {}
        write_json(path, measure())
        print(name, json.loads(path.read_text()), flush=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@cache
def task(name: str) -> Task:
    """The task's images; a thief of faces has none of his own."""
    if name == "faces":
        return Task(name, faces("train"), faces("train"), faces("test"))
    return open_owned(name, Run.cifar10)


def architecture(name: str) -> Architecture:
    """The network of this task's hosts."""
    plan, owner = PLANS[name], task(name).owner
    return Architecture(
        name=plan.architecture, input_shape=owner.input_shape, num_classes=owner.num_classes, width=plan.width
    )


def host(name: str, seed: int) -> nn.Module:
    """A model before it is locked, trained now unless it was before."""
    return _kept(
        f"host-{name}-{seed}",
        architecture(name),
        lambda fresh: train(fresh, task(name).owner, PLANS[name].host, seed=seed),
        seed,
    )


def locked_host(name: str, seed: int) -> tuple[nn.Module, Lock]:
    """The locked model and its lock, trained now unless they were before."""
    folder = cache_folder() / "lock" / f"{name}-{seed}"
    built, path = architecture(name), folder / "model.safetensors"
    if not (folder / "users.json").exists():
        started = time.process_time()
        locked, lock = train_lock(host(name, seed), task(name).owner, KEY, settings=PLANS[name].lock, seed=seed)
        for user in range(USERS):
            lock.issue(f"user {user}")
        write_locked(locked, path, Sidecar(architecture=built))
        write_json(folder / "cost.json", {"cpu_seconds": round(time.process_time() - started)})
        lock.save(folder, KEY)
    module = built.build()
    module.load_state_dict(load_file(path))
    return module.eval(), Lock.open(folder, KEY)


def leaks(name: str, seed: int) -> dict[str, Any]:
    """The leak table, the unlocked model's accuracy, and how often users are traced from one image."""

    def measure() -> dict[str, Any]:
        locked, lock = locked_host(name, seed)
        _, other = locked_host(name, (seed + 1) % len(SEEDS))
        test = task(name).test
        table = check_lock(classifier(locked, task(name)), lock, test, other=other)
        return {
            "unlocked_accuracy": accuracy(host(name, seed), test),
            "table": {row.inputs: row.recovered for row in table.rows},
            "chance": table.chance,
            "worst": table.worst,
            "tight": table.tight,
            "psnr": table.psnr,
            "worst_psnr": table.worst_psnr,
            "ssim": table.ssim,
            "traced": traced(lock, test.images),
            "cpu_seconds": json.loads((cache_folder() / "lock" / f"{name}-{seed}" / "cost.json").read_text())[
                "cpu_seconds"
            ],
        }

    return cell(f"leaks-{name}-{seed}", measure)


def traced(lock: Lock, images: Tensor) -> dict[str, Any]:
    """Images keyed for 64 users in turn: who is named at alpha = 0.01, and who merely comes nearest."""
    images = images[: 10 * USERS]
    truth = [f"user {index % USERS}" for index in range(len(images))]
    keyed = torch.empty_like(images)
    for user in range(min(USERS, len(images))):
        keyed[user::USERS] = lock.apply(images[user::USERS], user=f"user {user}")
    found = {}
    for kind, received in (
        ("PNG", keyed),
        ("JPEG 75", jpeg_files(keyed, 75)),
        ("JPEG 50", jpeg_files(keyed, 50)),
    ):
        matches = lock.trace(received).images
        named = sum(match.user == user for match, user in zip(matches, truth, strict=True))
        wrong = sum(match.user not in (user, None) for match, user in zip(matches, truth, strict=True))
        nearest = sum(match.nearest == user for match, user in zip(matches, truth, strict=True))
        found[kind] = {
            "named": interval(proportion(named, len(images))),
            "named_wrongly": wrong / len(images),
            "nearest": nearest / len(images),
        }
    innocent = sum(match.user is not None for match in lock.trace(images).images)
    return {**found, "images": len(images), "users": len(lock.users), "no key, somebody named": innocent / len(images)}


def mislabelled(name: str, mislabel: str) -> dict[str, Any]:
    """The leak table of a model locked with the same key network, but another answer to the unauthorised."""

    def measure() -> dict[str, Any]:
        _, lock = locked_host(name, 0)
        settings = PLANS[name].lock.model_copy(update={"mislabel": mislabel, "steps": PLANS[name].lock.steps // 2})
        locked, _ = train_lock(host(name, 0), task(name).owner, KEY, settings=settings, lock=lock)
        table = check_lock(classifier(locked, task(name)), lock, task(name).test)
        return {"table": {row.inputs: row.recovered for row in table.rows}, "worst": table.worst, "tight": table.tight}

    return cell(f"mislabel-{name}-{mislabel}", measure)


def attacked(name: str, seed: int) -> dict[str, Any]:
    """Every attack on one lock, each with what it took."""
    rows: dict[str, Any] = {}
    images, built = task(name), architecture(name)

    def opened() -> tuple[nn.Module, Lock]:
        return locked_host(name, seed)

    for label, attack in {**key_attacks(images, opened, seed), **model_attacks(images, opened, built, seed)}.items():
        rows[label] = cell(f"attack-{name}-{seed}-{label}", lambda attack=attack: {"accuracy": attack()})
    return rows


def cost() -> dict[str, Any]:
    """Milliseconds of keying an image of 3 x 32 x 32 on one core, in a batch of 256 and alone."""

    def measure() -> dict[str, Any]:
        from intaglio.lock.key_network import KeyNetwork
        from intaglio.lock.lock import LockFacts

        facts = LockFacts(lock_id="0" * 32, input_shape=(3, 32, 32), settings=LockSettings())
        lock = Lock(KeyNetwork(3, facts.settings), KEY, facts)
        found = {}
        for label, images in (("batched", torch.rand(256, 3, 32, 32)), ("alone", torch.rand(1, 3, 32, 32))):
            lock.apply(images, user="a")
            times = []
            for _ in range(10):
                started = time.process_time()
                lock.apply(images, user="a")
                times.append((time.process_time() - started) / len(images))
            found[f"ms_{label}"] = round(1000 * sorted(times)[len(times) // 2], 3)
        return found

    return cell("cost", measure)


def _kept(name: str, built: Architecture, trained: Callable[[nn.Module], nn.Module], seed: int) -> nn.Module:
    path = cache_folder() / "lock" / f"{name}.safetensors"
    torch.manual_seed(seed)
    module = built.build()
    if path.exists():
        module.load_state_dict(load_file(path))
    else:
        write_locked(trained(module), path, Sidecar(architecture=built))
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cached", action="store_true", help="write what is in the cache, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Run.cached_only, Run.cifar10 = options.cached, options.cifar10
    parts = options.parts.split(",")
    figures: dict[str, Any] = {"cost": cost() if "cost" in parts else {}}
    for name, plan in PLANS.items():
        if name == "cifar10" and options.cifar10 is None:
            continue
        figures[name] = {
            "leaks": [leaks(name, seed) for seed in SEEDS] if "leaks" in parts else [],
            "mislabel": {kind: mislabelled(name, kind) for kind in ("shift", "random")}
            if "mislabel" in parts and name == "fashion-mnist"
            else {},
            "attacks": {str(seed): attacked(name, seed) for seed in plan.attacked_seeds} if "attacks" in parts else {},
        }
    print(record("lock", figures))


if __name__ == "__main__":
    main()
