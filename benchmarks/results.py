"""Where figures are written: `benchmarks/results/NAME.json`, each with the commit, machine and command behind it."""

import json
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intaglio.evidence.statistics import Interval, proportion
from intaglio.files import write_json
from intaglio.results import package_versions

RESULTS = Path(__file__).parent / "results"
#: Earlier runs that are named, where a file holds figures of several.
_RUNS = 12


def record(name: str, figures: dict[str, Any]) -> Path:
    """Writes `figures` with how they came about, and returns the path.

    `figures` may hold those of earlier runs by other commands: how these came about is kept under "earlier".
    """
    path = RESULTS / f"{name}.json"
    kept, now, runs = dict(figures), provenance(), []
    if "provenance" in kept:
        runs = [kept.pop("provenance"), *kept.pop("earlier", [])]
    earlier = [run for run in runs if run["command"] != now["command"]][:_RUNS]
    write_json(path, {"provenance": now, **({"earlier": earlier} if earlier else {}), **kept})
    return path


def known(name: str) -> dict[str, Any]:
    """What the file holds already; nothing if there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def over(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was found, over what was known before; what is empty is not known.

    Rows of a list are the same measurement if they have the same seed, and target where they have one.
    """
    merged = dict(before)
    for name, value in found.items():
        if isinstance(value, dict):
            value = over(before.get(name, {}), value)
        elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
            rows = {(row["seed"], row.get("target", 0)): row for row in [*before.get(name, []), *value] if row}
            value = [rows[place] for place in sorted(rows)]
        if value not in ({}, []):
            merged[name] = value
    return merged


def interval(value: Interval) -> dict[str, float]:
    """An interval as JSON, rounded to 4 digits."""
    return {key: round(float(part), 4) for key, part in value._asdict().items()}


def counted(events: int, trials: int) -> dict[str, float]:
    """A share with its interval and what it was counted on, as JSON."""
    return interval(proportion(events, trials)) | {"events": events, "trials": trials}


def provenance() -> dict[str, Any]:
    """Commit, command, machine, versions and time."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "src", "benchmarks"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "command": _command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {platform.system()}, Python {platform.python_version()}",
        "versions": package_versions(),
    }


def _command() -> str:
    """As it was typed, but with the names of files alone: where they lie is the business of one machine."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "?")
    named = [re.sub(r"[^\s=]*/", "", word) for word in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *named])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
