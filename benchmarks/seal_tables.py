"""The README's tables about seals, from results/seal.json; `benchmarks.tables` puts them in."""

import numpy as np

from benchmarks.markdown import load, table

BASELINES = ("variance", "ftg", "sensitive", "random")


def tampering() -> str:
    """Row by row over all hosts: what the default notices, and, at 4 questions, every baseline."""
    rows = []
    for name, row in load("seal")["tampering"]["all"].items():
        if not row["runs"]:
            continue
        own = row["boundary"]
        never = f" ({own['never']} never)" if own["never"] else ""
        rows.append(
            [
                name,
                f"{row['accuracy']:.1%}",
                f"{own['trigger']:.2f}",
                f"{own['pair']:.3f}",
                (f"{own['queries']:.1f}" if own["queries"] is not None else "-") + never,
                *(share(own[f"at {budget}"]) for budget in (4, 16, 100)),
                *(share(row[method]["at 4"]) for method in BASELINES),
            ]
        )
    head = ["tampering", "accuracy", "triggers that differ", "pairs", "questions", "at 4", "at 16", "at 100"]
    return table([*head, *(f"{method} at 4" for method in BASELINES)], rows)


def hosts() -> str:
    """What was sealed, and how."""
    rows = [
        [
            name,
            f"{facts['accuracy']:.1%}",
            f"{facts['boundary']['eta']:.1e}",
            f"{facts['boundary']['smallest_margin']:.1e} to {facts['boundary']['largest_margin']:.1e}",
            f"{facts['boundary']['flip_bound']:.0e}",
            *(f"{facts[method]['seconds']:.0f} s" for method in ("boundary", "variance", "ftg", "sensitive")),
        ]
        for name, facts in load("seal")["tampering"]["hosts"].items()
    ]
    head = ["model", "accuracy", "noise floor", "margins", "false alarms a question", "sealing", *BASELINES[:3]]
    return table(head, rows)


def noise() -> str:
    """Detection at 4 questions by the size of Gaussian noise on all weights, host by host."""
    curves = load("seal")["curves"]["noise"]
    sigmas = list(next(iter(curves.values())))
    rows = [[host, *(share(curve[sigma]["boundary"]["at 4"]) for sigma in sigmas)] for host, curve in curves.items()]
    best = [max(curve[sigma][other]["at 4"] for curve in curves.values() for other in BASELINES) for sigma in sigmas]
    return table(["sigma", *sigmas], [*rows, ["best baseline on any model", *map(share, best)]])


def bits() -> str:
    """Share of single flipped bits that a whole seal notices, by layer and position, over all hosts."""
    curves = load("seal")["curves"]["bits"]
    layers = list(next(iter(curves.values())))
    positions = list(next(iter(curves.values()))[layers[0]])
    rows = []
    for layer in layers:
        for what, key in (("whole seal", "ever"), ("at 4 questions", "at 4")):
            cells = []
            for position in positions:
                found = [curve[layer][position]["boundary"][key] for curve in curves.values()]
                cells.append(share(float(np.mean([one["value"] if key == "ever" else one for one in found]))))
            rows.append([f"{layer}, {what}", *cells])
    return table(["bit (0-22 mantissa, 23-30 exponent, 31 sign)", *positions], rows)


def silence() -> str:
    """Alarms on the untouched models, by runtime and by processor."""
    found = load("seal")["silence"]
    parts = {"all": found["all"], **found["runtime"], **{f"processor: {k}": v for k, v in found["processor"].items()}}
    rows = [
        [
            name,
            f"{part['checks']:,}",
            str(part["alarms"]),
            f"{part['alarm rate']['high']:.2%}",
            f"{part['differing']} of {part['answers']:,}",
            f"{part['differing rate']['high']:.1e}",
        ]
        for name, part in parts.items()
    ]
    head = ["computed by", "checks", "alarms", "alarm rate, at most", "answers that differ", "rate, at most"]
    return table(head, rows)


def costs() -> str:
    """Sealing time and what such a seal notices."""
    rows = []
    for name, case in load("seal")["costs"].items():
        if "skipped" in case:
            rows.append([name, case["skipped"]])
            continue
        noticed = [
            f"{kind} {np.mean([count for count in counts if count is not None]):.1f}"
            if any(counts)
            else f"{kind} never"
            for kind, counts in case["noticed"].items()
        ]
        own = case["own"]
        rows.append(
            [
                name,
                str(case["classes"]),
                f"{case['pairs']} pairs in {case['seconds']:.0f} s",
                f"{case['queries']:,}",
                f"{case['eta']:.1e}",
                ("intact" if own["intact"] else "TAMPERED") + f", {own['queries']} questions, {own['seconds']:.1f} s",
                ", ".join(noticed),
            ]
        )
    head = ["model", "classes", "sealing", "images asked", "noise floor", "itself checked", "questions until certain"]
    return table(head, rows)


def share(value: float) -> str:
    """A probability, with its first digits that are not 9."""
    return "1" if value == 1 else f"{value:.4f}".rstrip("0") if value > 0.99 else f"{value:.2f}"
