"""Clean models that ship as scores, each ranked among the others: what a model of their kind would have been told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibrations import LONGER
from benchmarks.clean_models import TASK
from benchmarks.populations import folder
from intaglio.data import TASKS
from intaglio.populations import open_population
from intaglio.scan.calibration import shipped_calibration
from intaglio.scan.clean_scores import TaskScores, shipped_clean_scores


class Shipped(NamedTuple):
    """A detector's clean scores of the task; the `longer` last of them, by their index, had more passes of training."""

    task: TaskScores
    longer: int

    @property
    def late(self) -> NDArray[np.bool_]:
        """Which were trained for longer."""
        return np.arange(len(self.task.scores)) >= len(self.task.scores) - self.longer

    def without(self, place: int) -> TaskScores:
        """All but one."""
        others = np.arange(len(self.task.scores)) != place
        return self.task.model_copy(
            update={
                "scores": tuple(np.asarray(self.task.scores)[others].tolist()),
                "confidence": tuple(np.asarray(self.task.confidence)[others].tolist()),
            }
        )

    def p_value(self, place: int) -> float:
        """Of one clean model among the others."""
        return self.without(place).rank(self.task.scores[place], self.task.confidence[place]).p_value


def shipped(detector: str) -> Shipped:
    """What ships; needs the population of longer training, to know how many these are."""
    longer = len(open_population(folder(LONGER)))
    found = shipped_clean_scores(detector)
    if found is not None:
        return Shipped(next(entry for entry in found.tasks if entry.task == TASK), longer)
    (clean,) = shipped_calibration(TASK).meta.clean  # the signature's: by fold, to which they were dealt in turn
    early: list[tuple[float, float]] = []
    late: dict[int, tuple[float, float]] = {}
    for member, (scores, confidence) in enumerate(zip(clean.members, clean.confidence, strict=True)):
        dealt = range(member, longer, len(clean.members))
        pairs = list(zip(scores, confidence, strict=True))
        early += pairs[: len(pairs) - len(dealt)]
        late |= dict(zip(dealt, pairs[len(pairs) - len(dealt) :], strict=True))
    both = [*early, *(late[index] for index in range(longer))]
    task = TaskScores(
        task=TASK,
        input_shape=TASKS[TASK].input_shape,
        num_classes=len(TASKS[TASK].classes),
        scores=tuple(score for score, _ in both),
        confidence=tuple(value for _, value in both),
    )
    return Shipped(task, longer)
