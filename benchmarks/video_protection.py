"""Mark, seal and lock on a small video network: the bars of images, on clips.

    python -m benchmarks.video_protection [--clips FOLDER] [--parts mark,seal,lock] [--cached]

Writes results/video_protection.json, over what it holds. Every cell is kept in the cache (INTAGLIO_CACHE) as soon as
it is measured, so an interrupted run goes on; with --cached nothing is measured any more. The host, the marks and the
seals take some minutes of one core each; the lock, more than an hour.
"""

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.cells import Cells
from benchmarks.lock_measures import traced
from benchmarks.results import known, over, record
from benchmarks.video_sets import camera_motion
from intaglio.classifiers import Sidecar, TorchClassifier
from intaglio.data import ImageData, classes_in_turn
from intaglio.evidence.key import Key
from intaglio.lock import LockSettings, check_lock, train_lock
from intaglio.lock.sealed_model import write_locked
from intaglio.mark import draw_triggers, mark, verify_mark
from intaglio.mark.fidelity_report import fidelity_report
from intaglio.networks import Architecture
from intaglio.seal import check_seal, make_seal, sealed_answers
from intaglio.tampering import FineTune, Noise, Prune, Quantise, Tampering
from intaglio.training import TrainingSettings, train

PARTS = ("mark", "seal", "lock")
SEED = 0
#: The owner's key is fixed, so that a run can be repeated; nobody's model is protected with it.
KEY = Key(bytes(range(32)))
STRANGER = Key(bytes(32))
NETWORK, WIDTH = "r3d18", 8
#: Locks are tried on a network that strides at once, and on one that keeps the resolution at first.
LOCKED_NETWORKS = (NETWORK, "rmc3_10")
#: Of 2,100 training clips; the thief has the others.
OWNED = 1400
HOST = TrainingSettings(epochs=14, batch_size=32, learning_rate=3e-3)
#: Marks: name -> options of `mark`; measured with the settings that were the defaults then.
_THEN: dict[str, Any] = {"epochs": 6, "temperature": 1.0, "pfl_weight": 60.0}
MARKS: dict[str, dict[str, Any]] = {
    "fixll-pfl": _THEN,
    "fixll-pfl, 30 epochs": _THEN | {"epochs": 30},
    "ftal": _THEN | {"mode": "ftal"},
}
SEALS = {"boundary": 16, "ftg": 8, "random": 16}
#: A lock takes more clips than that: what is to be refused is as varied as they are.
LOCKED, TESTED = 5600, 2100
LOCK = LockSettings(batch_size=16)
SIGMA = 1e-5
Figures = dict[str, Any]


class Clips(NamedTuple):
    """Who has what; the test clips are of footage that nobody learned from."""

    owner: ImageData
    thief: ImageData
    test: ImageData


class Run:
    """What the command line said."""

    footage: Path | None = None


cell = Cells("video-protection")


@cache
def clips() -> Clips:
    """Camera motion: seven classes, 8 frames of 32 x 32."""
    training, test = (camera_motion(split, clips=Run.footage) for split in ("train", "test"))
    order = classes_in_turn(training.labels)
    return Clips(training.take(order[:OWNED]), training.take(order[OWNED:]), test)


def architecture(name: str = NETWORK) -> Architecture:
    """A residual network over time and place, narrow."""
    owner = clips().owner
    return Architecture(name=name, input_shape=owner.input_shape, num_classes=owner.num_classes, width=WIDTH)


@cache
def lock_clips(split: str) -> ImageData:
    """More of the same clips; those that `clips` divides come first."""
    return camera_motion(split, clips=Run.footage, count=LOCKED if split == "train" else TESTED)


def host(name: str = "host", data: ImageData | None = None, network: str = NETWORK) -> nn.Module:
    """The unprotected model of that name, trained now unless it was before; on the owner's clips, if not on others."""
    path = cell.folder / f"{name}.safetensors"
    torch.manual_seed(SEED)
    module = architecture(network).build()
    if path.exists():
        module.load_state_dict(load_file(path))
    else:
        train(module, data or clips().owner, HOST, seed=SEED)
        write_locked(module, path, Sidecar(architecture=architecture(network)))
    return module.eval()


def classifier(module: nn.Module) -> TorchClassifier:
    """The module as a classifier of clips."""
    owner = clips().owner
    return TorchClassifier(module, input_shape=owner.input_shape, num_classes=owner.num_classes)


def accuracy(module: nn.Module, test: ImageData | None = None) -> float:
    """On the test clips, or others."""
    test = test or clips().test
    return round(float((classifier(module).predict(test.images) == test.labels).double().mean()), 4)


def marked(label: str) -> Figures:
    """What a mark costs, and what is left of it after each tampering."""

    def measure() -> Figures:
        owned, started = host(), time.process_time()
        module, commitment = mark(owned, clips().owner, KEY, batches=1, seed=SEED, **MARKS[label])
        seconds = time.process_time() - started
        plan = commitment.commitment
        report = fidelity_report(
            owned, module, clips().test, draw_triggers(KEY, plan), scheme=plan.scheme, mode=plan.mode
        ).to_dict()
        suspects = {"none": module, "the host, not marked": owned}
        suspects |= {name: change.apply(module, clips().thief, seed=SEED) for name, change in mark_tamperings().items()}
        claims = {name: verify_mark(classifier(suspect), commitment, KEY) for name, suspect in suspects.items()}
        return {
            "fidelity": {name: value for name, value in report.items() if isinstance(value, int | float)},
            "cpu_seconds": round(seconds, 1),
            "claims": {
                name: {"hits": claim.hits, "p_value": claim.p_value, "accuracy": accuracy(suspects[name])}
                for name, claim in claims.items()
            },
        }

    return cell(f"mark {label}", measure)


