"""Whether seals stay silent on the untouched model, computed in other ways than when it was sealed.

    python -m benchmarks.seal_silence HOST        (used by itself, with other instruction sets in the environment)

A check asks the whole seal in a fresh order; each pair of questions travels in a batch filled up with other triggers.
"""

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.results import interval
from benchmarks.seal_hosts import FOLDER, KEY, available, open_host, slug
from intaglio.classifiers import Access, CallableClassifier, TorchClassifier, export_onnx
from intaglio.evidence.statistics import proportion
from intaglio.files import write_json
from intaglio.seal import Seal, check_seal
from intaglio.seeds import torch_generator

BATCHES = (2, 7, 16, 64)
THREADS = (1, 2)
REPEATS = 2
#: Instruction sets of other processors, as far as the libraries let them be chosen.
PROCESSORS: dict[str, dict[str, str]] = {
    "SSE4.1 (oneDNN)": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX (oneDNN), AVX2 (MKL)": {"ONEDNN_MAX_CPU_ISA": "AVX", "MKL_CBWR": "AVX2"},
    "AVX2 (oneDNN, torch)": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "no vectors (torch), compatible (MKL)": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
}
Scores = Callable[[Tensor], Tensor]
Figures = dict[str, Any]


def runtimes(name: str) -> Iterator[tuple[str, Scores, Callable[[], AbstractContextManager[Any]]]]:
    """Ways of computing a host's scores: name, function, and the context that it runs in."""
    classifier = open_host(name)
    module = classifier.module
    yield "as opened", classifier.scores, nullcontext
    yield "plain memory order", module, nullcontext
    yield (
        "channels last",
        lambda images: module(images.contiguous(memory_format=torch.channels_last)),
        nullcontext,
    )
    yield "oneDNN off", module, lambda: torch.backends.mkldnn.flags(enabled=False)
    double = copy.deepcopy(module).double()
    yield "float64", lambda images: double(images.double()), nullcontext
    yield "decoded by a product", lambda images: module((images * 255).round() * torch.tensor(1 / 255)), nullcontext
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        yield f"ONNX Runtime, {level}", onnx_scores(name, classifier, level), nullcontext
    if "PLAIN" not in os.environ:
        yield "torch.compile", cast(Scores, torch.compile(module, dynamic=False)), nullcontext


def onnx_scores(name: str, classifier: TorchClassifier, level: str) -> Scores:
    """The host in ONNX Runtime at a level of graph optimisation, with as many threads as torch has at the time."""
    path = FOLDER / "onnx" / f"{slug(name)}.onnx"  # elsewhere: beside the host it would replace its side-car
    if not path.exists():
        export_onnx(classifier.module, path, input_shape=classifier.input_shape)
    sessions: dict[int, Any] = {}

    def scores(images: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        if threads not in sessions:
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = threads
            settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            sessions[threads] = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        (answer,) = sessions[threads].run(None, {"images": images.numpy()})
        return torch.from_numpy(np.asarray(answer))

    return scores


def suspect(host: str, seal: Seal, scores: Scores, batch: int, repeat: int) -> CallableClassifier:
    """A model that answers with labels, computed in batches filled up with other triggers of the seal."""
    record = seal.record
    fillers = record.images(list(range(len(record.triggers))))
    generator = torch_generator(repeat, "benchmarks", host)

    def answer(images: Tensor) -> Tensor:
        places = torch.randperm(len(fillers), generator=generator)[: max(0, batch - len(images))]
        with torch.inference_mode():
            return scores(torch.cat([images, fillers[places]]))[: len(images)].argmax(dim=1)

    return CallableClassifier(
        answer, input_shape=tuple(record.input_shape), num_classes=record.num_classes, access=Access.LABELS
    )


def checked(host: str, seal: Seal) -> list[Figures]:
    """Checks of one host in every runtime, thread count and batch size: alarms and differing answers."""
    found: list[Figures] = []
    for runtime, scores, context in runtimes(host):
        for threads in THREADS:
            torch.set_num_threads(threads)
            for batch in BATCHES if runtime != "torch.compile" else BATCHES[-1:]:
                with warnings.catch_warnings(), context():
                    warnings.simplefilter("ignore")
                    checks = [
                        check_seal(suspect(host, seal, scores, batch, repeat), seal, KEY) for repeat in range(REPEATS)
                    ]
                found.append(
                    {
                        "runtime": runtime,
                        "threads": threads,
                        "batch": batch,
                        "checks": len(checks),
                        "alarms": len([check for check in checks if not check.intact]),
                        "differing": sum(check.mismatches for check in checks),
                        "answers": sum(check.queries for check in checks),
                    }
                )
        print(f"{host}: {runtime}: {sum(entry['alarms'] for entry in found)} alarms", flush=True)
    torch.set_num_threads(1)
    return found


def elsewhere(host: str, path: Path, processor: str) -> list[Figures]:
    """The same in a process of its own, with another processor's instruction set."""
    environment = os.environ | PROCESSORS[processor] | {"PLAIN": "1"}
    command = [sys.executable, "-m", "benchmarks.seal_silence", host, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[Figures] = json.loads(done.stdout.splitlines()[-1])
    return [{**entry, "processor": processor} for entry in found]


def silence(open_seal: Callable[[str, str], Seal]) -> Figures:
    """All checks of all hosts: alarms with their Clopper-Pearson interval, by runtime and by processor."""
    entries: list[Figures] = []
    for host in available():
        folder = FOLDER / "silence" / slug(host)
        seal = open_seal(host, "boundary")
        for processor in ("this one", *PROCESSORS):
            cached = folder / f"{slug(processor)}.json"
            if not cached.exists():
                if processor == "this one":
                    found = [{**entry, "processor": processor} for entry in checked(host, seal)]
                else:
                    seal.write(folder / "seal.json")
                    found = elsewhere(host, folder / "seal.json", processor)
                write_json(cached, found)
            entries += json.loads(cached.read_text())

    figures: Figures = {"all": total(entries)}
    for axis in ("runtime", "processor", "threads", "batch"):
        values = list(dict.fromkeys(entry[axis] for entry in entries))
        figures[axis] = {str(value): total([entry for entry in entries if entry[axis] == value]) for value in values}
    return figures


def total(entries: list[Figures]) -> Figures:
    """Sums, and rates with their Clopper-Pearson intervals."""
    alarms, checks, answers, differing = (
        sum(int(entry[name]) for entry in entries) for name in ("alarms", "checks", "answers", "differing")
    )
    rate = proportion(differing, answers)
    return {
        "checks": checks,
        "alarms": alarms,
        "alarm rate": interval(proportion(alarms, checks)),
        "answers": answers,
        "differing": differing,
        "differing rate": {key: float(f"{part:.2g}") for key, part in rate._asdict().items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    host, path = sys.argv[1:]
    print(json.dumps(checked(host, Seal.read(path))))


if __name__ == "__main__":
    main()
