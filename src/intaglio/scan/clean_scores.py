"""Scores of clean models, by detector and task: what a score is ranked against. JSON; nothing in it is executed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, JsonValue, model_validator

from intaglio.errors import RecipeError
from intaglio.evidence.statistics import conformal_p_value, proportion
from intaglio.files import write_json
from intaglio.results import Result
from intaglio.scan.confidence import Rank, alike, ranked_among
from intaglio.scan.verdict import CalibrationSummary, ErrorRate

#: Inside a folder of one's own; the shipped ones lie in `clean_scores/` by detector.
FILE = "clean-scores.json"
_ALPHA = 0.05


class TaskScores(Result):
    """Scores of clean models of one task; `tested` are clean models never ranked against, to count false alarms on.

    `confidence` and `tested_confidence` say how sure each of them is of its answers; empty where that is not known.
    """

    task: str
    input_shape: tuple[int, ...]
    num_classes: int
    scores: tuple[float, ...] = Field(min_length=1)
    tested: tuple[float, ...] = ()
    confidence: tuple[float, ...] = ()
    tested_confidence: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "TaskScores":
        if self.confidence and len(self.confidence) != len(self.scores):
            raise ValueError("a confidence for every score is needed, or none")
        if len(self.tested_confidence) != (len(self.tested) if self.confidence else 0):
            raise ValueError("a confidence for every tested score is needed, if scores have theirs")
        return self

    def rank(self, score: float, confidence: float | None) -> Rank:
        """P-value among the clean models that are about as sure of their answers."""
        if not self.confidence:
            return self.rank_among_all(score)
        groups = alike(confidence, self.confidence)
        among = [tuple(np.asarray(self.scores, float)[group].tolist()) for group in groups]
        return max((Rank(conformal_p_value(score, each), each) for each in among), key=lambda rank: rank.p_value)

    def rank_among_all(self, score: float) -> Rank:
        """Conformal p-value among all of the clean models."""
        return Rank(conformal_p_value(score, self.scores), self.scores)


class CleanModelScores(Result):
    """What the file holds: one detector with its settings, and scores by task."""

    kind: str = "intaglio.clean-scores/1"
    detector: str
    settings: dict[str, JsonValue]
    tasks: tuple[TaskScores, ...] = Field(min_length=1)

    def save(self, folder: Path) -> None:
        """Writes `clean-scores.json` into the folder."""
        write_json(folder / FILE, self.to_dict())


@dataclass(frozen=True)
class Reference:
    """Clean scores chosen for one model: those of its own task, or of all others."""

    detector: str
    tasks: Sequence[TaskScores]
    same_task: bool

    @property
    def by_confidence(self) -> bool:
        """Whether it matters how sure the model is of its answers."""
        return self.same_task and any(task.confidence for task in self.tasks)

    def p_value(self, score: float, confidence: float | None = None) -> float:
        """Conformal rank; over several other tasks the largest, so that only who stands out from all is accused."""
        return max(rank.p_value for rank in self._ranks(score, confidence))

    def lowest(self, score: float, confidence: float | None = None) -> float:
        """The p-value of a score above all of the clean models that this one is ranked among."""
        return lowest_p_value(self._ranks(score, confidence))

    def summary(self, score: float, confidence: float | None = None) -> CalibrationSummary:
        """What a verdict on a model of this score says of it."""
        scores = tuple(one for rank in self._ranks(score, confidence) for one in rank.among)
        every = sum(len(task.scores) for task in self.tasks)
        tested = [
            (one, sureness, task)
            for task in (self.tasks if self.same_task else ())
            for one, sureness in zip(task.tested, task.tested_confidence or [None] * len(task.tested), strict=True)
        ]
        alarms = sum(task.rank(one, sureness).p_value <= _ALPHA for one, sureness, task in tested)
        measured = proportion(alarms, len(tested)) if tested else None
        names = ", ".join(task.task for task in self.tasks)
        rate = None if measured is None else ErrorRate(
            events=alarms, trials=len(tested), rate=measured.value, low=measured.low, high=measured.high
        )  # fmt: skip
        return CalibrationSummary(
            name=names if self.same_task else "other tasks",
            tasks=tuple(task.task for task in self.tasks),
            clean_models=len(scores),
            backdoored_models=0,
            clean_scores=scores,
            false_alarms=rate,
            statement=_same(every, len(scores), names, confidence) if self.same_task else _elsewhere(names),
            confidence=confidence if self.by_confidence else None,
        )

    def _ranks(self, score: float, confidence: float | None) -> list[Rank]:
        if not self.same_task:  # whose models are sure of other things
            return [task.rank_among_all(score) for task in self.tasks]
        return [task.rank(score, confidence) for task in self.tasks]


def lowest_p_value(ranks: Iterable[Rank]) -> float:
    """The lowest p-value that the largest of these ranks can have: max over them of 1 / (n + 1)."""
    return max(1 / (1 + len(rank.among)) for rank in ranks)


def _same(known: int, used: int, names: str, confidence: float | None) -> str:
    if used == known:
        return f"Ranked against {known} clean models of {names}."
    return f"Ranked against clean models of {names}, {known} in all. {ranked_among(used, confidence)}"


def _elsewhere(names: str) -> str:
    return (
        f"No clean models of this task are known; ranked against those of {names}: false alarms are likely, and only "
        "clean models of its own task could confirm an alarm."
    )


def load_clean_scores(folder: Path) -> CleanModelScores:
    """Reads a folder's clean scores.

    Raises:
        DataError: missing, too large, damaged, or with a score that is no number.
    """
    return CleanModelScores.from_file(folder / FILE)


def shipped_clean_scores(detector: str) -> CleanModelScores | None:
    """Those of the package for a detector, if there are any."""
    entry = files("intaglio.scan") / "calibrations" / "_scores" / detector
    if not entry.is_dir():
        return None
    with as_file(entry) as folder:
        return load_clean_scores(folder)


def choose_reference(
    detector: str,
    settings: dict[str, Any],
    task: str | None,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    own: Path | None = None,
) -> Reference | None:
    """The user's own clean scores, else the shipped ones of this task, else those of all tasks, else None.

    The task is taken at its word: whether the model is of it is for the caller to ask (`scan.recognition`).

    Raises:
        DataError: the user's own can't be read.
        RecipeError: they are of another detector, of other settings, or of models with other inputs or classes.
    """
    found = load_clean_scores(own) if own is not None else shipped_clean_scores(detector)
    if found is None:
        return None
    if found.detector != detector or found.settings != settings:
        if own is None:
            return None
        raise RecipeError(f"{own}: clean scores of {found.detector} with {found.settings}, not {detector}, {settings}")
    if own is not None:
        fitting = [entry for entry in found.tasks if _fits(entry, input_shape, num_classes)]
        if not fitting:
            shapes = ", ".join(f"{entry.input_shape} -> {entry.num_classes}" for entry in found.tasks)
            raise RecipeError(f"{own}: clean scores of models {shapes}; this one is {input_shape} -> {num_classes}")
        return Reference(detector, fitting, same_task=True)
    same = [entry for entry in found.tasks if entry.task == task and _fits(entry, input_shape, num_classes)]
    return Reference(detector, same or found.tasks, same_task=bool(same))


def _fits(entry: TaskScores, input_shape: tuple[int, ...], num_classes: int) -> bool:
    return entry.input_shape == tuple(input_shape) and entry.num_classes == num_classes
