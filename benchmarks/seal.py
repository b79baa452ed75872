"""Seals: what each method notices of each tampering, when it stays silent, and how long sealing takes.

    python -m benchmarks.seal [--cifar10 PATH] [--part tampering|curves|silence|costs]...

Resumable: every cell is cached outside the repository (INTAGLIO_CACHE). Writes results/seal.json. The trainings and the
sealings take some hours on 2 cores.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import interval, record
from benchmarks.seal_costs import costs
from benchmarks.seal_hosts import FOLDER, HOSTS, KEY, Sources, available, open_host, slug, split, test_accuracy
from benchmarks.seal_silence import silence
from benchmarks.seal_suite import SIGMAS, bit_flips, repeats, rows
from intaglio.classifiers import TorchClassifier
from intaglio.errors import ClassifierError
from intaglio.evidence.statistics import proportion
from intaglio.files import write_json
from intaglio.seal import METHODS, Seal, make_seal, sealed_answers
from intaglio.tampering import Noise, Tampering

SEEDS = 5
CURVE_SEEDS = 10
FLIPS = 20
BUDGETS = (4, 16, 100)
#: Methods that start from the owner's images, as their authors do.
FROM_IMAGES = ("ftg", "sensitive", "random")
Figures = dict[str, Any]
#: Method -> triggers `[P, 2, ...]` and their answers `[P, 2]`.
Asked = dict[str, tuple[Tensor, Tensor]]


def open_seal(host: str, method: str) -> Seal:
    """The cached seal of a host, made now if need be."""
    path = FOLDER / "seals" / f"{slug(host)}-{method}.json"
    if not path.exists():
        data = split(HOSTS[host].task, "test") if method in FROM_IMAGES else None
        make_seal(open_host(host), KEY, method=method, data=data).write(path)
    return Seal.read(path)


def questions(host: str) -> Asked:
    """Triggers `[P, 2, ...]` and answers `[P, 2]` of every method's seal."""
    return {method: sealed_answers(open_seal(host, method), KEY) for method in METHODS}


def differing(module: torch.nn.Module, asked: Asked) -> dict[str, list[int]]:
    """For every method: pairs, pairs with a differing answer, triggers with one."""
    found = {}
    for method, (images, answers) in asked.items():
        with torch.inference_mode():
            labels = module(images.flatten(0, 1)).argmax(dim=1).view_as(answers)
        wrong = labels != answers
        found[method] = [len(wrong), int(wrong.any(dim=1).sum()), int(wrong.sum())]
    return found


def cell(path: Path, compute: Callable[[], Figures]) -> Figures:
    """A cached cell."""
    if not path.exists():
        write_json(path, compute())
    content: Figures = json.loads(path.read_text())
    return content


def tampered(host: str, tampering: Tampering, seed: int, asked: Asked) -> Figures:
    """One host tampered with once: accuracy afterwards, and what each seal notices."""
    data = split(HOSTS[host].task, "tamper")
    try:
        module = tampering.apply(open_host(host).module, data, seed=seed)
    except ClassifierError as error:  # a learning rate of 1e-2 that makes the weights infinite: no model is left
        return {"diverged": str(error)}
    after = TorchClassifier(module, input_shape=data.input_shape, num_classes=10)
    return {"accuracy": test_accuracy(host, after), "methods": differing(module, asked)}


def tampering_cells(host: str) -> dict[str, list[Figures]]:
    """All rows of one host."""
    asked = questions(host)
    cells: dict[str, list[Figures]] = {}
    for row, tampering in rows(host, open_host(host)).items():
        for seed in range(repeats(row, SEEDS)):
            path = FOLDER / "cells" / slug(host) / f"{slug(row)}-{seed}.json"
            compute = partial(tampered, host, tampering, seed, asked)
            cells.setdefault(row, []).append(cell(path, compute))
        print(f"{host}: {row}", flush=True)
    return cells


