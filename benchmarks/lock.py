"""What a lock is worth: its leak tables, its tracing, and what attackers make of it.

    python -m benchmarks.lock [--cifar10 PATH]
        [--parts cost,leaks,grid,louder,again,votes,distilled,relocked,atoms,beyond,mislabel,attacks,together]
        [--tasks fashion-mnist,faces,cifar10] [--cached]

Writes results/lock.json. Every cell and every lock is kept in the cache as soon as it is there, so an interrupted run
goes on; with --cached nothing is measured any more. What was not measured now stays in the file as it was. An
hour of one core a lock; the last four parts take the lock that comes with the package, the first owner's of
Fashion-MNIST.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.cells import Cells
from benchmarks.faces import faces
from benchmarks.lock_attacks import Attack, key_attacks, model_attacks
from benchmarks.lock_beyond import beyond
from benchmarks.lock_measures import USERS, Keying, as_issued, as_rivals, keying_cost, through_jpeg, traced
from benchmarks.lock_plans import LOUDER, ON_GRID, PLANS
from benchmarks.lock_tables import LOUDER as SAID
from benchmarks.lock_together import marked_first, together
from benchmarks.lock_votes import NOISES, voted
from benchmarks.owners import Task, accuracy, classifier, open_owned
from benchmarks.owners import host as owned_host
from benchmarks.results import known, over, record
from intaglio.classifiers import Sidecar, open_classifier
from intaglio.classifiers.derived import with_weights
from intaglio.data import ImageData
from intaglio.evidence.key import Key
from intaglio.files import sha256_file, write_json
from intaglio.lock import Lock, LockSettings, check_lock, refine_lock, train_lock
from intaglio.lock.codes import RIVALS
from intaglio.lock.leaks import HELD, READERS, chance, recovered
from intaglio.lock.sealed_model import write_locked
from intaglio.lock.settings import ATOMS
from intaglio.networks import Architecture
from intaglio.training import train

SEEDS = (0, 1, 2)
_ALL = 10_000
PARTS = ("cost", "leaks", "grid", "louder", "again", "votes", "distilled", "relocked", "atoms", "beyond", "mislabel",
         "attacks", "together")  # fmt: skip
#: The first owner's lock of Fashion-MNIST; it is attacked, and its keys shall have leaked.
SHIPPED = Path(__file__).parents[1] / "examples" / "locked"


class Run:
    """What the command line said."""

    cifar10: Path | None = None


cell = Cells("lock")


@cache
def task(name: str) -> Task:
    """The task's images; a thief of faces has none of his own."""
    if name == "faces":
        return Task(name, faces("train"), faces("train"), faces("test"))
    return open_owned(name, Run.cifar10)


@cache
def all_tested(name: str) -> ImageData:
    """All test images there are: of 2,000 a leak of 2 points is uncertain by 0.7, of 10,000 by 0.3."""
    return task(name).test if name == "faces" else open_owned(name, Run.cifar10, tested=_ALL).test


def architecture(name: str) -> Architecture:
    """The network of this task's hosts."""
    plan, owner = PLANS[name], task(name).owner
    return Architecture(
        name=plan.architecture, input_shape=owner.input_shape, num_classes=owner.num_classes, width=plan.width
    )


def owner_key(seed: int) -> Key:
    """Each owner's key is fixed, so that a run can be repeated; nobody's model is locked with it."""
    return Key(bytes(range(seed, seed + 32)))


def host(name: str, seed: int) -> nn.Module:
    """A model before it is locked, trained now unless it was before."""
    plan, images, built = PLANS[name], task(name), architecture(name)
    if plan.host is None:
        return owned_host(images, plan.architecture, plan.width, seed).module
    path = cell.folder / f"host-{name}-{seed}.safetensors"
    torch.manual_seed(seed)
    module = built.build()
    if path.exists():
        module.load_state_dict(load_file(path))
    else:
        write_locked(train(module, images.owner, plan.host, seed=seed), path, Sidecar(architecture=built))
    return module.eval()


def locked_host(name: str, seed: int, **changes: Any) -> tuple[nn.Module, Lock]:
    """The locked model and its lock, by the plan's settings or changed ones, trained now unless they were before."""
    return _locked_in(_folder(name, seed, **changes), name, seed, PLANS[name].lock.model_copy(update=changes))


