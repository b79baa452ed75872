"""The stack: weights and choices by hand, and `auto` with detectors whose p-values are given."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.classifiers import Access, CallableClassifier, Classifier, TorchClassifier
from intaglio.errors import ClassifierError, DataError, RecipeError
from intaglio.scan import Finding, OnePixelSignature, Request, scan
from intaglio.scan.auto import Auto
from intaglio.scan.detector import Detector, UndecidableError
from intaglio.scan.scanning import DETECTORS, make_detector
from intaglio.scan.stack import (
    MemberCost,
    StackTable,
    choose_members,
    fit_weights,
    shipped_table,
)
from intaglio.scan.verdict import CalibrationSummary, ClassEvidence, EncodedMaps, Place
from scan_models import TASK, nearest_mean, random_model

SHAPE, CLASSES, COUNT = (1, 4, 4), 3, 40


def table(**changes: Any) -> StackTable:
    """`sharp` tells three quarters of the backdoors, `other` the rest, `blind` none, `twin` is `sharp` again."""
    rng = np.random.default_rng(0)

    def rows(backdoored: bool) -> tuple[tuple[float, ...], ...]:
        found = []
        for index in range(COUNT):
            sharp, other, blind = rng.uniform(0.02, 1, 3)
            if backdoored:
                sharp, other = (0.01, other) if index % 4 else (sharp, 0.01)
            found.append((sharp, other, blind, sharp))
        return tuple(found)

    content: dict[str, Any] = {
        "task": "bands",
        "input_shape": SHAPE,
        "num_classes": CLASSES,
        "detectors": ("sharp", "other", "blind", "twin"),
        "costs": {
            "sharp": MemberCost(queries=100, ratio=1),
            "other": MemberCost(queries=1000, ratio=3),
            "blind": MemberCost(queries=10, ratio=1),
            "twin": MemberCost(queries=200, ratio=1),
        },
        "clean": rows(False),
        "backdoored": rows(True),
    }
    return StackTable(**content | changes)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_go_to_those_who_know() -> None:
    weights = fit_weights(table(), ["sharp", "other", "blind"])
    sharp, other, blind = weights.weights
    assert sharp > 0.2
    assert other > 0.2
    assert 0 <= blind < 0.2 * sharp
    assert weights.auroc > 0.97
    alone = fit_weights(table(), ["sharp"])
    assert 0.75 < alone.auroc < weights.auroc
    assert fit_weights(table(), ["blind"]).auroc < 0.7
    score = weights.score({"sharp": 0.1, "other": 0.5, "blind": 1.0})
    assert score == pytest.approx(-sharp * math.log(0.1) - other * math.log(0.5) + weights.offset)
    assert weights.p_value(score) == (1 + sum(one >= score for one in weights.clean_scores)) / (1 + COUNT)
    assert weights.p_value(1e9) == 1 / (1 + COUNT)


def test_a_detector_that_is_worse_than_nothing_weighs_nothing() -> None:
    rows = table()
    swapped = table(clean=rows.backdoored, backdoored=rows.clean)
    assert fit_weights(swapped, ["sharp", "other"]).weights.tolist() == [0.0, 0.0]


def test_clean_scores_come_from_folds_that_did_not_see_them() -> None:
    """With nothing to learn, the clean models' ranks are even: p-values of fresh clean models are uniform."""
    rng = np.random.default_rng(1)
    noise = {
        name: tuple(tuple(row) for row in rng.uniform(0.01, 1, (200, 4)).tolist()) for name in ("clean", "backdoored")
    }
    weights = fit_weights(table(**noise), ["sharp", "other", "blind", "twin"])
    names = ("sharp", "other", "blind", "twin")
    fresh = [
        weights.p_value(weights.score(dict(zip(names, row, strict=True)))) for row in rng.uniform(0.01, 1, (400, 4))
    ]
    assert np.mean(np.array(fresh) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert weights.auroc == pytest.approx(0.5, abs=0.08)


# --- choices ----------------------------------------------------------------------------------------------------------


def test_detectors_are_chosen_by_worth_while_the_budget_lasts() -> None:
    every = ["sharp", "other", "blind", "twin"]

    def choose(budget: float | None, names: Sequence[str] = every) -> tuple[str, ...]:
        return choose_members(table(), names, forward=1e-3, budget=budget)

    assert choose(None) == ("sharp", "other")  # a twin adds nothing, and neither does the blind one
    assert choose(0.5) == ("sharp",)  # the other one takes 3 s
    assert choose(0.05) == ("blind",)  # all that is affordable
    assert choose(0.001) == ("blind",)  # the cheapest is run in any case
    assert choose(None, ["other", "nobody"]) == ("other",)
    with pytest.raises(DataError, match="no detector of the stack for bands works with what is given"):
        choose(None, ["nobody"])


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_survive_their_file(tmp_path: Path) -> None:
    table().save(tmp_path / "bands.json")
    assert StackTable.from_file(tmp_path / "bands.json") == table()
    assert shipped_table("no such task") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"detectors": ("sharp", "other", "blind")},
        {"clean": ((0.0, 1.0, 1.0, 1.0),) * 5},
        {"clean": ((1.1, 1.0, 1.0, 1.0),) * 5},
        {"backdoored": ((1.0, 1.0, 1.0, 1.0),)},
        {"costs": {}},
    ],
)
def test_tables_that_make_no_sense(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        table(**changes)
    path = tmp_path / "t.json"
    path.write_text(table().model_copy(update=changes).model_dump_json())
    with pytest.raises(DataError, match=r"t\.json"):
        StackTable.from_file(path)
    with pytest.raises(DataError, match="can't be read"):
        StackTable.from_file(tmp_path / "nowhere.json")


# --- auto -------------------------------------------------------------------------------------------------------------


class Given(Detector):
    """Its p-value is given."""

    requires = Access.SCORES

    def __init__(self, name: str, p_value: float, target: int = 0, **options: Any) -> None:
        self.name = name  # type: ignore[misc]
        self.p_value, self.target = p_value, target
        self.fails, self.calibrated = options.pop("fails", False), options.pop("calibrated", True)
        self.needs = options.pop("needs", ())  # type: ignore[misc]
        self.requires = options.pop("requires", Access.SCORES)  # type: ignore[misc]
        self.lowest = options.pop("lowest", None)
        self.error: Exception = ClassifierError("no luck")
        self.runs = 0

    def run(self, classifier: Classifier, request: Request) -> Finding:
        self.runs += 1
        if self.fails:
            raise self.error
        order = [self.target, *(index for index in range(CLASSES) if index != self.target)]
        place = Place(row=0, column=0, height=1, width=1)
        return Finding(
            score=1.0,
            p_value=self.p_value,
            calibrated=self.calibrated,
            calibration=CalibrationSummary(
                name=self.name, tasks=(), clean_models=1, backdoored_models=0, clean_scores=(0.0,), statement="Given."
            ),
            evidence=tuple(ClassEvidence(index=one, suspicion=0.0, peak=0.0, place=place) for one in order),
            maps=EncodedMaps.encode(np.zeros((0, 4, 4), "float32"), base="", variant=self.name, classes=()),
            grid=None,
            lowest=self.lowest,
        )


def auto(*others: Given, base: Given | None = None, **options: Any) -> Auto:
    base = base or Given("sharp", 0.01, target=2)
    return Auto(base, {one.name: lambda one=one: one for one in others}, **{"table": table()} | options)  # type: ignore[misc]


def model(**options: Any) -> CallableClassifier:
    return random_model(SHAPE, CLASSES, **options)


def test_auto_weighs_its_detectors_into_one_verdict() -> None:
    other = Given("other", 0.6, target=1)
    verdict = auto(other, Given("blind", 0.9)).inspect(model(), task="bands")
    weights = fit_weights(table(), ["sharp", "other"])
    assert verdict.score == pytest.approx(weights.score({"sharp": 0.01, "other": 0.6}))
    assert (verdict.p_value, verdict.calibrated) == (weights.p_value(verdict.score), True)
    assert verdict.detector == "auto"
    assert [(part.detector, part.p_value, part.target_class) for part in verdict.parts] == [
        ("sharp", 0.01, 2), ("other", 0.6, 1),
    ]  # fmt: skip
    assert verdict.evidence[0].index == 2
    assert verdict.calibration.clean_models == COUNT
    assert "sharp (p = 0.01" in verdict.calibration.statement
    assert "With scores:" in verdict.calibration.statement
    # The heaviest evidence names the target; the maps stay the base detector's.
    turned = auto(Given("other", 0.001, target=1), base=Given("sharp", 0.9, target=2)).inspect(model(), task="bands")
    assert (turned.evidence[0].index, turned.maps.variant) == (1, "sharp")


def test_a_budget_for_one_detector_gets_that_one_and_not_the_base() -> None:
    """The cheapest is `blind`, whose costs are a tenth of the base's."""
    base, blind, other = Given("sharp", 0.01), Given("blind", 0.3, target=1), Given("other", 0.5)
    verdict = auto(blind, other, base=base, budget=1e-9).inspect(model(), task="bands")
    assert [one.runs for one in (base, blind, other)] == [0, 1, 0]
    assert (verdict.detector, verdict.p_value, verdict.calibrated, verdict.parts) == ("blind", 0.3, True, ())
    assert (verdict.evidence[0].index, verdict.maps.variant) == (1, "blind")
    assert verdict.calibration.statement == "Given. With scores and a budget of 1e-09 s blind speaks alone."
    alone = Given("blind", 0.3, target=1).inspect(model(), task="bands")
    assert (verdict.statement, verdict.score, verdict.evidence) == (alone.statement, alone.score, alone.evidence)


@pytest.mark.parametrize("trouble", [{"fails": True}, {"calibrated": False}])
def test_the_base_runs_where_nothing_that_was_chosen_could_be_ranked(trouble: dict[str, bool]) -> None:
    base, blind = Given("sharp", 0.01), Given("blind", 0.3, **trouble)
    verdict = auto(blind, base=base, budget=1e-9).inspect(model(), task="bands")
    assert (base.runs, blind.runs, verdict.detector, verdict.p_value) == (1, 1, "sharp", 0.01)
    failed = " blind could not be used: no luck." if "fails" in trouble else ""
    assert verdict.calibration.statement == (f"Given. With scores and a budget of 1e-09 s sharp speaks alone.{failed}")


def test_a_base_that_fails_leaves_the_word_to_who_could_be_ranked() -> None:
    base = Given("sharp", 0.01, fails=True)
    verdict = auto(Given("other", 0.2, target=1), base=base).inspect(model(), task="bands")
    assert (verdict.detector, verdict.p_value, base.runs) == ("other", 0.2, 1)
    assert verdict.calibration.statement == ("Given. With scores other speaks alone. sharp could not be used: no luck.")


def test_a_stack_that_could_not_go_lower_decides_nothing() -> None:
    sure = auto(Given("other", 1e-9), base=Given("sharp", 1e-9))
    assert sure.inspect(model(), task="bands", alpha=0.025).p_value == 1 / (1 + COUNT)
    message = "p = 0.0244, and p can't be lower against 40 clean models"
    with pytest.raises(UndecidableError, match=message):
        sure.inspect(model(), task="bands", alpha=0.02)
    # Members that are themselves ranked among few can't take the stack to its own bound.
    bound = auto(Given("other", 0.5, lowest=0.5), base=Given("sharp", 0.4, lowest=0.4))
    weights = fit_weights(table(), ["sharp", "other"])
    p_value = weights.p_value(weights.score({"sharp": 0.4, "other": 0.5}))
    assert p_value > 0.1
    with pytest.raises(UndecidableError, match=f"p = {p_value:.3g}, and p can't be lower"):
        bound.inspect(model(), task="bands")
    beaten = auto(Given("other", 0.6, lowest=0.5), base=Given("sharp", 0.7, lowest=0.4))
    assert not beaten.inspect(model(), task="bands").flagged


@pytest.mark.parametrize("rolled", [0, 1])
def test_auto_asks_whether_the_model_is_of_its_task(rolled: int) -> None:
    """Whether or not the base, which asks for itself, is among those that the budget is spent on."""
    known = table(task=TASK, input_shape=(1, 28, 28), num_classes=10)
    base, blind = Given("sharp", 0.01), Given("blind", 0.3)
    classifier = TorchClassifier(nearest_mean(rolled), input_shape=(1, 28, 28), num_classes=10, task=TASK)
    verdict = auto(blind, base=base, table=known, budget=1e-9).inspect(classifier)
    assert verdict.detector == ("sharp" if rolled else "blind")
    assert (base.runs, blind.runs) == (rolled, 1 - rolled)


def test_auto_says_what_its_budget_bought() -> None:
    other = Given("other", 0.001)
    verdict = auto(other, budget=1e-9).inspect(model(), task="bands")
    assert (other.runs, verdict.detector, verdict.p_value, verdict.parts) == (0, "sharp", 0.01, ())
    verdict = auto(other, budget=1e6).inspect(model(), task="bands")
    assert "and a budget of 1e+06 s: " in verdict.calibration.statement
    assert auto(other).inspect(model(), task="letters").calibration.statement == "Given."
    verdict = auto(other, budget=2).inspect(model(), task="letters")
    assert verdict.calibration.statement == "Given. With scores and a budget of 2 s sharp speaks alone."


def test_what_access_and_data_do_not_allow_is_left_out() -> None:
    white, filtering = Given("other", 0.001, requires=Access.GRADIENTS), Given("blind", 0.1, needs=("training",))
    assert auto(white, filtering).inspect(model(), task="bands").detector == "sharp"
    assert (white.runs, filtering.runs) == (0, 0)


def test_one_detectors_trouble_does_not_cost_the_verdict() -> None:
    third = table(detectors=("sharp", "other", "blind", "more"), costs={
        name: MemberCost(queries=1, ratio=1) for name in ("sharp", "other", "blind", "more")
    })  # fmt: skip
    broken = Given("other", 0.5, fails=True)
    alone = auto(broken, table=third).inspect(model(), task="bands")
    assert (alone.detector, alone.p_value, broken.runs) == ("sharp", 0.01, 1)
    assert alone.calibration.statement == "Given. With scores sharp speaks alone. other could not be used: no luck."
    broken.error = ZeroDivisionError("a bug")
    alone = auto(broken, table=third).inspect(model(), task="bands")
    assert alone.calibration.statement.endswith("other could not be used: other failed: ZeroDivisionError: a bug.")
    elsewhere = Given("other", 0.5, calibrated=False)
    assert auto(elsewhere).inspect(model(), task="bands").detector == "sharp"


def test_a_model_that_is_not_of_the_task_is_left_to_the_base() -> None:
    stranger = Given("sharp", 0.01, calibrated=False)
    others = Given("other", 0.5), Given("blind", 0.5), Given("twin", 0.5)
    verdict = auto(*others, base=stranger).inspect(model(), task="bands")
    assert (verdict.detector, verdict.calibrated, verdict.p_value) == ("sharp", False, 0.01)
    assert [other.runs for other in others] == [0, 0, 0]


def test_other_tasks_and_shapes_are_left_to_the_base() -> None:
    other = Given("other", 0.5)
    for classifier, task in ((model(), "letters"), (model(), None), (random_model((1, 5, 5), 3), "bands")):
        assert auto(other).inspect(classifier, task=task).detector == "sharp"
    assert other.runs == 0
    base = Given("sharp", 0.01)
    only = table(detectors=("x",), costs={"x": MemberCost(queries=1, ratio=1)}, clean=((0.5,),) * 5,
                 backdoored=((0.5,),) * 5)  # fmt: skip
    assert auto(base=base, table=only).inspect(model(), task="bands").detector == "sharp"


def test_auto_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_detector("auto", budget=3)
    assert isinstance(made, Auto)
    assert (made.budget, made.base.name, made.others) == (3, "one-pixel-signature", DETECTORS)
    assert isinstance(make_detector("auto", Path("mine")), OnePixelSignature)
    with pytest.raises(RecipeError, match="a budget is a number of seconds above 0, got 0"):
        scan(model(), budget=0)
