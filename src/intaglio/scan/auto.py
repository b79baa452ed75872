"""`Auto`: the best that access, data and time allow, as one calibrated verdict."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from intaglio.classifiers import Access, Classifier
from intaglio.errors import IntaglioError
from intaglio.scan.detector import Detector, Finding, Request
from intaglio.scan.recognition import doubt_about
from intaglio.scan.stack import StackTable, Weights, choose_members, fit_weights, shipped_table
from intaglio.scan.verdict import CalibrationSummary, Part
from intaglio.seeds import torch_generator

_TIMED = 32


class Auto(Detector):
    """A stack of detectors, chosen for the model at hand; one detector alone where no more can be ranked.

    Which detectors there are to choose from follows from access and data; which of them pay is known from models of the
    same task (`scan.stack`), and the budget is spent on those first. Where only one of them can be ranked (the budget
    is small, or the others failed) that one speaks alone. For a task without such a table the base detector does, and
    for a model that is found not to be of the task: p-values that mean nothing can't be weighed.

    Args:
        base: the detector that speaks where there is nothing to choose by.
        others: makers of the other detectors by name.
        budget: seconds, roughly: what detectors take is estimated from how fast the model answers.
        table: the task's table; by default the one shipped.
    """

    name = "auto"
    requires = Access.SCORES

    def __init__(
        self,
        base: Detector,
        others: Mapping[str, Callable[[], Detector]],
        *,
        budget: float | None = None,
        table: StackTable | None = None,
    ) -> None:
        self.base = base
        self.others = others
        self.budget = budget
        self.table = table

    def run(self, classifier: Classifier, request: Request) -> Finding:
        table = self._table(classifier, request)
        if table is None:
            return self._base(classifier, request)
        available = {self.base.name: self.base}
        for name in table.detectors:
            if name in self.others and name != self.base.name:
                available[name] = self.others[name]()
        usable = [name for name, detector in available.items() if _usable(detector, classifier, request)]
        if not set(usable) & set(table.detectors):
            return self._base(classifier, request)
        chosen = choose_members(table, usable, forward=seconds_per_answer(classifier, request), budget=self.budget)
        return self._together(classifier, request, table, {name: available[name] for name in chosen})

    def _base(self, classifier: Classifier, request: Request) -> Finding:
        """The base detector's finding, whatever the budget: without a table of the task nothing else can be ranked."""
        return _alone(self.base.name, self.base.examine(classifier, request), {}, self.budget, classifier.access)

    def _table(self, classifier: Classifier, request: Request) -> StackTable | None:
        task = request.task or classifier.task
        table = self.table or (shipped_table(task) if task else None)
        if table is None or table.input_shape != tuple(classifier.input_shape):
            return None
        if table.num_classes != classifier.num_classes or task != table.task:
            return None
        return None if doubt_about(classifier, task) else table

    def _together(
        self, classifier: Classifier, request: Request, table: StackTable, members: Mapping[str, Detector]
    ) -> Finding:
        findings: dict[str, Finding] = {}
        seconds: dict[str, float] = {}
        missing: dict[str, str] = {}
        for name, detector in sorted(members.items(), key=lambda member: member[0] != self.base.name):
            started = time.perf_counter()
            try:
                findings[name] = detector.examine(classifier, request)
            except IntaglioError as error:  # one detector's trouble must not cost the others' verdict
                missing[name] = str(error)
            seconds[name] = round(time.perf_counter() - started, 3)
            if name == self.base.name and name in findings and not findings[name].calibrated:
                break  # not a model of this task after all: no rank among its models would hold
        ranked = [name for name, finding in findings.items() if finding.calibrated]
        if len(ranked) < 2:
            name = ranked[0] if ranked else self.base.name
            finding = findings[name] if name in findings else self.base.examine(classifier, request)
            return _alone(name, finding, missing, self.budget, classifier.access)
        weights = fit_weights(table, ranked)
        p_values = {name: findings[name].p_value for name in ranked}
        score = weights.score(p_values)
        # a detector without a bound may have given next to 0
        most = weights.score({name: findings[name].lowest or sys.float_info.min for name in ranked})
        parts = sorted(
            (
                Part(
                    detector=name,
                    p_value=p_values[name],
                    weight=round(float(weight), 6),
                    target_class=findings[name].evidence[0].index,
                    seconds=seconds[name],
                )
                for name, weight in zip(weights.detectors, weights.weights, strict=True)
            ),
            key=lambda part: (part.weight * torch.tensor(part.p_value).log().item(), part.detector),
        )
        leading = findings[parts[0].detector]
        shown = findings.get(self.base.name, leading)
        return Finding(
            score=score,
            p_value=weights.p_value(score),
            calibrated=True,
            calibration=_summary(table, weights, parts, missing, self.budget, classifier.access),
            evidence=leading.evidence,
            maps=shown.maps,
            frame_maps=shown.frame_maps,
            grid=shown.grid,
            parts=tuple(parts),
            lowest=weights.p_value(most),
        )


def _usable(detector: Detector, classifier: Classifier, request: Request) -> bool:
    return detector.requires <= classifier.access and all(getattr(request, need) is not None for need in detector.needs)


def seconds_per_answer(classifier: Classifier, request: Request) -> float:
    """Seconds that a plain answer takes, measured on a small batch."""
    images = torch.rand(_TIMED, *classifier.input_shape, generator=torch_generator(request.seed, "timing"))
    classifier.predict(images[:2])  # the first call may compile, allocate or connect
    started = time.perf_counter()
    classifier.predict(images)
    return (time.perf_counter() - started) / _TIMED


def _alone(name: str, finding: Finding, missing: Mapping[str, str], budget: float | None, access: Access) -> Finding:
    """A detector's own finding, under its name, with what may have kept others from being weighed with it."""
    finding = replace(finding, detector=name)
    if budget is None and not missing:
        return finding
    said = f"With {access.name.lower()}{_spent(budget)} {name} speaks alone.{_failures(missing)}"
    summary = finding.calibration.model_copy(update={"statement": f"{finding.calibration.statement} {said}"})
    return replace(finding, calibration=summary)


def _spent(budget: float | None) -> str:
    return "" if budget is None else f" and a budget of {budget:g} s"


def _failures(missing: Mapping[str, str]) -> str:
    return "".join(f" {name} could not be used: {why.rstrip('.')}." for name, why in missing.items())


def _summary(
    table: StackTable,
    weights: Weights,
    parts: list[Part],
    missing: Mapping[str, str],
    budget: float | None,
    access: Access,
) -> CalibrationSummary:
    used = ", ".join(f"{part.detector} (p = {part.p_value:.2g}, {part.seconds:.1f} s)" for part in parts)
    return CalibrationSummary(
        name=f"stack of {len(parts)}, {table.task}",
        tasks=(table.task,),
        clean_models=len(weights.clean_scores),
        backdoored_models=len(table.backdoored),
        clean_scores=weights.clean_scores,
        statement=f"With {access.name.lower()}{_spent(budget)}: {used}; weighed together and ranked against "
        f"{len(weights.clean_scores)} clean models of {table.task}.{_failures(missing)}",
    )
