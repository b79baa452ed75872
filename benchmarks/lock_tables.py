"""The tables of docs/lock.md and lock-lessons.md, from results/lock.json; `benchmarks.tables` puts them in."""

from typing import Any

from benchmarks.lock_measures import MOVED
from benchmarks.markdown import load, table
from intaglio.lock.checking import BEYOND
from intaglio.lock.leaks import HELD, READERS

Rows = list[dict[str, Any]]
PENDING = "Not measured yet: `python -m benchmarks.lock`."
NAMES = {"fashion-mnist": "Fashion-MNIST", "faces": "ORL faces", "cifar10": "CIFAR-10 (JPEG)"}
NETWORKS = {"resnet14 8": "ResNet-14", "resnet14 16": "ResNet-14 of width 16", "vgg 12": "VGG", "vgg 16": "VGG"}
#: What locks were not trained against, those of now first.
_KINDS = ("", ", residuals of the same class not refused", ", neither residuals of the same class nor rivals refused")
#: The first row of the bars.
_ASKED = ["**asked for**", "", "-1 or more", "-2 or more", "", "2 at most", "35, or 34", "0.95", "99 %", "95 %", ""]
#: Where other owners' keys are found, and what the locks they were tried on were trained for.
_STRANGERS = {
    "strangers before": "VGG, the owner alone",
    "strangers of VGG": "VGG, rivals and decoys",
    "strangers elsewhere": "ResNet-14, rivals and decoys; the keys are of locked VGGs",
    "strangers": "ResNet-14, rivals and decoys",
    "strangers rekeyed": "the same; the other owner's U-Net, with keys that it wasn't trained for most",
    "strangers off the grid": "ResNet-14, rivals and decoys; off the grid of JPEG",
    "strangers rekeyed off the grid": "the same; the other owner's U-Net, with keys that it wasn't trained for most",
}
#: What is said of rows of `lock train --loud`.
LOUDER = "louder noise refused"
#: And of those that met wrong keys that were found to open them.
MINED = "; wrong keys that open refused"
KEYED, JPEG, LEAKED = "keyed, PNG", "keyed, JPEG 75", "another lock's key"


def bars(*, before: bool = False) -> str:
    """Task by task: what the lock was asked to hold, and what it holds, mean over its owners (smallest to largest).

    Those of the plan, and by the default since; with `before` all that were trained otherwise.
    """
    rows = [_ASKED]
    for name, title in NAMES.items():
        kinds = list(_by_kind(_leaks(name)).items())
        shown = [kinds[0], *((key, found) for key, found in kinds[1:] if LOUDER in key[1])]
        for (_, kind), found in [one for one in kinds if one not in shown] if before else shown:
            lost = [100 * (row["table"][KEYED]["argmax"] - row["unlocked_accuracy"]) for row in found]
            jpeg = [100 * (row["table"][JPEG]["argmax"] - row["unlocked_accuracy"]) for row in found]
            rows.append(
                [
                    f"{title}, {NETWORKS[found[0]['network']]} ({len(found)}{kind})",
                    _spread([100 * row["unlocked_accuracy"] for row in found], 1),
                    _spread(lost, 1),
                    _spread(jpeg, 1),
                    f"{found[0]['chance']:.1%}",
                    _spread([100 * row["worst"] for row in found], 1),
                    f"{sum(row['psnr'] for row in found) / len(found):.1f}",
                    f"{sum(row['ssim'] for row in found) / len(found):.3f}",
                    _shares(found, "PNG"),
                    _shares(found, "JPEG 75"),
                    _spread([100 * row["traced"]["JPEG 75"]["nearest"] for row in found], 1) + " %",
                ]
            )
    head = [
        "task (owners)",
        "unlocked accuracy, %",
        "keyed, PNG: points more",
        "keyed, JPEG 75: points more",
        "chance",
        "without a key: points from chance at most",
        "PSNR, dB",
        "SSIM",
        "user named from one PNG",
        "from one JPEG 75",
        "nearest of 64 users, JPEG 75",
    ]
    return table(head, rows)


def jpeg() -> str:
    """What keyed images are worth after JPEG, mean over the owners of each kind that it was measured for."""
    rows = []
    for name, title in NAMES.items():
        for (_, kind), found in _by_kind(_leaks(name)).items():
            if measured := [row for row in found if "jpeg" in row]:
                through = [
                    {way: row["table"][way]["argmax"] for way in (KEYED, JPEG)} | row["jpeg"] for row in measured
                ]
                shown = (KEYED, "JPEG 95", "JPEG 85", JPEG, "JPEG 65", "JPEG 50", MOVED)
                rows.append([f"{title} ({len(measured)}{kind})", *(_mean_percent([*through], way) for way in shown)])
    head = ["task (owners)", "PNG", *(f"JPEG {quality}" for quality in (95, 85, 75, 65, 50)), "JPEG 75, off the grid"]
    return table(head, rows) if rows else PENDING


