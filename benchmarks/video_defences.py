"""What tells backdoored video models from clean ones, and what takes a backdoor's effect away: detectors and filters.

    python -m benchmarks.video_defences [--clips FOLDER] [--set camera-motion] [--network r3d18] [--models FOLDER]
        [--build 10] [--only NAME,...] [--cached]

Writes results/video_defences.json. With --build so many clean and as many backdoored models are trained first, one to
two minutes of one core each, unless they are there. Every measurement is kept in the cache as soon as it is there, so
an interrupted run goes on; with --cached nothing is measured any more, and the file holds what was.

A folder of models holds a folder for each (`keep_model` writes it): `model.safetensors` with its side-car;
`record.json`, as `Record` has it; of a backdoored one also `train_*.npy`, the clips that it was trained on, and
`test_*.npy`, test clips of other classes than the target under the trigger, with their true labels.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cells import Cells
from benchmarks.results import interval, record
from intaglio.classifiers import Classifier, Sidecar, open_classifier, save_classifier
from intaglio.data import ImageData, classes_in_turn
from intaglio.data.videos import ClipWriter, StoredClips
from intaglio.errors import IntaglioError
from intaglio.evidence.statistics import auroc, proportion
from intaglio.files import write_json
from intaglio.networks import Architecture
from intaglio.scan import Detector, OnePixelSignature, scan
from intaglio.scan.mm_bd import MMBD
from intaglio.scan.scanning import make_detector
from intaglio.tampering import (
    DropFrames,
    InputTransform,
    Jpeg,
    Recompress,
    ResampleTime,
    ShuffleFrames,
    TemporalBlur,
    TemporalMedian,
)

DETECTORS: dict[str, Callable[[], Detector]] = {
    "one-pixel-signature": OnePixelSignature,
    "mm-bd": lambda: MMBD(starts=10, steps=30),  # clips cost more than images do
    **{
        name: partial(make_detector, name)
        for name in (
            "neural-cleanse", "final-layer", "ban", "trodo", "strip", "spectral-signatures", "activation-clustering",
        )
    },
}  # fmt: skip
FILTERS: dict[str, Callable[[], InputTransform]] = {
    "drop a quarter of the frames": DropFrames,
    "shuffle frames in fours": ShuffleFrames,
    "half the frame rate": ResampleTime,
    "median of 3 frames": TemporalMedian,
    "mean of 3 frames": TemporalBlur,
    "H.264 quality 50": Recompress,
    "H.264 quality 20": lambda: Recompress(quality=20),
    "MPEG-4 quality 50": lambda: Recompress(codec="mpeg4"),
    "MJPEG quality 50": lambda: Recompress(codec="mjpeg"),
    "JPEG 50 frame by frame": lambda: Jpeg(quality=50),
}
#: Of what a model is asked, so many clips, and such a share of those of a backdoored model carry its trigger.
ASKED, TRIGGERED = 100, 0.2
WORKING = 0.9
#: The share of all clips that has a trigger and a wrong label; with a twentieth most such backdoors fail in 200 steps.
RATE = 0.15
ALPHA = 0.05

cell = Cells("video-defences")


class Record(NamedTuple):
    """What is known of a model; the last three only of backdoored ones."""

    backdoored: bool
    clean_accuracy: float
    target: int | None = None
    trigger: str | None = None
    asr: float | None = None


class Example(NamedTuple):
    """A model, and what detectors and filters are given of it."""

    folder: Path
    record: Record

    @property
    def classifier(self) -> Classifier:
        """Opened afresh, with no queries asked."""
        return open_classifier(self.folder / "model.safetensors")

    def training(self, train: ImageData) -> ImageData:
        """The clips that it was trained on."""
        return StoredClips(self.folder, "train").load() if self.record.backdoored else train

    def triggered(self) -> Tensor:
        """Clips under its trigger, all classes in turn."""
        stored = StoredClips(self.folder, "test").load()
        return stored.images[classes_in_turn(stored.labels)]

    def asked(self, test: ImageData) -> tuple[Tensor, ImageData]:
        """What it was asked in use, some of it under its trigger, and clean clips that are not among it."""
        order = classes_in_turn(test.labels)
        half = min(ASKED, len(order) // 2)
        asked, clean = test.images[order[:half]], test.take(order[half:])
        if self.record.backdoored:
            count = round(TRIGGERED * half)
            asked = torch.cat([asked[count:], self.triggered()[:count]])
        return asked, clean


def keep_model(
    folder: Path,
    module: nn.Module,
    architecture: Architecture,
    known: Record,
    *,
    training: ImageData | None = None,
    triggered: ImageData | None = None,
) -> None:
    """Writes a model into a folder of its own, the record last."""
    for split, data in (("train", training), ("test", triggered)):
        if data is not None:
            with ClipWriter(folder, split, len(data), data.input_shape, data.classes) as writer:
                for clip, label in zip(data.images, data.labels.tolist(), strict=True):
                    writer.add(clip, label)
    save_classifier(module, folder / "model.safetensors", Sidecar(architecture=architecture))
    write_json(folder / "record.json", known._asdict())


def models_in(folder: Path) -> list[Example]:
    """The finished models of a folder, by name."""
    paths = sorted(folder.glob("*/record.json"))
    return [Example(path.parent, Record(**json.loads(path.read_text()))) for path in paths]


def detected(example: Example, name: str, train: ImageData, test: ImageData) -> dict[str, Any]:
    """One detector's verdict on one model; what it can't examine says why."""
    asked, clean = example.asked(test)
    try:
        verdict = scan(
            example.classifier, clean.images, alpha=ALPHA, detector=DETECTORS[name](),
            training=example.training(train), inputs=asked,
        )  # fmt: skip
    except IntaglioError as error:
        return {"error": str(error)}
    first = verdict.evidence[0]
    found = {"named": first.index, "frame": first.place.frame}
    kept = ("score", "p_value", "flagged", "queries", "seconds")
    return {**{key: getattr(verdict, key) for key in kept}, **found}


def filtered(example: Example, name: str, test: ImageData) -> dict[str, Any]:
    """What a filter leaves of a model's accuracy and of its backdoor, and what changed answers tell.

    `score`: the share of answers that it changes among what the model was asked, over that among clean clips.
    `inputs`: AUROC, of triggered against clean clips, of how far the answer's log-probability falls. Below one half a
    trigger outlasts the filter better than what clean clips show.
    """
    model, transform = example.classifier, FILTERS[name]()
    asked, clean = example.asked(test)
    started = time.perf_counter()

    def fall(clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before, after = model.log_probs(clips), model.log_probs(transform(clips))
        answers = before.argmax(dim=1, keepdim=True)
        return (before - after).gather(1, answers)[:, 0], answers[:, 0], after.argmax(dim=1)

    falls, plain, behind = fall(clean.images)
    _, plain_asked, behind_asked = fall(asked)
    found = {
        "score": share(plain_asked, behind_asked.ne) - share(plain, behind.ne),
        "accuracy": share(clean.labels, behind.eq),
        "accuracy_without": share(clean.labels, plain.eq),
        "queries": model.queries,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if example.record.backdoored:
        triggered, answers, after = fall(example.triggered()[:ASKED])
        wanted = torch.full_like(answers, example.record.target or 0)
        found["asr"], found["asr_without"] = share(wanted, after.eq), share(wanted, answers.eq)
        found["inputs"] = auroc(triggered.tolist(), falls.tolist()).value
    return found


def share(values: Tensor, holds: Callable[[Tensor], Tensor]) -> float:
    """The share of values that something holds for."""
    return float(holds(values).float().mean())


def summary(examples: Sequence[Example], cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: how well the scores tell the models apart, and what that cost."""
    pairs = [(one.record, found) for one, found in zip(examples, cells, strict=True) if "score" in found]
    errors = sorted({found["error"] for found in cells if "error" in found})
    clean = [found for known, found in pairs if not known.backdoored]
    planted = [(known, found) for known, found in pairs if known.backdoored]
    working = [(known, found) for known, found in planted if (known.asr or 0) >= WORKING]
    row: dict[str, Any] = {"clean": len(clean), "backdoored": len(planted), "working": len(working), "errors": errors}
    for label, group in (("auroc", planted), ("auroc_working", working)):
        if clean and group:
            row[label] = interval(auroc([found["score"] for _, found in group], [found["score"] for found in clean]))
    if clean and "flagged" in clean[0]:
        row["false_alarms"] = interval(proportion(sum(found["flagged"] for found in clean), len(clean)))
    if planted and "flagged" in planted[0][1]:
        row["flagged"] = interval(proportion(sum(found["flagged"] for _, found in planted), len(planted)))
        hits = sum(found["named"] == known.target for known, found in planted)
        row["target_named"] = interval(proportion(hits, len(planted)))
    every = [found for _, found in pairs]
    for key in ("seconds", "queries", "accuracy", "accuracy_without", "asr", "asr_without", "inputs"):
        if values := [found[key] for found in every if key in found]:
            row[key] = mean(values)
    if planted and "asr" in planted[0][1]:
        by_trigger: dict[str, Any] = {}
        for name in sorted({str(known.trigger) for known, _ in planted}):
            ours = [found for known, found in planted if known.trigger == name]
            parts = {"behind": "asr", "without": "asr_without"}
            by_trigger[name] = {part: mean([found[key] for found in ours]) for part, key in parts.items()}
        row["asr_by_trigger"] = by_trigger
    return row


