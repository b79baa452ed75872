"""Small video networks on the sets of clips: how they are trained, and what of a set they are trained on.

As in the paper, whoever is attacked does not begin at nothing: a network is trained on other clips first, which nobody
touched, and then tuned on a set of his own, which may be poisoned. The attacker tunes the same network. (Trained from
random weights, these small networks learn any patch: a static one on a quarter of the target class, labels right, was
answered with the target on 95 to 100 % of the clips of three victims, two with weakened clips. With networks of
other weights for the attacker, the learned trigger came to 99, 22 and 7 % with three of them.)
"""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.cells import Cells
from benchmarks.video_sets import video_set
from intaglio.attacks import accuracy
from intaglio.attacks.success import Predict
from intaglio.classifiers import Sidecar, TorchClassifier, save_classifier
from intaglio.data import ImageData
from intaglio.files import atomic_path, write_json
from intaglio.networks import Architecture
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings, train

#: Widths at which a network takes a core one to two minutes, and tuning it half a minute.
NETWORKS = {"r3d18": 8, "cnn_lstm": 8}
#: Of the first training, on other clips.
SETTINGS = {
    "moving-digits": TrainingSettings(steps=500, batch_size=32, learning_rate=3e-3),
    "camera-motion": TrainingSettings(steps=500, batch_size=32, learning_rate=3e-3),
}
#: Of tuning.
TUNING = TrainingSettings(steps=200, batch_size=32, learning_rate=3e-3)
_OTHER_CLIPS, _BEGINNINGS = 1, 3

cell = Cells("video-attacks")


class _Whole(NamedTuple):
    """Sides, frames and numbers of a set's clips; twice the usual number of digits, as they come in so many hands."""

    size: int
    length: int
    counts: dict[str, int]


_WHOLE = {
    "moving-digits": _Whole(48, 6, {"train": 2400, "test": 400}),
    "camera-motion": _Whole(32, 8, {"train": 2100, "test": 420}),
}


class Variant(NamedTuple):
    """A set, or what is left of it: evenly spread frames, smaller ones, the first classes, fewer clips of each.

    A training run has as many steps on every variant of a set.
    """

    kind: str
    clips: Path | None
    size: int
    frames: int | None = None
    classes: int | None = None
    per_class: int | None = None

    @classmethod
    def of(cls, kind: str, clips: Path | None) -> Self:
        """The whole set."""
        return cls(kind, clips, _WHOLE[kind].size)

    @property
    def label(self) -> str:
        """For names of files."""
        parts = {
            "size": self.size if self.size != _WHOLE[self.kind].size else None,
            "frames": self.frames,
            "classes": self.classes,
            "per-class": self.per_class,
        }
        footing = self.kind if self.clips else f"{self.kind}-wheel"
        return "-".join([footing, *(f"{name}{value}" for name, value in parts.items() if value)])

    @property
    def trained(self) -> str:
        """For names of files: what was trained otherwise is not taken for it."""
        return f"{self.label}-{SETTINGS[self.kind].steps}+{TUNING.steps}x{TUNING.learning_rate:g}"


@cache
def opened(variant: Variant, split: str, seed: int = 0) -> ImageData:
    """The clips of a variant; another seed gives other clips of the same footage."""
    size, length, counts = _WHOLE[variant.kind]
    data = video_set(variant.kind, split, size=size, length=length, clips=variant.clips, count=counts[split], seed=seed)
    if variant.classes:
        data = data.take(data.labels < variant.classes)
        data = ImageData(data.images, data.labels, data.classes[: variant.classes], data.name)
    if variant.per_class and split == "train":
        rank = torch.zeros_like(data.labels)
        for label in range(data.num_classes):
            mine = data.labels == label
            rank[mine] = torch.arange(int(mine.sum()))
        data = data.take(rank < variant.per_class)
    images = data.images
    if variant.frames:
        images = images[:, torch.linspace(0, images.shape[1] - 1, variant.frames).round().long()]
    if variant.size != images.shape[-1]:
        small = interpolate(images.flatten(0, 1), (variant.size,) * 2, mode="bilinear", antialias=True)
        images = small.clamp(0, 1).view(*images.shape[:3], variant.size, variant.size)
    return ImageData(images, data.labels, data.classes, data.name)


def architecture(variant: Variant, network: str) -> Architecture:
    """The network for a variant's clips."""
    data = opened(variant, "train")
    return Architecture(
        name=network, input_shape=data.input_shape, num_classes=data.num_classes, width=NETWORKS[network]
    )


def beginning(variant: Variant, network: str, seed: int) -> nn.Module:
    """A network trained on other clips of the variant, now unless it was before: where tuning begins.

    Of these there are a few, which seeds have in turn, each trained on all clips whatever tuning has: few samples are
    the victim's, not those of his network's makers.
    """
    first, seed = variant._replace(per_class=None), seed % _BEGINNINGS
    path = cell.folder / "beginnings" / f"{first.label}-{SETTINGS[first.kind].steps}-{network}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initialisation"))
        module = architecture(first, network).build()
    if not path.exists():
        train(module, opened(first, "train", _OTHER_CLIPS), SETTINGS[first.kind], seed=seed)
        with atomic_path(path) as temporary:
            save_file(module.state_dict(), temporary)
    module.load_state_dict(load_file(path))
    return module


def trained(variant: Variant, network: str, data: ImageData, seed: int, run: int = 0) -> nn.Module:
    """The network of this seed tuned on `data`; another run draws other batches."""
    return train(beginning(variant, network, seed), data, TUNING, seed=derive_seed(seed, "tuning", run)).eval()


def clean_model(variant: Variant, network: str, seed: int, run: int = 0) -> nn.Module:
    """A model of the clean set, trained now unless it was before."""
    path = _path(variant, network, seed, run)
    built = architecture(variant, network)
    if not path.with_suffix(".json").exists():
        started = time.process_time()
        module = trained(variant, network, opened(variant, "train"), seed, run)
        seconds = round(time.process_time() - started, 1)
        save_classifier(module, path, Sidecar(architecture=built, classes=opened(variant, "train").classes))
        found = accuracy(predictor(variant, module), opened(variant, "test"))
        write_json(path.with_suffix(".json"), {"accuracy": found, "cpu_seconds": seconds})
        print(path.stem, json.loads(path.with_suffix(".json").read_text()), flush=True)
    module = built.build()
    module.load_state_dict(load_file(path))
    return module.eval()


def known_accuracy(variant: Variant, network: str, seed: int) -> float:
    """A clean model's accuracy on the test clips."""
    clean_model(variant, network, seed)
    found: dict[str, Any] = json.loads(_path(variant, network, seed, 0).with_suffix(".json").read_text())
    return float(found["accuracy"])


def predictor(variant: Variant, module: nn.Module) -> Predict:
    """What a model answers."""
    data = opened(variant, "test")
    classifier = TorchClassifier(module, input_shape=data.input_shape, num_classes=data.num_classes)

    def predict(clips: Tensor) -> Tensor:
        return classifier.predict(clips)

    return predict


def _path(variant: Variant, network: str, seed: int, run: int) -> Path:
    return cell.folder / "clean" / f"{variant.trained}-{network}-{seed}.{run}.safetensors"