def leaks(name: str) -> str:
    """One task's leak table: share of test images whose class each reader finds, mean over the latest owners."""
    found = _latest(name)
    if not found:
        return PENDING
    inputs = list(dict.fromkeys(kind for row in found for kind in row["table"]))
    readers = [way for way in READERS if all(way in row["table"][KEYED] for row in found)]
    rows = [[kind, *(_mean_percent([row["table"].get(kind) for row in found], reader) for reader in readers)]
            for kind in inputs]  # fmt: skip
    return table(["input", *readers], rows)


def strangers() -> str:
    """What other owners' key networks open: the likeliest class, and the furthest that any reading is from chance."""
    rows = []
    for name, title in NAMES.items():
        found = load("lock").get(name, {})
        for part, trained in _STRANGERS.items():
            if pairs := [row for row in found.get(part, {}).values() if row]:
                rows.append(
                    [
                        f"{title} ({len(pairs)})",
                        trained,
                        _spread([100 * row["recovered"]["argmax"] for row in pairs], 1),
                        _spread([100 * row["worst"] for row in pairs], 1),
                    ]
                )
    head = ["task (pairs of owners)", "trained for", "likeliest class right, %", "points from chance at most"]
    return table(head, rows) if rows else PENDING


def relocked() -> str:
    """What is left of a leaked key after the model was locked anew."""
    row = load("lock").get("fashion-mnist", {}).get("relocked", {})
    if not row:
        return PENDING
    keyed, jpeg, leaked = (row["table"][kind]["argmax"] for kind in (KEYED, JPEG, LEAKED))
    others = [kind for kind in row["table"] if kind not in (KEYED, JPEG, LEAKED, *BEYOND)]
    rows = [
        ["leaked key, model before: right", f"{row['leaked key, model before']:.1%}"],
        ["leaked key, model locked anew: right", f"{leaked:.1%} (chance {row['chance']:.1%})"],
        ["leaked key, model locked anew: points from chance at most", _furthest(row, [LEAKED])],
        ["anything else without a key: points from chance at most", _furthest(row, others)],
        ["unlocked accuracy", f"{row['unlocked_accuracy']:.1%}"],
        ["new key, PNG / JPEG 75", f"{keyed:.1%} / {jpeg:.1%}"],
        ["PSNR, mean / worst; SSIM", f"{row['psnr']:.1f} / {row['worst_psnr']:.1f} dB; {row['ssim']:.3f}"],
        ["user named, PNG / JPEG 75", f"{_shares([row], 'PNG')} / {_shares([row], 'JPEG 75')}"],
    ]
    return table(["locked anew, with `--earlier`", "found"], rows)


def _furthest(row: dict[str, Any], kinds: list[str]) -> str:
    """How far any reading of these kinds of input gets from chance, in points."""
    read = [row["table"][kind][reader] for kind in kinds for reader in HELD]
    return f"{100 * max(abs(value - row['chance']) for value in read):.1f}"


def beyond() -> str:
    """What is read of inputs that the bars don't ask for, the likeliest class and the next but the one answer."""
    found = load("lock").get("fashion-mnist", {}).get("beyond", {})
    if not found:
        return PENDING
    rows = [
        [kind, *(f"{read[reader]:.1%}" for reader in ("argmax", "second"))]
        for kind, read in found["inputs"].items()
        if not kind.startswith("keyed")
    ]
    return table(["input", "likeliest class right", "likeliest but the one answer right"], rows)


def votes() -> str:
    """What votes over noise read, by how loud it is and how often it is tried."""
    rows = []
    for name, title in NAMES.items():
        found = load("lock").get(name, {})
        for row, said in [
            *((row, "") for row in found.get("votes", [])),
            *((row, f", {LOUDER}") for part in ("votes, louder", "votes, again") for row in found.get(part, [])),
        ]:
            for noise, read in row["voted"].items():
                times, *kind = noise.split(", ")
                cells = [f"{100 * share['value']:.0f} %" for share in read.values()]
                lock = f"{title}, owner {row['seed'] + 1}{said}{MINED if row.get('mined') else ''}"
                loudness = ", ".join([f"{times} x", *kind])
                rows.append([lock, loudness, *cells, f"{100 * row['keyed']:.0f} %"])
    return (
        table(["lock", "noise", "1 question", *(f"{n} questions" for n in (10, 30, 100)), "keyed"], rows)
        if rows
        else PENDING
    )


def codes() -> str:
    """What a user's key network opens without its code, and who is named; how often somebody is framed."""
    found = load("lock").get("fashion-mnist", {}).get("beyond", {})
    if not found:
        return PENDING
    titles = {"as issued": "as it was issued", "none": "its code taken out", "noise": "noise in place of its code"}
    rows = [
        [f"a user's key network, {titles[name]}", f"{row['accuracy']:.1%}", f"{row['named']:.1%}"]
        for name, row in found["codes"].items()
    ]
    rows.append(["other images with the residual of one that the user keyed", "", f"{found['framed']['named']:.1%}"])
    return table(["keyed by", "right", "that user named"], rows)


