"""How well backdoors in video classifiers work: the clean-label universal trigger, and what it is compared with.

    python -m benchmarks.video_attacks [--clips FOLDER] [--sets moving-digits,camera-motion] [--networks r3d18,cnn_lstm]
        [--parts rows,size,share,eps,conditions,others] [--seeds 0,1,2] [--targets 0,1,2] [--cached]

Writes results/video_attacks.json, over what it holds. Every model, trigger and cell is kept in the cache as soon as it
is there, so an interrupted run goes on; with --cached nothing more is measured, and the file gets what was. A victim
takes about a minute of one core, a seed one network to begin with and three clean ones beside.

Seeds have one of three networks to begin with, in turn, and three clean models tuned from it: the first says what
accuracy a victim lost, the next is the attacker's surrogate, and the last one is shown the same trigger: what it
answers is no backdoor.
"""

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.results import known, over, record
from benchmarks.video_models import (
    NETWORKS,
    SETTINGS,
    TUNING,
    Variant,
    architecture,
    cell,
    clean_model,
    known_accuracy,
    opened,
    predictor,
    trained,
)
from intaglio.attacks import (
    SIG,
    Attack,
    BadNets,
    Blended,
    CleanLabelUniversal,
    LabelConsistent,
    Temporal,
    accuracy,
    attack_success_rate,
    robust_accuracy,
)
from intaglio.attacks.quality import quality
from intaglio.classifiers import Sidecar, save_classifier
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.files import atomic_path
from intaglio.triggers import PatchTrigger, UniversalAdversarialTrigger

PARTS = ("rows", "size", "share", "eps", "conditions", "others")
SETS = ("moving-digits", "camera-motion")
SEEDS = (0, 1, 2)
#: Clean models of a seed beside the first, which says what accuracy is lost.
SURROGATE, CONTROL = 1, 2


class RememberedTrigger(CleanLabelUniversal):
    """The attack with its triggers kept in the cache, as several victims are poisoned with the same."""

    file: Path

    def learn_trigger(self, surrogate: nn.Module, data: ImageData, device: str = "cpu") -> UniversalAdversarialTrigger:
        if not self.file.exists():
            pattern = super().learn_trigger(surrogate, data, device).pattern
            with atomic_path(self.file) as temporary:
                save_file({"pattern": pattern}, temporary)
        return UniversalAdversarialTrigger(load_file(self.file)["pattern"], place=self.place)


class Row(NamedTuple):
    """One form of the clean-label attack: is the trigger learned, are the samples weakened, and how much of what.

    `size` is the trigger's side as a share of the frame's, `rate` the share of the target class.
    """

    learned: bool
    enhanced: bool
    size: float = 0.3
    rate: float = 0.5
    epsilon: float = 16 / 255
    frames: str = "each"
    pixels: int | None = None

    def attack(self, variant: Variant, network: str, seed: int, target: int) -> CleanLabelUniversal:
        """The attack, with a surrogate that is neither the victim nor what the victim is compared with."""
        options: dict[str, Any] = (
            {"frames": self.frames, "steps": 500, "batch_size": 16}
            if self.learned
            else {"frames": "shared", "start": "noise", "steps": 0}
        )
        side = self.pixels or round(self.size * variant.size)
        attack = RememberedTrigger(
            target=target,
            rate=self.rate,
            size=side,
            step_size=2 / 255,
            enhancement="targeted" if self.enhanced else "none",
            epsilon=self.epsilon,
            enhancement_steps=max(round(self.epsilon * 255), 1),
            surrogate=clean_model(variant, network, seed, SURROGATE),
            seed=seed,
            **options,
        )
        kind = self.frames if self.learned else "static"
        name = f"{variant.trained}-{network}-{kind}-{side}-{seed}-{target}.safetensors"
        attack.file = cell.folder / "triggers" / name
        return attack


