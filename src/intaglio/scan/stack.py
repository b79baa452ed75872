"""`Stack`: the detectors that access and time allow, weighed by what they are worth together.

    stack score = b + sum over the detectors d in use of w_d (-log p_d),        p-value: its rank among clean models

p_d is detector d's own p-value; w >= 0 and b are fitted by logistic regression to the p-values of known clean and
backdoored models (`StackTable`), for the detectors in use alone, so that leaving some out needs no guesses. The clean
models' stack scores come from folds that did not see them.
"""

import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize
from scipy.special import expit

from intaglio.errors import DataError
from intaglio.evidence.statistics import auroc, conformal_p_value
from intaglio.files import write_json
from intaglio.results import Result

Floats = NDArray[np.float64]
FOLDS = 5
_PENALTY = 1e-2


class MemberCost(Result):
    """What a detector takes on a model of the task: questions, and seconds a question over those of a plain answer."""

    queries: float = Field(gt=0)
    ratio: float = Field(gt=0)

    def seconds(self, forward: float) -> float:
        """Expected seconds on a model that answers a plain question in `forward` seconds."""
        return self.queries * self.ratio * forward


class StackTable(Result):
    """p-values of known models of one task by each detector, none of which any detector was fitted to.

    Raises:
        DataError: rows of another length, p-values outside (0, 1], or fewer models than folds.
    """

    kind: str = "intaglio.stack/1"
    task: str
    input_shape: tuple[int, ...]
    num_classes: int
    detectors: tuple[str, ...] = Field(min_length=1)
    costs: dict[str, MemberCost]
    clean: tuple[tuple[float, ...], ...] = Field(min_length=FOLDS)
    backdoored: tuple[tuple[float, ...], ...] = Field(min_length=FOLDS)

    @model_validator(mode="after")
    def _check(self) -> "StackTable":
        rows = [*self.clean, *self.backdoored]
        if any(len(row) != len(self.detectors) for row in rows) or set(self.costs) != set(self.detectors):
            raise ValueError("a row for every model and a cost for every detector are needed")
        if not all(0 < value <= 1 for row in rows for value in row):
            raise ValueError("p-values lie in (0, 1]")
        return self

    def columns(self, detectors: Sequence[str]) -> tuple[Floats, Floats]:
        """-log p of the clean and of the backdoored models, `[N, len(detectors)]` each."""
        places = [self.detectors.index(name) for name in detectors]
        clean, backdoored = (np.asarray(rows, float)[:, places] for rows in (self.clean, self.backdoored))
        return -np.log(clean), -np.log(backdoored)

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        write_json(path, self.to_dict())


class Weights(NamedTuple):
    """What one selection of detectors is worth: weights, and the clean models' scores, each from an unseeing fold."""

    detectors: tuple[str, ...]
    weights: Floats
    offset: float
    clean_scores: tuple[float, ...]
    auroc: float

    def score(self, p_values: Mapping[str, float]) -> float:
        """The stack's score of a model with these p-values."""
        evidence = -np.log([p_values[name] for name in self.detectors])
        return float(evidence @ self.weights + self.offset)

    def p_value(self, score: float) -> float:
        """Conformal rank among the clean models."""
        return conformal_p_value(score, self.clean_scores)


def fit_weights(table: StackTable, detectors: Sequence[str]) -> Weights:
    """Weights of a selection, with out-of-fold scores of the clean models and the out-of-fold AUROC."""
    clean, backdoored = table.columns(detectors)
    rows = np.concatenate([clean, backdoored])
    labels = np.concatenate([np.zeros(len(clean)), np.ones(len(backdoored))])
    # Models in turn: the same table gives the same folds, and every fold has its share of both kinds.
    folds = np.concatenate([np.arange(len(clean)) % FOLDS, np.arange(len(backdoored)) % FOLDS])
    scores = np.empty(len(rows))
    for fold in range(FOLDS):
        weights, offset = _logistic(rows[folds != fold], labels[folds != fold])
        scores[folds == fold] = rows[folds == fold] @ weights + offset
    weights, offset = _logistic(rows, labels)
    held_out = tuple(scores[: len(clean)].tolist())
    value = auroc(scores[len(clean) :].tolist(), held_out).value
    return Weights(tuple(detectors), weights, offset, held_out, value)


def _logistic(rows: Floats, labels: Floats) -> tuple[Floats, float]:
    """Ridge logistic regression, both classes weighing the same; weights >= 0: no suspicion may speak for a model."""
    balance = np.where(labels > 0, 0.5 / max(labels.sum(), 1), 0.5 / max((1 - labels).sum(), 1))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, offset = parameters[:-1], parameters[-1]
        margin = rows @ weights + offset
        value = float(balance @ (np.logaddexp(0, margin) - labels * margin) + _PENALTY * weights @ weights)
        slope = balance * (expit(margin) - labels)
        return value, np.append(rows.T @ slope + 2 * _PENALTY * weights, slope.sum())

    count = rows.shape[1]
    found = minimize(
        loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * count + [(None, None)]
    )
    return found.x[:-1], float(found.x[-1])


def choose_members(
    table: StackTable, available: Sequence[str], *, forward: float, budget: float | None
) -> tuple[str, ...]:
    """Which detectors to run: greedily the one that raises the out-of-fold AUROC most, while the budget lasts.

    Args:
        available: detectors that the access and the given data allow.
        forward: seconds of one plain answer of the model.
        budget: seconds; None: no limit. The cheapest detector is run in any case.

    Raises:
        DataError: none of the available detectors is in the table.
    """
    known = [name for name in table.detectors if name in available]
    if not known:
        raise DataError(f"no detector of the stack for {table.task} works with what is given")
    cost = {name: table.costs[name].seconds(forward) for name in known}
    chosen: list[str] = []
    left = float("inf") if budget is None else budget
    best = 0.0
    while True:
        affordable = [name for name in known if name not in chosen and cost[name] <= left]
        if not affordable and not chosen:
            return (min(known, key=lambda name: cost[name]),)
        gains = {name: fit_weights(table, [*chosen, name]).auroc for name in affordable}
        name = max(gains, key=lambda one: (gains[one], -cost[one]), default=None)
        if name is None or (chosen and gains[name] <= best + 1e-3):
            return tuple(chosen)
        chosen.append(name)
        best = gains[name]
        left -= cost[name]


@functools.cache
def shipped_table(task: str) -> StackTable | None:
    """The package's table for a task, if there is one."""
    entry = files("intaglio.scan") / "calibrations" / "_stacks" / f"{task}.json"
    return StackTable.from_file(Path(str(entry))) if entry.is_file() else None
