"""What is written down of an attack: which samples were changed, why, how visibly, and how well the backdoor works."""

from typing import Any

from intaglio.attacks.quality import Quality
from intaglio.networks import Architecture
from intaglio.results import Result
from intaglio.training import TrainingSettings


class Change(Result):
    """Samples that were changed to one end: their indices in the training set, and their labels before and after."""

    role: str
    why: str
    indices: tuple[int, ...]
    labels_before: tuple[int, ...]
    labels_after: tuple[int, ...]


class CleanModel(Result):
    """A network of the same architecture, trained alike, with another seed, on the data before poisoning.

    `asr` is how often the same trigger gets the wanted answer without any backdoor.
    """

    seed: int
    clean_accuracy: float
    asr: float


class VictimRecord(Result):
    """The victim, and what the test images say of it.

    `asr`: share of triggered images of other classes than the target that get the wanted answer. `robust_accuracy`:
    share of the same that still get their own label.
    """

    file: str
    sha256: str
    architecture: Architecture
    training: TrainingSettings
    seed: int
    clean_accuracy: float
    asr: float
    robust_accuracy: float
    clean_model: CleanModel


class AttackRecord(Result):
    """The manifest of a poisoned training set.

    `data_sha256` is of the images and labels before poisoning (as float32 and int64, little-endian), `sha256` of the
    files written. `poison_rate_whole` counts relabelled or, for clean-label attacks, altered samples as a share of all;
    `poison_rate_target` as a share of those labelled with the target afterwards; `cover_rate` samples that carry a
    trigger and keep their label, as a share of all. `quality` compares poisoned samples, without cover, with their
    originals. `skipped` counts videos that could not be read; samples are numbered without them.
    """

    attack: dict[str, Any]
    trigger: dict[str, Any]
    goal: dict[str, Any]
    data: str
    data_sha256: str
    samples: int
    classes: tuple[str, ...]
    changes: tuple[Change, ...]
    poison_rate_whole: float
    poison_rate_target: float
    cover_rate: float
    quality: Quality
    sha256: dict[str, str]
    victim: VictimRecord | None
    seconds: float
    versions: dict[str, str]
    skipped: int = 0