def _locked_in(
    folder: Path, name: str, seed: int, settings: LockSettings, earlier: tuple[Lock, ...] = ()
) -> tuple[nn.Module, Lock]:
    """The same in a folder, with the keys of earlier locks refused."""

    def made(checkpoint: Path) -> tuple[nn.Module, Lock]:
        data, key = task(name).owner, owner_key(seed)
        locked, lock = train_lock(
            host(name, seed), data, key, settings=settings, earlier=earlier, seed=seed, checkpoint=checkpoint
        )
        for user in range(USERS):
            lock.issue(f"user {user}")
        return locked, lock

    return _kept(folder, name, seed, made)


def _kept(folder: Path, name: str, seed: int, made: Callable[[Path], tuple[nn.Module, Lock]]) -> tuple[nn.Module, Lock]:
    """What is kept in a folder, made now, with a checkpoint, unless it was before."""
    key = owner_key(seed)
    if not (folder / "key-network.sealed").exists():
        started, checkpoint = time.process_time(), folder / "checkpoint"
        resumed = {"resumed": True} if checkpoint.exists() else {}  # then the seconds are those since
        locked, lock = made(checkpoint)
        write_locked(locked, folder / "model.safetensors", Sidecar(architecture=architecture(name)))
        cost = {"cpu_seconds": round(time.process_time() - started), "mined": True, **resumed}
        write_json(folder / "cost.json", cost)
        lock.save(folder, key)
        checkpoint.unlink(missing_ok=True)
    return open_locked(folder, key)


def open_locked(folder: Path, key: Key) -> tuple[nn.Module, Lock]:
    """The locked model in a folder, of whatever architecture, and its lock."""
    return with_weights(open_classifier(folder / "model.safetensors")).module, Lock.open(folder, key)


