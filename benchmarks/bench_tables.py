"""The tables of docs/bench.md, from results/bench.json; `benchmarks.tables` puts them in."""

from typing import Any

from benchmarks.markdown import load, percent, ranged, table

PENDING = "Not measured yet: `python -m benchmarks.bench`."
SHORT = {
    "one-pixel-signature": "one-pixel",
    "neural-cleanse": "Neural Cleanse",
    "mm-bd": "MM-BD",
    "final-layer": "final layer",
    "ban": "BAN",
    "trodo": "TRODO",
    "strip": "STRIP",
    "activation-clustering": "activation clustering",
    "spectral-signatures": "spectral signatures",
}


def attack_by_detector(task: str) -> str:
    """AUROC with intervals, each detector alone and `auto` by what the auditor holds."""
    found = _load(task)
    if not found or "alone" not in found:
        return PENDING
    columns = {SHORT.get(name, name): areas for name, areas in found["alone"].items()}
    columns |= {f"**auto**, {name}": areas for name, areas in found["auto"].items()}
    rows = []
    for row in next(iter(columns.values()))["auroc"]:
        rows.append([row, *(_area(areas["auroc"].get(row)) for areas in columns.values())])
    rows.append(["**mean**", *(f"**{areas['mean_auroc']:.3f}**" for areas in columns.values())])
    rows.append(["mean, ASR >= 0.9", *(_number(areas["mean_auroc_working"]) for areas in columns.values())])
    return table(["attack", *columns], rows)


def attacks(task: str) -> str:
    """How well the attacks work."""
    found = _load(task)
    if not found:
        return PENDING
    rows = [
        [
            row["row"],
            f"{row['working']} of {row['victims']}",
            _share(row["asr"]),
            _share(row["asr_unpoisoned"]),
            _share(row["clean_accuracy"]),
            _points(row["accuracy_loss"]),
            _share(row["robust_accuracy"]),
            f"{_share(row['poison_rate'])} / {_share(row['target_class_rate'])}",
            _number(row["psnr"], 1),
            _number(row["ssim"]),
        ]
        for row in found["table"]["attacks"]
    ]
    head = [
        "attack",
        "ASR >= 0.9",
        "mean ASR",
        "same trigger on a clean model",
        "clean accuracy",
        "points lost",
        "robust accuracy",
        "poisoned, of all / of the target class",
        "PSNR, dB",
        "SSIM",
    ]
    return table(head, rows)


def detectors(task: str) -> str:
    """False alarms and costs."""
    found = _load(task)
    if not found:
        return PENDING
    rows = []
    for row in found["table"]["detectors"]:
        rows.append(
            [
                SHORT.get(row["detector"], row["detector"]),
                _alarms(found.get("alone", {}).get(row["detector"], {}).get("false_alarms")),
                _number(row["seconds"], 1),
                f"{row['queries']:,.0f}",
            ]
        )
    for name, areas in found.get("auto", {}).items():
        members = ", ".join(
            f"{SHORT.get(member, member)} ({weight:.2f})" for member, weight in areas["members"].items()
        )
        rows.append([f"auto, {name}: {members}", _alarms(areas["false_alarms"]), "", ""])
    return table(["detector (weight)", "false alarms at 0.05", "seconds a model", "queries a model"], rows)


def _load(task: str) -> dict[str, Any]:
    found: dict[str, Any] = load("bench").get(task, {})
    return found


def _area(area: dict[str, Any] | None) -> str:
    return "-" if area is None else f"{area['value']:.2f} [{area['low']:.2f}, {area['high']:.2f}]"


def _alarms(rate: dict[str, Any] | None) -> str:
    return "not calibrated" if rate is None else f"{rate['events']} of {rate['trials']} ({percent(rate)})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def imbalance() -> str:
    """Clean models of unequal classes: who accuses them?"""
    found = load("imbalance")
    if not found:
        return "Not measured yet: `python -m benchmarks.imbalance`."
    rows = [
        [SHORT[name], ranged(found[name]["auroc"], 2), _alarms(found[name]["false_alarms"]),
         f"{found[name]['names_the_large_class']} of {found['models']}"]
        for name in SHORT if name in found
    ]  # fmt: skip
    head = [
        "detector",
        "AUROC against clean models of equal classes",
        "false alarms at 0.05",
        "names the large class first",
    ]
    return table(head, rows)


def left_out() -> str:
    """Shipped clean models, each ranked among the others: as before, and by confidence."""
    found = load("training_length").get("left_out")
    if not found:
        return "Not measured yet: `python -m benchmarks.training_length`."
    first = next(iter(found.values()))
    columns = [(kind, group) for kind, groups in first.items() for group in groups]
    rows = [[SHORT[name], *(_alarms(part[kind][group]) for kind, group in columns)] for name, part in found.items()]
    return table(["detector", *(f"{group}, {kind}" for kind, group in columns)], rows)


def training_length() -> str:
    """Clean models by how long they were trained: who accuses them?"""
    lengths = {name: part for name, part in load("training_length").items() if name != "left_out"}
    if not lengths:
        return "Not measured yet: `python -m benchmarks.training_length`."
    head = ["detector", *(f"{name} passes ({part['accuracy']:.1%} accurate)" for name, part in lengths.items())]
    names = list(next(iter(lengths.values()))["false_alarms"])
    rows = [
        [
            SHORT.get(name, f"**{name}**"),
            *(
                f"{part['false_alarms'][name]['events']} of {part['models']}; p = "
                + ", ".join(f"{value:.2f}" for value in part["p_values"][name])
                for part in lengths.values()
            ),
        ]
        for name in names
    ]
    return table(head, rows)