def mislabel() -> str:
    """What each way of answering the unauthorised gives away."""
    found = load("lock").get("fashion-mnist", {}).get("mislabel", {})
    kinds = {kind: row for kind, row in found.items() if row}
    if len(kinds) < 2:
        return PENDING
    readers = [way for way in READERS if way in next(iter(kinds.values()))["table"][KEYED]]
    rows = [
        [kind, row_name, *(f"{row['table'][row_name][reader]:.1%}" for reader in readers)]
        for kind, row in kinds.items()
        for row_name in (KEYED, "no key", "foreign residual")
    ]
    return table(["mislabel", "input", *readers], rows)


def attacks() -> str:
    """What attackers end with, beside training from scratch on the same images."""
    found = {name: row for name, row in load("lock").get("fashion-mnist", {}).get("attacks", {}).items() if row}
    if not found:
        return PENDING
    rows = []
    for name, row in found.items():
        share = name.rsplit(", ", 1)[-1]
        scratch = found.get(f"from scratch, {share}") if share.endswith("%") else None
        margin = f"{100 * (row['accuracy'] - scratch['accuracy']):+.1f}" if scratch else ""
        rows.append([name, f"{row['accuracy']:.1%}", margin])
    return table(["attack", "accuracy", "more than from scratch, points"], rows)


def together() -> str:
    """One model that is locked, marked and sealed."""
    part = load("lock").get("fashion-mnist", {}).get("together", {})
    last, first = part.get("locked first"), part.get("marked first")
    if not last:
        return PENDING
    rows = []
    for title, stage in [("locked", last["locked"]), ("then marked and sealed", last["marked and sealed"])]:
        rows.append([f"{title}: keyed, PNG / JPEG 75", f"{stage[KEYED]:.1%} / {stage[JPEG]:.1%}"])
        rows.append([f"{title}: without a key, from chance at most", _points(stage["worst"])])
    rows += [[f"claim on the model {name}", _power(value)] for name, value in last["claim"].items()]
    rows += [
        [f"seal checked: {name}", ("intact" if row["intact"] else "tampered") + f" after {row['queries']} questions"]
        for name, row in last["seal"].items()
    ]
    rows += [
        [f"scan: {name}", f"p = {row['p_value']:.3f}, " + ("flagged" if row["flagged"] else "not flagged")]
        for name, row in last["scan"].items()
    ]
    if first:
        rows.append(["marked first, then locked: the claim before / after", f"{_power(first['claim before'])} / "
                     f"{_power(first['claim after'])}"])  # fmt: skip
    return table(["what", "found"], rows)


def cost() -> str:
    """Keying and training."""
    figures = load("lock")
    if not figures.get("cost"):
        return PENDING
    rows = [
        ["keying an image of 3 x 32 x 32 on a grid of JPEG, in batches", f"{figures['cost']['ms_batched']:.2f} ms"],
        ["the same, one at a time", f"{figures['cost']['ms_alone']:.2f} ms"],
    ]
    for name, title in NAMES.items():
        if found := _latest(name):
            minutes = sum(row["cpu_seconds"] for row in found) / len(found) / 60
            rows.append([f"training a lock, {title}", f"{minutes:.0f} minutes ({found[0]['steps']} steps)"])
    return table(["on one core", "time"], rows)


def _leaks(name: str) -> Rows:
    """The task's owners, those of the plan first, then those of other networks before it."""
    found = load("lock").get(name, {})
    parts = ("leaks", "louder", "again", "grid", "atoms", "leaks before")
    return [row for part in parts for row in found.get(part, [])]


def _latest(name: str) -> Rows:
    """The task's owners of the latest kind that was measured."""
    return next(iter(_by_kind(_leaks(name)).values()), [])


def _by_kind(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Rows by network, and by what is to be said of how their locks were trained; the latest first.

    A row that another training replaced says itself how it differs.
    """
    kinds: dict[tuple[str, str], Rows] = {}
    for row in sorted(rows, key=lambda row: (_age(row), not row.get("marks"))):
        said = f"; {row['but']}" if "but" in row else _KINDS[_age(row)]
        said += MINED if row.get("mined") else ""
        said += f"; whole steps of JPEG {row['grid']}" if row.get("grid") else ""
        said += ", marks" if row.get("marks") else ""
        kinds.setdefault((row["network"], said), []).append(row)
    return kinds


def _age(row: dict[str, Any]) -> int:
    """Which of `_KINDS` a row is of; what another training replaced comes after all of them."""
    return len(_KINDS) if "but" in row else ("same_class_refused" not in row) + ("rivals" not in row)


def _shares(rows: Rows, kind: str) -> str:
    return _spread([100 * row["traced"][kind]["named"]["value"] for row in rows], 1) + " %"


def _mean_percent(rows: list[dict[str, float] | None], reader: str) -> str:
    values = [row[reader] for row in rows if row]
    return f"{sum(values) / len(values):.1%}"


def _spread(values: list[float], digits: int) -> str:
    """Mean, with smallest and largest where there are several; nothing of nothing."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else mean


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"


def _power(p_value: float) -> str:
    return f"p = {p_value:.2g}"
