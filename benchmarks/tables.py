"""Writes the tables of README.md and docs/ from `benchmarks/results/*.json`, between the markers that name them.

    python -m benchmarks.tables [--check]

With --check nothing is written; the exit code says whether they are up to date.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import bench_tables, lock_tables, mark_tables, seal_tables, video_protection_tables, video_tables
from benchmarks.markdown import load, percent, ranged, render, table

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def detection() -> str:
    """Setting by setting."""
    figures = load("detection")
    rows = []
    settings = [key for key in figures if "auroc" in figures[key]]
    for name in settings:
        setting = figures[name]
        areas = setting["auroc"]
        working = areas.get("ASR >= 0.9")
        half = areas.get("ASR >= 0.5")
        all_to_all = areas.get("all-to-all")
        alarms = setting.get("false_alarms_at_5_percent")
        rows.append(
            [
                name,
                ranged(areas["all"]),
                ranged(half) if half else "",
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
        "ASR >= 0.5",
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
    ]
    return table(["model", "input", "verdict (task-free)", "probed by", "queries", "time", "peak memory"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "populations": populations,
    "detection": detection,
    "families": families,
    "architectures": architectures,
    "ablation": ablation,
    "third-party": third_party,
    "bench, fashion-mnist": lambda: bench_tables.attack_by_detector("fashion-mnist"),
    "bench, cifar10": lambda: bench_tables.attack_by_detector("cifar10"),
    "bench attacks, fashion-mnist": lambda: bench_tables.attacks("fashion-mnist"),
    "bench attacks, cifar10": lambda: bench_tables.attacks("cifar10"),
    "bench detectors, fashion-mnist": lambda: bench_tables.detectors("fashion-mnist"),
    "bench detectors, cifar10": lambda: bench_tables.detectors("cifar10"),
    "bench imbalance": bench_tables.imbalance,
    "bench training length": bench_tables.training_length,
    "bench left out": bench_tables.left_out,
    "mark modes, fashion-mnist": lambda: mark_tables.fidelity("fashion-mnist", "modes"),
    "mark modes, cifar10": lambda: mark_tables.fidelity("cifar10", "modes"),
    "mark fidelity, fashion-mnist": lambda: mark_tables.fidelity("fashion-mnist"),
    "mark fidelity, cifar10": lambda: mark_tables.fidelity("cifar10"),
    "mark robustness, fashion-mnist": lambda: mark_tables.robustness("fashion-mnist"),
    "mark robustness, cifar10": lambda: mark_tables.robustness("cifar10"),
    "mark robustness by classes, fashion-mnist": lambda: mark_tables.robustness("fashion-mnist", "classes"),
    "mark robustness by classes, cifar10": lambda: mark_tables.robustness("cifar10", "classes"),
    "mark thieves": mark_tables.thieves,
    "mark extraction": mark_tables.extraction,
    "mark honesty": mark_tables.honesty,
    "mark scan": mark_tables.scanned,
    "mark cost": mark_tables.cost,
    "lock bars": lock_tables.bars,
    "lock bars before": lambda: lock_tables.bars(before=True),
    "lock jpeg": lock_tables.jpeg,
    "lock leaks, fashion-mnist": lambda: lock_tables.leaks("fashion-mnist"),
    "lock leaks, faces": lambda: lock_tables.leaks("faces"),
    "lock leaks, cifar10": lambda: lock_tables.leaks("cifar10"),
    "lock strangers": lock_tables.strangers,
    "lock relocked": lock_tables.relocked,
    "lock beyond": lock_tables.beyond,
    "lock votes": lock_tables.votes,
    "lock codes": lock_tables.codes,
    "lock mislabel": lock_tables.mislabel,
    "lock attacks": lock_tables.attacks,
    "lock together": lock_tables.together,
    "lock cost": lock_tables.cost,
    "seal hosts": seal_tables.hosts,
    "seal tampering": seal_tables.tampering,
    "seal noise": seal_tables.noise,
    "seal bits": seal_tables.bits,
    "seal silence": seal_tables.silence,
    "seal costs": seal_tables.costs,
    "video decoding": video_tables.decoding,
    "video attacks": video_tables.rows,
    "video attack size": lambda: video_tables.curve("size"),
    "video attack share": lambda: video_tables.curve("share"),
    "video attack eps": lambda: video_tables.curve("eps"),
    "video attack conditions": video_tables.conditions,
    "video attack families": video_tables.others,
    "video detectors": video_tables.detectors,
    "video filters": video_tables.filters,
    "video protection, mark": video_protection_tables.marks,
    "video protection, seal": video_protection_tables.seals,
    "video protection, lock": video_protection_tables.lock,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in DOCUMENTS:
        before = path.read_text()
        after = render(before, TABLES)
        if before != after:
            stale.append(path.name)
            if not check:
                path.write_text(after)
    print("up to date" if not stale else f"{'stale' if check else 'written'}: {', '.join(stale)}")
    sys.exit(bool(stale) and check)


if __name__ == "__main__":
    main()