def mark_tamperings() -> dict[str, Tampering]:
    """What a thief with other clips of the task does."""
    return {
        "fine-tune all, 1e-4": FineTune(epochs=2, learning_rate=1e-4, batch_size=32),
        "prune 30 %": Prune(share=0.3),
        "int8": Quantise(bits=8),
        "fp16": Quantise(number="fp16"),
    }


def seal_tamperings() -> dict[str, Tampering]:
    """The smallest changes of the suite."""
    return {
        "1 SGD step, lr 1e-5": FineTune(
            steps=1, optimizer="sgd", learning_rate=1e-5, batch_size=32, freeze_batchnorm=True
        ),
        f"noise, sigma {SIGMA:g}": Noise(sigma=SIGMA),
        "int16": Quantise(bits=16),
        "fp16": Quantise(number="fp16"),
        "prune 1 %": Prune(share=0.01),
    }


def sealed(method: str) -> Figures:
    """Whether a seal notices, how long it takes, and whether it is silent on the untouched model."""

    def measure() -> Figures:
        owned, started = host(), time.process_time()
        data = None if method == "boundary" else clips().test
        seal = make_seal(classifier(owned), KEY, method=method, data=data, pairs=SEALS[method])
        seconds, noise = time.process_time() - started, seal.record.noise
        images, answers = sealed_answers(seal, KEY)
        noticed = {}
        for name, change in seal_tamperings().items():
            module = change.apply(owned, clips().thief, seed=SEED)
            differ = classifier(module).predict(images.flatten(0, 1)).view_as(answers) != answers
            check = check_seal(classifier(module), seal, KEY, seed=SEED)
            noticed[name] = {
                "triggers": float(differ.double().mean()),
                "pairs": float(differ.any(dim=1).double().mean()),
                "intact": check.intact,
                "queries": check.queries,
            }
        silent = [check_seal(asked, seal, KEY, seed=SEED) for asked in _executions(owned)]
        return {
            "pairs": seal.record.pairs,
            "cpu_seconds": round(seconds, 1),
            "eta": noise.eta,
            "flip_bound": noise.flip_bound,
            "margins": [noise.smallest_margin, noise.largest_margin],
            "executions": len(noise.executions),
            "noticed": noticed,
            "silent": {
                "checks": len(silent),
                "questions": sum(check.queries for check in silent),
                "mismatches": sum(check.mismatches for check in silent),
                "tampered": sum(not check.intact for check in silent),
            },
        }

    return cell(f"seal {method}", measure)


def _executions(module: nn.Module) -> list[TorchClassifier]:
    """The untouched model with other batch sizes, on the second thread too."""
    owner = clips().owner
    return [
        _Threaded(module, threads, input_shape=owner.input_shape, num_classes=owner.num_classes, batch_size=batch)
        for threads in (1, 2)
        for batch in (1, 2, 5, 64)
    ]


class _Threaded(TorchClassifier):
    """A classifier that computes with so many threads."""

    def __init__(self, module: nn.Module, threads: int, **options: Any) -> None:
        self._threads = threads
        super().__init__(module, **options)

    def _answer(self, batch: torch.Tensor) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return super()._answer(batch)
        finally:
            torch.set_num_threads(before)


def locked(network: str) -> Figures:
    """The leak table of a lock on clips, and how often users are named from one."""

    def measure() -> Figures:
        data, test = lock_clips("train"), lock_clips("test")
        owned = host(f"host-lock-{network}", data, network)
        started, checkpoint = time.process_time(), cell.folder / f"lock-{network}.checkpoint"
        module, lock = train_lock(owned, data, KEY, settings=LOCK, seed=SEED, checkpoint=checkpoint)
        seconds = time.process_time() - started
        for user in range(64):
            lock.issue(f"user {user}")
        table = check_lock(classifier(module), lock, test)
        checkpoint.unlink(missing_ok=True)
        return {
            "clips": [len(data), len(test)],
            "unlocked_accuracy": accuracy(owned, test),
            "table": {row.inputs: row.recovered for row in table.rows},
            "chance": table.chance,
            "worst": table.worst,
            "tight": table.tight,
            "psnr": table.psnr,
            "worst_psnr": table.worst_psnr,
            "ssim": table.ssim,
            "traced": traced(lock, test.images),
            "steps": LOCK.steps + LOCK.refining_steps,
            "cpu_seconds": round(seconds),
        }

    return cell(f"lock-{network}", measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the clips of people; without it, three sources only")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cached", action="store_true", help="write what is in the cache, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell.cached_only, Run.footage = options.cached, options.clips
    parts = options.parts.split(",")
    figures: Figures = {}
    if "mark" in parts or "seal" in parts:
        figures["host"] = cell("host", lambda: {"accuracy": accuracy(host()), "clips": len(clips().owner)})
    if "mark" in parts:
        figures["mark"] = {label: marked(label) for label in MARKS}
    if "seal" in parts:
        figures["seal"] = {method: sealed(method) for method in SEALS}
    figures["lock"] = {network: locked(network) for network in LOCKED_NETWORKS} if "lock" in parts else {}
    print(record("video_protection", over(known("video_protection"), figures)))


if __name__ == "__main__":
    main()