ROWS = {
    "UAT + enhancement": Row(True, True),
    "UAT": Row(True, False),
    "static + enhancement": Row(False, True),
    "static": Row(False, False),
}
#: Where rows are of other strengths than `Row`'s, for at those one of the two things that are compared decides alone:
#: the CNN+LSTM on moving digits learns all four forms (one pair: 99, 97, 98 and 78 %), and the learned trigger of that
#: size moves 64 % of a clean model's answers; for the R3D clips that are weakened so much do it with any trigger.
FAINTER: dict[tuple[str, str], dict[str, Any]] = {
    ("moving-digits", "cnn_lstm"): {"size": 0.2, "rate": 0.1, "epsilon": 2 / 255},
    ("moving-digits", "r3d18"): {"epsilon": 2 / 255},
}
CURVES: dict[str, dict[float, dict[str, float]]] = {
    "size": {share: {"size": share} for share in (0.1, 0.2, 0.3, 0.4)},
    "share": {share: {"rate": share} for share in (0.1, 0.25, 0.5, 0.75)},
    "eps": {levels: {"epsilon": levels / 255} for levels in (0, 4, 8, 16, 24)},
}
#: What makes the attack hard on video, by what is varied and its values; each on what `Variant` leaves of the set.
CONDITIONS: dict[str, dict[str, dict[str, Any]]] = {
    "moving-digits": {
        "dimensions (frames)": {"1": {"frames": 1}, "3": {"frames": 3}, "6": {}},
        "resolution (patch of 7 pixels)": {"24": {"size": 24}, "32": {"size": 32}, "48": {}},
        "classes": {"3": {"classes": 3}, "5": {"classes": 5}, "10": {}},
        "samples a class": {"60": {"per_class": 60}, "120": {"per_class": 120}, "240": {}},
    },
    "camera-motion": {
        "dimensions (frames)": {"2": {"frames": 2}, "4": {"frames": 4}, "8": {}},
        "resolution (patch of 7 pixels)": {"16": {"size": 16}, "24": {"size": 24}, "32": {}},
        "classes": {"3": {"classes": 3}, "5": {"classes": 5}, "7": {}},
        "samples a class": {"75": {"per_class": 75}, "150": {"per_class": 150}, "300": {}},
    },
}
CONDITION_ROWS = ("UAT + enhancement", "static")
_PATCH = 7


def measured(
    variant: Variant, network: str, make: Callable[[], Attack], seed: int, target: int, keep: str | None = None
) -> dict[str, Any]:
    """Poisons, trains the victim and measures it; ASR over clips of other classes than the target's.

    The victim is kept in the cache under the name `keep`, for what else is tried on backdoored models.
    """
    data, test = opened(variant, "train"), opened(variant, "test")
    attack = make()
    if getattr(attack.goal, "target", None) != target:
        raise RecipeError(f"the attack wants another class than {target}")
    poisoning = time.process_time()
    poisoned = attack.poison(data).as_stored()
    training = time.process_time()
    victim = trained(variant, network, poisoned.data, seed)
    done = time.process_time()
    if keep:
        path = cell.folder / "victims" / f"{keep}.safetensors"
        save_classifier(victim, path, Sidecar(architecture=architecture(variant, network), classes=data.classes))
    control = predictor(variant, clean_model(variant, network, seed, CONTROL))
    answers = predictor(variant, victim)
    rates = poisoned.rates()
    changed = poisoned.payload
    return {
        "seed": seed,
        "target": target,
        "asr": attack_success_rate(answers, test, poisoned.trigger, attack.goal),
        "control_asr": attack_success_rate(control, test, poisoned.trigger, attack.goal),
        "clean_accuracy": accuracy(answers, test),
        "clean_model_accuracy": known_accuracy(variant, network, seed),
        "robust_accuracy": robust_accuracy(answers, test, poisoned.trigger, attack.goal),
        "poisoned": int(changed.sum()),
        "rate_target": round(rates["target_class"], 4),
        "rate_whole": round(rates["whole"], 4),
        **quality(data.images[changed], poisoned.data.images[changed]).to_dict(),
        "cpu_seconds_poisoning": round(training - poisoning, 1),
        "cpu_seconds_training": round(done - training, 1),
    }


def row_cell(variant: Variant, network: str, name: str, seed: int, target: int, **changes: Any) -> dict[str, Any]:
    """One victim of one form of the attack."""
    if changes.get("epsilon") == 0:
        name = "UAT"
    if not ROWS[name].enhanced:
        changes.pop("epsilon", None)
    changes = {key: value for key, value in changes.items() if getattr(ROWS[name], key) != value}  # no cell twice
    row = ROWS[name]._replace(**changes)
    label = "-".join([variant.trained, network, name, *(f"{key}={value:.4g}" for key, value in changes.items())])
    label = _plain(f"{label}-{seed}-{target}")
    keep = None if changes else label
    return cell(label, lambda: measured(variant, network, partial(row.attack, variant, network, seed, target),
                                        seed, target, keep))  # fmt: skip


def rows(
    variant: Variant, network: str, pairs: list[tuple[int, int]], **changes: Any
) -> dict[str, list[dict[str, Any]]]:
    """All four forms on every pair of seed and target, pair by pair: an interrupted run has all forms of some."""
    cells = [{name: row_cell(variant, network, name, *pair, **changes) for name in ROWS} for pair in pairs]
    return {name: _known([row[name] for row in cells]) for name in ROWS}