def leaks(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The leak table, the unlocked model's accuracy, and how often users are traced from one image."""
    folder = _folder(name, seed, **changes)
    return cell(f"leaks-{folder.name}", lambda: _measured(folder, name, seed, *locked_host(name, seed, **changes)))


def relocked(name: str, leaked: Path) -> dict[str, Any]:
    """The same for the next generation of the first owner's lock, with what keys of the earlier one open of it."""
    folder = cell.folder / f"{name}-0-relocked"

    def measure() -> dict[str, Any]:
        before, earlier = open_locked(leaked, owner_key(0))
        locked, lock = _locked_in(folder, name, 0, PLANS[name].lock, (earlier,))
        test = all_tested(name)
        keyed = ImageData(as_issued(earlier, test.images), test.labels)
        opened = {"leaked key, model before": accuracy(before, keyed)}
        return _measured(folder, name, 0, locked, lock, (earlier,)) | opened

    return cell(f"relocked-{name}", measure)


def refined_again(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The same for an owner's locked model after it was refined again, with the keys that it had."""
    folder = _folder(name, seed, **changes, again=1)

    def made(checkpoint: Path) -> tuple[nn.Module, Lock]:
        locked, lock = locked_host(name, seed, **changes)
        refined = refine_lock(locked, host(name, seed), task(name).owner, lock, seed=seed, checkpoint=checkpoint)
        return refined, lock

    def measure() -> dict[str, Any]:
        return _measured(folder, name, seed, *_kept(folder, name, seed, made))

    return cell(f"leaks-{folder.name}", measure)


def _measured(
    folder: Path, name: str, seed: int, locked: nn.Module, lock: Lock, others: tuple[Lock, ...] = ()
) -> dict[str, Any]:
    test = all_tested(name)
    table = check_lock(classifier(locked, task(name)), lock, test, other=others)
    return {
        "seed": seed,
        "unlocked_accuracy": accuracy(host(name, seed), test),
        "table": {row.inputs: row.recovered for row in table.rows},
        "chance": table.chance,
        "worst": table.worst,
        "tight": table.tight,
        "images": table.images,
        "draws": table.draws,
        "wrong_keys": table.wrong_keys,
        "psnr": table.psnr,
        "worst_psnr": table.worst_psnr,
        "ssim": table.ssim,
        "jpeg": through_jpeg(locked, lock, test),
        "grid": lock.facts.settings.grid or 0,
        "marks": bool(lock.facts.settings.grid),
        "traced": traced(lock, test.images),
        "network": f"{PLANS[name].architecture} {PLANS[name].width}",
        "rivals": RIVALS,
        "same_class_refused": True,
        "steps": lock.facts.settings.steps + lock.facts.settings.refining_steps,
        **json.loads((folder / "cost.json").read_text()),
    }


def strangers(name: str, kept: str, models: Path, keys: Path, keying: Keying = as_issued) -> dict[str, dict[str, Any]]:
    """What the key networks of the owners whose locks are in one folder open of the other owners' models in another."""
    return {
        f"model of {model}, key of {key}": cell(
            f"{kept}-{name}-{model}-{key}-{_digest(folder)}-{_digest(stranger)}",
            partial(opened_by, name, (folder, owner_key(model)), (stranger, owner_key(key)), keying),
        )
        for model, folder in _locks(models, name).items()
        for key, stranger in _locks(keys, name).items()
        if model != key
    }


def _locks(folder: Path, name: str, **changes: Any) -> dict[int, Path]:
    """The locks of a task in a folder, by the plan's settings or changed ones, by owner."""
    named = {seed: folder / _folder(name, seed, **changes).name for seed in SEEDS}
    return {seed: path for seed, path in named.items() if (path / "key-network.sealed").exists()}


def _digest(folder: Path) -> str:
    """Names a lock by its key network: owners lock anew, by other recipes."""
    return sha256_file(folder / "key-network.sealed")[:8]


def opened_by(name: str, owner: tuple[Path, Key], stranger: tuple[Path, Key], keying: Keying) -> dict[str, Any]:
    """What the owner's locked model answers to test images that a stranger's lock keyed; each a folder and its key."""
    test, module = task(name).test, open_locked(*owner)[0]
    scores = classifier(module, task(name)).log_probs(keying(Lock.open(*stranger), test.images))
    found = {reader: recovered(READERS[reader], scores, test.labels) for reader in HELD}
    return {"recovered": found, "worst": max(abs(value - chance(test.labels)) for value in found.values())}


def voted_by(name: str, **changes: Any) -> list[dict[str, Any]]:
    """What votes over noise read out of each lock of the task that is at hand, Fashion-MNIST's shipped one too."""
    found = _locks(cell.folder, name, **changes)
    if name == "fashion-mnist" and not changes:
        found[0] = SHIPPED

    def measure(seed: int, folder: Path) -> dict[str, Any]:
        mined = (folder / "cost.json").exists() and json.loads((folder / "cost.json").read_text()).get("mined", False)
        return {"seed": seed, "mined": mined} | voted(task(name), *open_locked(folder, owner_key(seed)))

    return [
        cell(f"votes-{name}-{seed}-{len(NOISES)}-{_digest(folder)}", partial(measure, seed, folder))
        for seed, folder in sorted(found.items())
    ]


def shipped() -> tuple[nn.Module, Lock]:
    """The lock that comes with the package."""
    return open_locked(SHIPPED, owner_key(0))


def mislabelled(name: str, mislabel: str) -> dict[str, Any]:
    """The leak table of a model locked with the same key network, but another answer to the unauthorised."""

    def measure() -> dict[str, Any]:
        locked, lock = shipped()
        if mislabel != "uniform":
            settings = _shorter(name, mislabel=mislabel)
            locked, _ = train_lock(host(name, 0), task(name).owner, owner_key(0), settings=settings, lock=lock)
        table = check_lock(classifier(locked, task(name)), lock, task(name).test)
        return {"table": {row.inputs: row.recovered for row in table.rows}, "worst": table.worst, "tight": table.tight}

    return cell(f"mislabel-{name}-{mislabel}", measure)


def attacked(name: str) -> dict[str, Any]:
    """Every attack on one lock, each with what it took."""
    images, built = task(name), architecture(name)
    attacks = {**model_attacks(images, shipped, built, 0), **key_attacks(images, shipped, 0)}
    return {label: cell(f"attack-{name}-{label}", partial(_accuracy, attack)) for label, attack in attacks.items()}


def combined(name: str) -> dict[str, Any]:
    """Locked, marked, sealed and scanned; and marked before it is locked."""

    def last() -> dict[str, Any]:
        return together(task(name), host(name, 0), *shipped(), owner_key(0))

    def first() -> dict[str, Any]:
        return marked_first(task(name), host(name, 0), shipped()[1], owner_key(0), _shorter(name))

    return {"locked first": cell(f"together-{name}", last), "marked first": cell(f"marked-first-{name}", first)}


def _shorter(name: str, **changes: Any) -> LockSettings:
    """For a locked model alone, beside a key network that is finished."""
    return PLANS[name].lock.model_copy(update={"steps": 800, "refining_steps": 0, **changes})


def _accuracy(attack: Attack) -> dict[str, Any]:
    return {"accuracy": round(attack(), 4)}


def _folder(name: str, seed: int, **changes: Any) -> Path:
    return cell.folder / "-".join([name, str(seed), *(f"{key}={value}" for key, value in changes.items())])


def _said(name: str) -> str:
    """What is said of locks of this task that refuse louder noise."""
    return f"taught by the unlocked model; {SAID}" if "distillation" in LOUDER[name] else SAID


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tasks", default=",".join(PLANS), help="of which tasks leaks are measured")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="whose locks' leaks are measured")
    parser.add_argument("--before", type=Path, help="folder of locks from before there were rivals and decoys")
    parser.add_argument("--others", type=Path, help="folder of other owners' locks, of whatever models: what they open")
    parser.add_argument("--cached", action="store_true", help="write what is in the cache, and measure nothing")
    options = parser.parse_args()
    if unknown := set(options.tasks.split(",")) - set(PLANS):
        parser.error(f"--tasks: no such task: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    cell.cached_only, Run.cifar10 = options.cached, options.cifar10
    parts, seeds = options.parts.split(","), [int(seed) for seed in options.seeds.split(",")]
    figures: dict[str, Any] = {"cost": cell("cost", keying_cost) if "cost" in parts else {}}
    figures |= {name: {} for name in PLANS}
    for name in options.tasks.split(","):
        if name == "cifar10" and not options.cifar10:
            continue
        found = figures[name]
        if "leaks" in parts:
            found["leaks"] = [leaks(name, seed) for seed in seeds]
            found["strangers"] = strangers(name, "stranger", cell.folder, cell.folder)
            found["strangers rekeyed"] = strangers(name, "rekeyed", cell.folder, cell.folder, as_rivals)
        if "louder" in parts:
            found["louder"] = [
                row | {"but": _said(name)} for seed in seeds if (row := leaks(name, seed, **LOUDER[name]))
            ]
        if "again" in parts:
            found["again"] = [
                row | {"but": _said(name)} for seed in seeds if (row := refined_again(name, seed, **LOUDER[name]))
            ]
        if "votes" in parts:
            found["votes"] = voted_by(name)
            found["votes, louder"] = voted_by(name, **LOUDER[name])
            found["votes, again"] = voted_by(name, **LOUDER[name], again=1)
    if options.before:
        figures["fashion-mnist"]["strangers before"] = strangers(
            "fashion-mnist", "stranger-before", options.before, options.before
        )
    if options.others:
        figures["fashion-mnist"]["strangers elsewhere"] = strangers(
            "fashion-mnist", f"stranger-{options.others.name}", cell.folder, options.others
        )
    if "distilled" in parts:  # one owner: it keeps more and leaks more
        figures["faces"]["distilled"] = leaks("faces", 1, distillation=0.5)
    closely = figures["fashion-mnist"]
    if "relocked" in parts:
        closely["relocked"] = relocked("fashion-mnist", SHIPPED)
    if "grid" in parts:
        closely["grid"] = [leaks("fashion-mnist", seed, **ON_GRID) for seed in seeds]
    if "atoms" in parts:
        row = leaks("fashion-mnist", 0, **ATOMS)
        closely["atoms"] = [row | {"but": "residual of atoms"}] if row else []
    if "beyond" in parts:
        closely["beyond"] = cell("beyond-fashion-mnist", lambda: beyond(task("fashion-mnist"), *shipped()))
    if "mislabel" in parts:
        closely["mislabel"] = {kind: mislabelled("fashion-mnist", kind) for kind in ("uniform", "shift", "random")}
    if "attacks" in parts:
        closely["attacks"] = attacked("fashion-mnist")
    if "together" in parts:
        closely["together"] = combined("fashion-mnist")
    print(record("lock", over(known("lock"), figures)))


if __name__ == "__main__":
    main()
