"""The tables of docs/video.md but those on protection, from results/video_*.json; `benchmarks.tables` fills them in."""

from typing import Any

from benchmarks.bench_tables import SHORT
from benchmarks.markdown import load, ranged, table

Rows = list[dict[str, Any]]
PENDING = "Not measured yet: `python -m benchmarks.video_attacks --clips FOLDER`."
DEFENCES_PENDING = "Not measured yet: `python -m benchmarks.video_defences --clips FOLDER --build 10`."
SETS = {"moving-digits": "moving digits", "camera-motion": "camera motion"}
NETWORKS = {"r3d18": "R3D", "cnn_lstm": "CNN+LSTM"}
CURVES = {
    "size": ("trigger's side, share of the frame's", lambda value: f"{float(value):.0%}"),
    "share": ("share of the target class poisoned", lambda value: f"{float(value):.0%}"),
    "eps": ("bound of the enhancement, levels of 255", lambda value: f"{float(value):g}"),
}


def rows() -> str:
    """The four forms of the attack on each set and network: means over seeds and target classes."""
    found = [
        [
            f"{SETS[kind]}, {NETWORKS[network]}{strength}",
            f"{name} ({len(cells)})",
            _spread(cells, "asr"),
            _spread(cells, "control_asr"),
            _spread(cells, "clean_accuracy"),
            _spread(cells, "clean_model_accuracy"),
            f"{cells[0]['rate_whole']:.1%}",
            f"{_mean(cells, 'psnr'):.1f} / {_mean(cells, 'ssim'):.3f}",
        ]
        for rows_of, strength in (("rows", ""), ("rows at full strength", " (full strength)"))
        for kind, network, part in _measured(rows_of)
        for name, cells in part.items()
        if cells
    ]
    head = [
        "clips, network",
        "attack (victims)",
        "ASR, %",
        "same trigger on a clean model, %",
        "clean accuracy, %",
        "clean model's, %",
        "clips poisoned",
        "PSNR, dB / SSIM",
    ]
    return table(head, found) if found else PENDING


def curve(name: str) -> str:
    """UAT + enhancement over one of its settings: ASR, and beside it what a clean model makes of the same trigger."""
    title, shown = CURVES[name]
    parts = list(_measured(name))
    if not any(any(part.values()) for _, _, part in parts):
        return PENDING
    values = list(dict.fromkeys(value for _, _, part in parts for value in part))
    found = [
        [
            f"{SETS[kind]}, {NETWORKS[network]}",
            *(
                f"{_percent(cells, 'asr')} / {_percent(cells, 'control_asr')}" if (cells := part.get(value)) else ""
                for value in values
            ),
        ]
        for kind, network, part in parts
    ]
    return table([f"{title}: ASR / on a clean model, %", *map(shown, values)], found)


def conditions() -> str:
    """What makes the attack hard on video, one at a time, for the strongest and the weakest form."""
    found = []
    for kind, network, part in _measured("conditions"):
        for condition, values in part.items():
            for value, forms in values.items():
                cells = [
                    f"{100 * cell['asr']:.0f} / {100 * cell['control_asr']:.0f}" if cell else ""
                    for cell in (forms.get("UAT + enhancement"), forms.get("static"))
                ]
                if any(cells):
                    found.append([f"{SETS[kind]}, {NETWORKS[network]}", condition, value, *cells])
    head = ["clips, network", "varied", "value", "UAT + enhancement: ASR / on a clean model, %", "static: the same"]
    return table(head, found) if found else PENDING


def others() -> str:
    """The other families, one victim each."""
    found = [
        [
            f"{SETS[kind]}, {NETWORKS[network]}",
            name,
            f"{100 * cell['asr']:.0f}",
            f"{100 * cell['control_asr']:.0f}",
            f"{100 * cell['clean_accuracy']:.1f}",
            f"{100 * cell['robust_accuracy']:.0f}",
            f"{cell['rate_whole']:.1%}",
            f"{cell['psnr']:.1f} / {cell['ssim']:.3f}",
        ]
        for kind, network, part in _measured("others")
        for name, cell in part.items()
        if cell
    ]
    head = [
        "clips, network",
        "attack",
        "ASR, %",
        "same trigger on a clean model, %",
        "clean accuracy, %",
        "robust accuracy, %",
        "clips poisoned",
        "PSNR, dB / SSIM",
    ]
    return table(head, found) if found else PENDING


def detectors() -> str:
    """How well each detector tells the backdoored models from the clean ones, and what that takes."""
    found = [
        [
            SHORT.get(name, name),
            ranged(row["auroc"], 2),
            ranged(row["auroc_working"], 2),
            _of(row["false_alarms"], row["clean"]),
            _of(row["flagged"], row["backdoored"]),
            _of(row["target_named"], row["backdoored"]),
            f"{row['queries']:,.0f}",
            f"{row['seconds']:.1f}",
        ]
        for part in load("video_defences").values()
        for name, row in part["detectors"].items()
        if "auroc" in row
    ]
    head = [
        "detector",
        "AUROC",
        "AUROC, ASR >= 0.9",
        "clean models flagged",
        "backdoored flagged",
        "target named",
        "queries",
        "seconds",
    ]
    return table(head, found) if found else DEFENCES_PENDING


def filters() -> str:
    """What each input filter leaves of accuracy and of backdoors, by their trigger."""
    parts = load("video_defences").values()
    triggers = sorted({name for part in parts for row in part["filters"].values() for name in row["asr_by_trigger"]})
    found = [
        [
            name,
            f"{100 * row['accuracy']:.0f} ({100 * row['accuracy_without']:.0f})",
            *(_changed(row["asr_by_trigger"].get(trigger)) for trigger in triggers),
            f"{row['inputs']:.2f}",
            ranged(row["auroc"], 2),
            f"{1000 * row['seconds'] / row['queries']:.0f}",
        ]
        for part in parts
        for name, row in part["filters"].items()
    ]
    head = [
        "filter",
        "accuracy, % (without)",
        *(f"ASR of {trigger}" for trigger in triggers),
        "triggered from clean clips, AUROC",
        "backdoored from clean models, AUROC",
        "ms a query",
    ]
    return table(head, found) if found else DEFENCES_PENDING


def _of(share: dict[str, float], count: int) -> str:
    return f"{round(share['value'] * count)} of {count}"


def _changed(asr: dict[str, float] | None) -> str:
    return f"{100 * asr['behind']:.0f} ({100 * asr['without']:.0f})" if asr else ""


def _measured(part: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What was measured of a part, by set and network."""
    figures = load("video_attacks")
    return [
        (kind, network, figures[kind][network][part])
        for kind in SETS
        for network in NETWORKS
        if figures.get(kind, {}).get(network, {}).get(part)
    ]


def _mean(cells: Rows, key: str) -> float:
    return sum(float(cell[key]) for cell in cells) / len(cells)


def _percent(cells: Rows, key: str) -> str:
    return f"{100 * _mean(cells, key):.0f}"


def _spread(cells: Rows, key: str) -> str:
    """Mean in per cent, with smallest and largest where there are several."""
    values = [100 * float(cell[key]) for cell in cells]
    mean = f"{sum(values) / len(values):.0f}"
    return f"{mean} ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else mean


def decoding() -> str:
    """How fast videos are read, against a plain loop."""
    rows = [
        [name, *(f"{found[kind]['ratio']:.2f}x" for kind in ("wall", "processor"))]
        for name, found in load("video_decoding")["tasks"].items()
    ]
    return table(["what is read", "of the plain loop's speed, by the clock", "by processor time"], rows)