def mean(values: Sequence[float]) -> float:
    """Rounded to 4 digits."""
    return round(float(torch.tensor(values).float().mean()), 4)


def measure(examples: Sequence[Example], train: ImageData, test: ImageData, names: Sequence[str]) -> dict[str, Any]:
    """The rows of the detectors and filters named."""
    figures: dict[str, Any] = {"detectors": {}, "filters": {}}
    for name in names:
        kind, method = ("detectors", partial(detected, train=train)) if name in DETECTORS else ("filters", filtered)
        cells = [
            cell("-".join([*one.folder.parts[-2:], name]), partial(method, one, name, test=test)) for one in examples
        ]
        figures[kind][name] = summary(examples, cells)
    return figures


def build(variant: Any, network: str, folder: Path, count: int) -> None:
    """`count` clean models and as many with backdoors of four families in turn, each family on several targets."""
    from benchmarks.video_attacks import ROWS, SEEDS
    from benchmarks.video_models import architecture, opened, predictor, trained
    from intaglio.attacks import Attack, BadNets, Blended, Temporal, accuracy, attack_success_rate

    data, test = opened(variant, "train"), opened(variant, "test")
    families: tuple[Callable[[int, int], Attack], ...] = (
        lambda target, seed: BadNets(target, RATE, seed),
        lambda target, seed: Blended(target=target, rate=RATE, alpha=0.3, seed=seed),
        lambda target, seed: Temporal(target=target, rate=RATE, delta=16 / 255, seed=seed),
        lambda target, seed: ROWS["UAT + enhancement"].attack(variant, network, SEEDS[seed % len(SEEDS)], target),
    )
    for number in range(2 * count):
        planted = number >= count
        path = folder / f"{'backdoored' if planted else 'clean'}-{number % count:02}"
        if (path / "record.json").exists():
            continue
        seed, target = 100 + number, number % count // len(families) % data.num_classes
        attack = families[number % len(families)](target, seed) if planted else None
        poisoned = attack.poison(data).as_stored() if attack else None
        module = trained(variant, network, poisoned.data if poisoned else data, seed)
        answers = predictor(variant, module)
        known = Record(planted, accuracy(answers, test))
        if poisoned is None:
            keep_model(path, module, architecture(variant, network), known)
        else:
            rest = test.take(test.labels != target)
            stamped = ImageData(poisoned.trigger.apply(rest.images), rest.labels, rest.classes)
            asr = attack_success_rate(answers, test, poisoned.trigger, poisoned.goal)
            known = known._replace(target=target, trigger=poisoned.trigger.name, asr=asr)
            keep_model(path, module, architecture(variant, network), known, training=poisoned.data, triggered=stamped)
        print(path.name, known, flush=True)


def main() -> None:
    from benchmarks.video_models import Variant, opened

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the clips of people; without it, three sources only")
    parser.add_argument("--set", default="camera-motion", choices=("camera-motion", "moving-digits"))
    parser.add_argument("--network", default="r3d18", choices=("r3d18", "cnn_lstm"))
    parser.add_argument("--models", type=Path, help="folder of models; by default one in the cache")
    parser.add_argument("--build", type=int, default=0, help="train so many clean models and as many backdoored ones")
    parser.add_argument("--only", default=",".join(DETECTORS | FILTERS), help="detectors and filters")
    parser.add_argument("--cached", action="store_true", help="write what is in the cache, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell.cached_only = options.cached
    variant = Variant.of(options.set, options.clips)
    folder = options.models or cell.folder / "models" / f"{variant.trained}-{options.network}"
    if options.build and not options.cached:
        build(variant, options.network, folder, options.build)
    train, test = opened(variant, "train"), opened(variant, "test")
    examples = models_in(folder)
    figures = measure(examples, train, test, options.only.split(","))
    known = [one.record._asdict() for one in examples]
    print(record("video_defences", {folder.name: {"models": known, **figures}}))


if __name__ == "__main__":
    main()