def detection(pairs: int, flipped: int, queries: int) -> float:
    """P(one of `queries` / 2 pairs, drawn without replacement, differs)."""
    drawn = min(queries // 2, pairs)
    return 1 - comb(pairs - flipped, drawn) / comb(pairs, drawn)


def detections(counts: list[list[int]], queries: int) -> list[float]:
    """`detection` for each of several tampered models."""
    return [detection(pairs, flipped, queries) for pairs, flipped, _ in counts]


def expected_queries(pairs: int, flipped: int) -> float | None:
    """Mean questions until the end of the first differing pair; None where none differs."""
    return 2 * (pairs + 1) / (flipped + 1) if flipped else None


def summary(counts: list[list[int]]) -> Figures:
    """One method on one row, over seeds (and hosts): `counts` are pairs, differing pairs, differing triggers."""
    expected = [expected_queries(pairs, flipped) for pairs, flipped, _ in counts]
    noticed = [value for value in expected if value is not None]
    return {
        "trigger": round(float(np.mean([triggers / (2 * pairs) for pairs, _, triggers in counts])), 4),
        "pair": round(float(np.mean([flipped / pairs for pairs, flipped, _ in counts])), 4),
        "queries": round(float(np.mean(noticed)), 2) if len(noticed) == len(expected) else None,
        "never": len(expected) - len(noticed),
        **{
            f"at {budget}": round(
                float(np.mean([detection(pairs, flipped, budget) for pairs, flipped, _ in counts])), 5
            )
            for budget in BUDGETS
        },
        "worst at 4": round(min(detection(pairs, flipped, 4) for pairs, flipped, _ in counts), 5),
    }


def tampering_figures() -> Figures:
    """Rows x methods, for each host and over all of them."""
    by_host = {host: tampering_cells(host) for host in available()}
    names = list(dict.fromkeys(row for cells in by_host.values() for row in cells))

    def table(hosts: list[str], row: str) -> Figures:
        tried = [entry for host in hosts for entry in by_host[host].get(row, [])]
        cells = [entry for entry in tried if "diverged" not in entry]
        if not cells:
            return {"runs": 0, "diverged": len(tried)}
        kept = {
            "runs": len(cells),
            "diverged": len(tried) - len(cells),
            "accuracy": round(float(np.mean([entry["accuracy"] for entry in cells])), 4),
        }
        return kept | {method: summary([entry["methods"][method] for entry in cells]) for method in METHODS}

    return {
        "hosts": {
            host: {
                "accuracy": round(test_accuracy(host, open_host(host)), 4),
                **{method: seal_facts(open_seal(host, method)) for method in METHODS},
            }
            for host in by_host
        },
        "all": {row: table([host for host in by_host if row in by_host[host]], row) for row in names},
        "by host": {host: {row: table([host], row) for row in cells} for host, cells in by_host.items()},
    }


def seal_facts(seal: Seal) -> Figures:
    """What a seal cost and holds."""
    noise = seal.record.noise
    return {
        "seconds": round(seal.record.seconds, 1),
        "pairs": seal.record.pairs,
        "bytes": len(seal.envelope.to_bytes()),
        **{name: float(f"{getattr(noise, name):.3g}") for name in ("eta", "rms", "smallest_margin", "largest_margin")},
        "flip_bound": float(f"{noise.flip_bound:.2g}"),
        "silence_bound": float(f"{noise.silence_bound:.2g}"),
    }


def repeated(module: torch.nn.Module, tampering: Tampering, count: int, asked: Asked) -> Figures:
    """The same tampering with several seeds."""
    return {"counts": [differing(tampering.apply(module, seed=seed), asked) for seed in range(count)]}


def curve_figures() -> Figures:
    """Noise by sigma, and single bits by layer and position: each method's pair rate and detection at 4 queries."""
    found: Figures = {"noise": {}, "bits": {}}
    for host in available():
        asked, module, folder = questions(host), open_host(host).module, FOLDER / "cells" / slug(host)
        noise = found["noise"].setdefault(host, {})
        for sigma in SIGMAS:
            compute = partial(repeated, module, Noise(sigma=sigma), CURVE_SEEDS, asked)
            noise[f"{sigma:g}"] = over_methods(cell(folder / f"curve-noise-{sigma:g}.json", compute)["counts"])
        bits = found["bits"].setdefault(host, {})
        for (place, position), flip in bit_flips(module).items():
            compute = partial(repeated, module, flip, FLIPS, asked)
            kept = cell(folder / f"curve-bit-{slug(place)}-{position}.json", compute)
            bits.setdefault(place, {})[str(position)] = over_methods(kept["counts"])
        print(f"{host}: curves", flush=True)
    return found


def over_methods(counts: list[dict[str, list[int]]]) -> Figures:
    """Pair rate, detection at 4 and with the whole seal, by method."""
    found = {}
    for method in METHODS:
        mine = [entry[method] for entry in counts]
        found[method] = {
            "pair": round(float(np.mean([flipped / pairs for pairs, flipped, _ in mine])), 4),
            "at 4": round(float(np.mean(detections(mine, 4))), 4),
            "ever": interval(proportion(sum(flipped > 0 for _, flipped, _ in mine), len(mine))),
        }
    return found


PARTS: dict[str, Callable[[], Figures]] = {
    "tampering": tampering_figures,
    "curves": curve_figures,
    "silence": lambda: silence(open_seal),
    "costs": costs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz (plain arrays, or JPEG bytes and offsets)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this; may be repeated")
    parser.add_argument("--host", action="append", choices=list(HOSTS), help="only this; may be repeated")
    options = parser.parse_args()
    Sources.cifar10 = options.cifar10
    Sources.hosts = options.host
    torch.set_num_threads(1)
    for part in options.part or PARTS:
        write_json(FOLDER / "figures" / f"{part}.json", PARTS[part]())
    done = {part: FOLDER / "figures" / f"{part}.json" for part in PARTS}
    print(record("seal", {part: json.loads(path.read_text()) for part, path in done.items() if path.exists()}))


if __name__ == "__main__":
    main()