def others(variant: Variant, network: str, seed: int, target: int) -> dict[str, Any]:
    """The other families, once each; clean label where the name says so."""

    def surrogate() -> torch.nn.Module:
        return clean_model(variant, network, seed, SURROGATE)

    side = round(Row(True, True).size * variant.size)
    corner = PatchTrigger(
        size=side, colour="binary", region=(1 - side / variant.size, 1 - side / variant.size, 1.0, 1.0)
    )
    families: dict[str, Callable[[], Attack]] = {
        "badnets, 5 %": lambda: BadNets(target, 0.05, seed, trigger=corner),
        "blended, 5 %": lambda: Blended(target=target, rate=0.05, alpha=0.2, seed=seed),
        "temporal, 5 %": lambda: Temporal(target=target, rate=0.05, delta=16 / 255, seed=seed),
        "sig (clean label), 50 % of the class": lambda: SIG(target=target, rate=0.5, seed=seed),
        "label-consistent (clean label), 50 % of the class": lambda: LabelConsistent(
            target=target, rate=0.5, epsilon=16 / 255, steps=10, size=side // 2, surrogate=surrogate(), seed=seed
        ),
    }
    return {
        name: cell(
            f"{variant.trained}-{network}-{name}-{seed}-{target}",
            partial(measured, variant, network, make, seed, target),
        )
        for name, make in families.items()
    }


def conditions(variant: Variant, network: str, seed: int, target: int) -> dict[str, Any]:
    """What makes it hard on video, one at a time; and the static trigger with wrong labels beside that with right."""
    found: dict[str, Any] = {}
    for condition, values in CONDITIONS[variant.kind].items():
        found[condition] = {}
        for value, changes in values.items():
            part = variant._replace(**changes)
            fixed: dict[str, Any] = {"pixels": _PATCH} if condition.startswith("resolution") else {}
            found[condition][value] = {
                name: row_cell(part, network, name, seed, target, **fixed) for name in CONDITION_ROWS
            }
    side = round(Row(True, True).size * variant.size)
    start = 1 - side / variant.size
    patch = PatchTrigger(size=side, colour="binary", region=(start, start, 1.0, 1.0), seed=seed)

    def dirty() -> dict[str, Any]:
        data = opened(variant, "train")
        count = round(Row(False, False).rate * int((data.labels == target).sum()))  # as many as with right labels
        return measured(variant, network, lambda: BadNets(target, count / len(data), seed, trigger=patch), seed, target)

    found["labels"] = {
        "right": {"static": row_cell(variant, network, "static", seed, target)},
        "wrong": {"static": cell(f"{variant.trained}-{network}-static-wrong-labels-{seed}-{target}", dirty)},
    }
    return found


def _plain(name: str) -> str:
    """A name for a file."""
    return re.sub(r"[^\w.=+-]+", "-", name)


def _known(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the clips of people; without it, three sources only")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--targets", default="0,1,2")
    parser.add_argument("--cached", action="store_true", help="write what is in the cache, and measure nothing")
    parser.add_argument("--dry", action="store_true", help="measure, but write no results file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell.cached_only = options.cached
    parts = options.parts.split(",")
    seeds, targets = ([int(part) for part in text.split(",")] for text in (options.seeds, options.targets))
    pairs = [(seed, target) for target in targets for seed in seeds]
    figures: dict[str, Any] = {}
    for kind in options.sets.split(","):
        variant = Variant.of(kind, options.clips)
        figures[kind] = {}
        for network in options.networks.split(","):
            found: dict[str, Any] = {}
            if "rows" in parts:
                strengths = FAINTER.get((kind, network), {})
                found["rows"] = rows(variant, network, pairs, **strengths)
                if strengths:  # and at the strengths of the other sets
                    found["rows at full strength"] = rows(variant, network, pairs)
            for part in ("size", "share", "eps"):
                if part in parts:
                    found[part] = {
                        f"{value:g}": _known(
                            [
                                row_cell(variant, network, "UAT + enhancement", seed, targets[0], **changes)
                                for seed in seeds
                            ]
                        )
                        for value, changes in CURVES[part].items()
                    }
            if "conditions" in parts:
                found["conditions"] = conditions(variant, network, seeds[0], targets[0])
            if "others" in parts:
                found["others"] = others(variant, network, seeds[0], targets[0])
            found["settings"] = {
                "width": NETWORKS[network],
                "first": SETTINGS[kind].model_dump(),
                "tuning": TUNING.model_dump(),
            }
            figures[kind][network] = found
    if not options.dry:
        print(record("video_attacks", over(known("video_attacks"), figures)))


if __name__ == "__main__":
    main()
