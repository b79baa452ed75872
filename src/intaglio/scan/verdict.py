"""What a scan found: a frozen verdict with its p-value, its evidence and its costs."""

import base64
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.results import Result


class Subject(Result):
    """What was looked at, and how: with which `preprocessing` of raw images, and its answers taken for what `outputs`.

    `sha256` is that of the file, where there is one; the two others come from the side-car beside it, or the command
    line, and are None in older verdicts.
    """

    source: str
    sha256: str | None
    format: str
    input_shape: tuple[int, ...]
    num_classes: int
    access: str
    task: str | None
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    outputs: Literal["logits", "probabilities", "log-probabilities", "labels"] | None = None

    def class_name(self, index: int) -> str:
        """The class's name, or "class 3" where names are not known."""
        return self.classes[index] if self.classes else f"class {index}"


class Place(Result):
    """A rectangle of pixels, from its upper left corner; of a clip in one `frame`, from 0, or (None) in all of them."""

    row: int
    column: int
    height: int
    width: int
    frame: int | None = None


class ClassEvidence(Result):
    """One class: how suspicious it is as a backdoor's target (higher: more), and where its signature peaks."""

    index: int
    suspicion: float
    peak: float
    place: Place


class ErrorRate(Result):
    """A measured rate: `events` in `trials`, with its exact (Clopper-Pearson) 95 % interval."""

    events: int
    trials: int
    rate: float
    low: float
    high: float


class CalibrationSummary(Result):
    """The clean models that a score was ranked against, and how often clean test models were accused.

    `false_alarms_by_task` are for each of `tasks` those of a detector that never saw the task; () where not measured.
    `statement` says in words what the p-value is worth for the model at hand. `clean_scores` are the scores of the
    clean models, each from a detector that never saw that model. `confidence`: how sure the model at hand is of its
    answers (mean log odds), where that decides which clean models it is ranked among.
    """

    name: str
    tasks: tuple[str, ...]
    clean_models: int
    backdoored_models: int
    clean_scores: tuple[float, ...]
    false_alarms: ErrorRate | None = None
    false_alarms_by_task: tuple[ErrorRate, ...] = ()
    false_alarm_level: float = 0.05
    statement: str
    confidence: float | None = None

    @model_validator(mode="after")
    def _a_rate_a_task(self) -> Self:
        if len(self.false_alarms_by_task) not in (0, len(self.tasks)):
            raise ValueError(f"{len(self.false_alarms_by_task)} false-alarm rates of {len(self.tasks)} tasks")
        return self


class EncodedMaps(Result):
    """Signature maps `[K, h, w]`, or `[K, T, h, w]`, of the classes listed, as base64 of little-endian float16."""

    base: str
    variant: str
    classes: tuple[int, ...]
    shape: tuple[int, int, int] | tuple[int, int, int, int]
    data: str = Field(repr=False)

    @classmethod
    def encode(cls, maps: NDArray[np.float32], *, base: str, variant: str, classes: tuple[int, ...]) -> "EncodedMaps":
        """Packs `maps` `[len(classes), (T,) h, w]`."""
        count, *frames, height, width = maps.shape
        shape = (count, frames[0], height, width) if frames else (count, height, width)
        data = base64.b64encode(np.clip(maps, -6e4, 6e4).astype("<f2").tobytes()).decode()
        return cls(base=base, variant=variant, classes=classes, shape=shape, data=data)

    def decode(self) -> NDArray[np.float32]:
        """The maps, float32 `[len(classes), (T,) h, w]`."""
        return np.frombuffer(base64.b64decode(self.data), "<f2").reshape(self.shape).astype(np.float32)


class Part(Result):
    """One detector of several that a verdict was made of: its own p-value, and what it weighs (in score per -log p)."""

    detector: str
    p_value: float
    weight: float
    target_class: int
    seconds: float


class Verdict(Result):
    """The answer to "does this model hide a backdoor?".

    `score`: higher is more suspicious. `p_value`: the share of clean models, this one counted in, that score as high
    or higher; never below 1 / (clean models + 1). `flagged`: `p_value <= alpha`. `calibrated`: whether those clean
    models are of this model's task; if not, read `calibration.statement`. `target_class`: the most suspicious class
    of a flagged model.
    """

    kind: Literal["intaglio.verdict/1"] = "intaglio.verdict/1"
    statement: str
    flagged: bool
    p_value: float
    alpha: float
    score: float
    target_class: int | None
    calibrated: bool
    detector: str
    subject: Subject
    task: str | None
    queries: int
    seconds: float
    peak_memory_mb: float
    seed: int
    grid: tuple[int, int] | None = Field(description="blocks probed instead of single pixels, if any")
    versions: dict[str, str]
    calibration: CalibrationSummary
    evidence: tuple[ClassEvidence, ...] = Field(description="most suspicious class first")
    maps: EncodedMaps
    frame_maps: EncodedMaps | None = Field(default=None, description="of clips: the same frame by frame, in blocks")
    parts: tuple[Part, ...] = Field(default=(), description="the detectors of a stack, heaviest evidence first")
