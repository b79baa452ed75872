"""Writes the tables of README.md from `benchmarks/results/*.json`, between the markers that name them.

    python -m benchmarks.tables [--check]

With --check nothing is written; the exit code says whether README.md is up to date.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS

README = Path(__file__).parents[1] / "README.md"
Figures = dict[str, Any]


def ranged(value: Figures, digits: int = 3) -> str:
    """An estimate with its interval."""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def percent(value: Figures) -> str:
    """A share with its interval, in per cent."""
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def load(name: str) -> Figures:
    """One file of results."""
    content: Figures = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def detection() -> str:
    """Setting by setting."""
    figures = load("detection")
    rows = []
    settings = [key for key in figures if "auroc" in figures[key]]
    for name in settings:
        setting = figures[name]
        areas = setting["auroc"]
        working = areas.get("ASR >= 0.9")
        all_to_all = areas.get("all-to-all")
        alarms = setting.get("false_alarms_at_5_percent")
        rows.append(
            [
                name,
                ranged(areas["all"]),
                ranged(working) if working else "",
                ranged(all_to_all) if all_to_all else "",
                percent(setting["true_positives_at_5_percent"]),
                percent(setting["target_named"]),
                percent(alarms) if alarms else "",
            ]
        )
    head = [
        "setting",
        "AUROC, all",
        "ASR >= 0.9",
        "all-to-all",
        "TPR at 5 % FPR",
        "target named",
        "false alarms at 0.05",
    ]
    return table(head, rows)


def families() -> str:
    """The main setting by trigger family."""
    areas = load("detection")["fashion-mnist"]["auroc"]
    return table(
        ["backdoor", "models", "AUROC"], [[name, str(area["models"]), ranged(area)] for name, area in areas.items()]
    )


def architectures() -> str:
    """Leave one architecture out."""
    rows = load("detection")["leave_one_architecture_out"]
    return table(
        ["architecture left out of the fit", "models", "AUROC"],
        [[name, str(area["models"]), ranged(area)] for name, area in rows.items() if isinstance(area, dict)]
        + [["mean of the four", "", f"{rows['mean']:.3f}"]],
    )


def ablation() -> str:
    """Everything that was varied."""
    figures = load("ablation")
    rows = [[name, ranged(area)] for name, area in figures["fitted networks"].items()]
    sizes = load("detection")["fitted_on"]
    rows += [[f"the detector, fitted on {count} models", ranged(area)] for count, area in sizes.items()]
    for title in ("hand-made number by variant and base", "hand-made number by values (logit, grey)"):
        prefix = "peak ratio, " if "variant" in title else "peak ratio, logit, grey, values: "
        rows += [[prefix + name, ranged(area)] for name, area in figures[title].items()]
    return table(["what is used", "AUROC, all"], rows)


def populations() -> str:
    """What was built."""
    rows = [
        [
            name,
            str(facts["models"]),
            str(facts["backdoored"]),
            str(facts["working"]),
            f"{facts['median_asr']:.2f}",
            f"{facts['clean_accuracy']['clean']:.1%} / {facts['clean_accuracy']['backdoored']:.1%}",
        ]
        for name, facts in load("detection")["populations"].items()
    ]
    head = ["population", "models", "backdoored", "ASR >= 0.9", "median ASR", "clean accuracy, clean / backdoored"]
    return table(head, rows)


def third_party() -> str:
    """Models that others made."""
    rows = [
        [
            name,
            f"{' x '.join(map(str, facts['input_shape']))}, {facts['classes']} classes",
            f"p = {facts['p_value']:.3f}, " + ("flagged" if facts["flagged"] else "not flagged"),
            "pixels" if facts["grid"] is None else f"{facts['grid'][0]} x {facts['grid'][1]} blocks",
            f"{facts['queries']:,}",
            f"{facts['seconds']:.0f} s",
            f"{facts['peak_memory_mb']:,.0f} MB",
        ]
        for name, facts in load("third_party").items()
        if name != "provenance"
    ]
    return table(["model", "input", "verdict (task-free)", "probed by", "queries", "time", "peak memory"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "populations": populations,
    "detection": detection,
    "families": families,
    "architectures": architectures,
    "ablation": ablation,
    "third-party": third_party,
}


def render(text: str) -> str:
    """`text` with every marked table replaced by a fresh one."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if pattern.search(text):
            body = make() + "\n"
            text = pattern.sub(rf"\g<1>{body}\g<2>", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    before = README.read_text()
    after = render(before)
    if parser.parse_args().check:
        sys.exit(before != after)
    README.write_text(after)


if __name__ == "__main__":
    main()
