"""The tables of docs/mark.md, from results/mark.json."""

import math
import statistics
from typing import Any

from benchmarks.markdown import load, table

Rows = list[dict[str, Any]]
CLAIM = 2.0**-64
#: How suspects are read, and what their figures begin with.
READINGS = {"scores": "", "classes": "class_"}
PENDING = "Not measured yet: `python -m benchmarks.mark`."


def _part(task: str, part: str) -> dict[str, Any]:
    """The figures of one part of one task; empty where it was not measured."""
    found: dict[str, Any] = load("mark").get(task, {}).get(part, {})
    return found


def _mean(rows: Rows, key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def _spread(rows: Rows, key: str, scale: float = 1.0, digits: int = 2) -> str:
    """Mean over the seeds, with the smallest and largest."""
    values = [scale * float(row[key]) for row in rows]
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def fidelity(task: str, part: str = "fidelity") -> str:
    """How faithful the paper's "modes" are, or the schemes by their defaults."""
    figures = _part(task, part)
    if not figures:
        return PENDING
    head = [
        "mode (hosts)",
        "clean accuracy less host's, points",
        "triggers",
        "PFL",
        "SPL",
        "TWL",
        "prototype shift",
        "agreement: clean",
        "corrupted",
        "foreign",
    ]
    rows = []
    for name, seeds in figures.items():
        lost = [{"lost": 100 * (row["clean_accuracy"] - row["host_accuracy"])} for row in seeds]
        rows.append(
            [
                f"{name} ({len(seeds)})",
                _spread(lost, "lost", digits=2),
                f"{_mean(seeds, 'trigger_accuracy'):.1%}",
                _spread(seeds, "pfl", digits=2),
                f"{_mean(seeds, 'spl'):.4f}",
                f"{_mean(seeds, 'twl'):.1f}",
                f"{_mean(seeds, 'prototype_shift'):.2f}",
                f"{_mean(seeds, 'agreement_clean'):.3f}",
                f"{_mean(seeds, 'agreement_corrupted'):.3f}",
                f"{_mean(seeds, 'agreement_out_of_distribution'):.3f}",
            ]
        )
    return table(head, rows)


def robustness(task: str, read: str = "scores") -> str:
    """What is left of each mark after each tampering: worst p-value over the seeds, hits and task accuracy."""
    figures = _part(task, "robustness")
    if not figures:
        return PENDING
    names = max((list(row) for seeds in figures.values() for row in seeds), key=len)
    rows = []
    for name in names:
        cells = [name]
        for seeds in figures.values():
            found = [row[name] for row in seeds if name in row]
            if not found:  # extraction, which is tried on some
                cells.append("")
                continue
            worst = max(entry[f"{READINGS[read]}p_value"] for entry in found)
            hits, accuracy = _mean(found, f"{READINGS[read]}hits"), 100 * _mean(found, "accuracy")
            cells.append(f"{_power(worst)}; {hits:.0f} hits; {accuracy:.1f} %")
        rows.append(cells)
    return table(
        ["tampering", *(f"{name} ({len(seeds)} host{'s' * (len(seeds) > 1)})" for name, seeds in figures.items())], rows
    )


def thieves() -> str:
    """How far thieves come apart who do the same with other random numbers."""
    rows = []
    for task, found in load("mark").items():
        for name, seeds in (found.get("thieves", {}) if isinstance(found, dict) else {}).items():
            for kind, prefix in READINGS.items():
                hits = sorted(value for row in seeds for value in row[f"{prefix}hits"])
                p_values = [value for row in seeds for value in row[f"{prefix}p_value"]]
                rows.append(
                    [
                        task,
                        name,
                        f"{len(seeds)} x {len(seeds[0]['hits'])}",
                        kind,
                        f"{statistics.median(hits):.0f} ({hits[0]} to {hits[-1]})",
                        *(f"{sum(p <= bar for p in p_values)} of {len(p_values)}" for bar in (1e-6, 1e-12, CLAIM)),
                    ]
                )
    head = ["task", "scheme", "hosts x thieves", "read", "hits of 100", "p <= 1e-6", "p <= 1e-12", "p <= 2^-64"]
    return table(head, rows) if rows else PENDING


def extraction() -> str:
    """Hits of students by how many images like triggers their thief asks about."""
    rows = []
    for task, found in load("mark").items():
        if isinstance(found, dict) and found.get("extraction"):
            rows += [
                [
                    task,
                    count,
                    *(f"{row[f'{kind}hits']}; {_power(row[f'{kind}p_value'])}" for kind in READINGS.values()),
                    f"{100 * row['accuracy']:.1f} %",
                ]
                for count, row in found["extraction"].items()
            ]
    head = ["task", "noise among the thief's queries", "hits of 100, by scores", "by classes", "student's accuracy"]
    return PENDING if not rows else table(head, rows)


def scanned() -> str:
    """What a scan says of marked models."""
    rows = [
        [
            name,
            ", ".join(f"{row['p_value']:.3f}" for row in seeds),
            f"{sum(row['flagged'] for row in seeds)} of {len(seeds)}",
        ]
        for name, seeds in _part("fashion-mnist", "scan").items()
    ]
    return PENDING if not rows else table(["model", "p of `scan --task fashion-mnist`", "flagged"], rows)


def honesty() -> str:
    """Fresh keys against models that were made without them."""
    rows = []
    for task, found in load("mark").items():
        if not isinstance(found, dict) or not found.get("honesty"):
            continue
        for kind in READINGS:
            figures = found["honesty"][kind]
            claims = figures["claims_at_1e-6"]
            rows.append(
                [
                    task,
                    f"{found['honesty']['models']} x {found['honesty']['keys']}",
                    kind,
                    f"{claims['events']} (at most {claims['high']:.2%} at 95 %)",
                    f"{figures['smallest_p']:.2g}",
                    f"{figures['share_at_0.05']:.3f}",
                    f"{figures['uniform_ks_p']:.2f}",
                ]
            )
    head = ["task", "models x fresh keys", "read", "claims at 1e-6", "smallest p", "p <= 0.05", "uniformity (KS) p"]
    return PENDING if not rows else table(head, rows)


def cost() -> str:
    """Embedding over plain fine-tuning."""
    found = load("mark")
    tasks = [task for task, part in found.items() if isinstance(part, dict) and part.get("cost")]
    if not tasks:
        return PENDING
    names = list(found[tasks[0]]["cost"])
    rows = [[name, *(f"{found[task]['cost'][name]['median']:.2f}x" for task in tasks)] for name in names]
    return table(["scheme", *tasks], rows)


def _power(p_value: float) -> str:
    """A p-value with one digit, rounded up, or with two where it is not small."""
    if p_value > 1e-3:
        return f"p = {p_value:.2g}"
    if p_value < 1e-300:
        return "p < 1e-300"
    exponent = math.floor(math.log10(p_value))
    digit = math.ceil(p_value / 10.0**exponent - 1e-9)
    return f"p = {digit}e{exponent}" if digit < 10 else f"p = 1e{exponent + 1}"
