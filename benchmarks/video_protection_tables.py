"""The tables about clips in docs/mark.md, docs/seal.md and docs/lock.md, from results/video_protection.json."""

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import load, table

NAME = "video_protection"
PENDING = "Not measured yet: `python -m benchmarks.video_protection`."


def marks() -> str:
    """What each mark costs in fidelity, and what it survives."""
    found = _part("mark")
    host = load(NAME).get("host", {})
    if not found:
        return PENDING
    measures: dict[str, Callable[[dict[str, Any]], str]] = {
        "clean accuracy less the host's, points": lambda row: (
            f"{100 * (row['clean_accuracy'] - row['host_accuracy']):+.1f}"
        ),
        "triggers": lambda row: f"{row['trigger_accuracy']:.0%}",
        "PFL": lambda row: f"{row['pfl']:.2f}",
        "SPL": lambda row: f"{row['spl']:.4f}",
        "prototype shift": lambda row: f"{row['prototype_shift']:.2f}",
        "agreement: clean / corrupted / foreign": lambda row: (
            f"{row['agreement_clean']:.3f} / {row['agreement_corrupted']:.3f} / "
            f"{row['agreement_out_of_distribution']:.3f}"
        ),
    }
    rows = [[title, *(show(row["fidelity"]) for row in found.values())] for title, show in measures.items()]
    rows += [
        [f"claim on: {name}", *(_claim(row["claims"][name]) for row in found.values())]
        for name in next(iter(found.values()))["claims"]
    ]
    accuracy = f"host: {host['accuracy']:.1%} of the test clips" if host else ""
    return table([accuracy, *found], rows)


def seals() -> str:
    """What each method notices, and whether it stays silent."""
    found = _part("seal")
    if not found:
        return PENDING
    rows = [
        ["pairs, sealed in", *(f"{row['pairs']} in {row['cpu_seconds']:.0f} s" for row in found.values())],
        ["noise floor", *(f"{row['eta']:.1e}" for row in found.values())],
        ["margins", *(" to ".join(f"{end:.1e}" for end in row["margins"]) for row in found.values())],
        ["false alarms a question, at most", *(f"{row['flip_bound']:.0e}" for row in found.values())],
        ["untouched, other threads and batches", *(_silence(row["silent"]) for row in found.values())],
    ]
    rows += [
        [f"pairs that notice: {name}", *(_noticed(row["noticed"][name]) for row in found.values())]
        for name in next(iter(found.values()))["noticed"]
    ]
    return table(["", *found], rows)


def lock() -> str:
    """The bars of a lock, network by network."""
    found = _part("lock")
    if not found:
        return PENDING
    columns = [_held(row) for row in found.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return table(["lock on clips", *found], rows)


def _held(row: dict[str, Any]) -> dict[str, str]:
    keyed, jpeg = (row["table"][name]["argmax"] for name in ("keyed, PNG", "keyed, JPEG 75"))
    return {
        "unlocked accuracy": f"{row['unlocked_accuracy']:.1%}",
        "keyed, PNG frames / JPEG 75 frames": f"{keyed:.1%} / {jpeg:.1%}",
        "without a key: points from chance at most": f"{100 * row['worst']:.1f} (chance {row['chance']:.1%})",
        "PSNR of frames, mean / worst": f"{row['psnr']:.1f} / {row['worst_psnr']:.1f} dB",
        "SSIM of frames": f"{row['ssim']:.3f}",
        **{
            f"user named from one clip, {kind}": f"{row['traced'][kind]['named']['value']:.1%}"
            for kind in ("PNG", "JPEG 75")
        },
        "training, minutes of one core": f"{row['cpu_seconds'] / 60:.0f} ({row['steps']} steps)",
    }


def _part(name: str) -> dict[str, Any]:
    """A part of the results without cells that are still to be measured."""
    part: dict[str, Any] = load(NAME).get(name, {})
    return {key: value for key, value in part.items() if value not in ({}, None)}


def _claim(row: dict[str, Any]) -> str:
    return f"p = {row['p_value']:.1g}; {row['hits']} hits; {row['accuracy']:.1%}"


def _silence(row: dict[str, Any]) -> str:
    return f"{row['mismatches']} of {row['questions']} answers differ"


def _noticed(row: dict[str, Any]) -> str:
    verdict = "intact" if row["intact"] else f"tampered after {row['queries']}"
    return f"{row['pairs']:.2f}; {verdict}"
