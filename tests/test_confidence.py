"""Ranks among clean models that are as sure of their answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from intaglio.classifiers import Access, CallableClassifier, Classifier, open_classifier
from intaglio.scan import Measured, ScoreDetector, clean_scores, scan
from intaglio.scan.calibration import CleanScores, save_calibration, shipped_calibration
from intaglio.scan.clean_scores import CleanModelScores, Reference, TaskScores
from intaglio.scan.confidence import LEAST, alike, confidence, confidence_of
from intaglio.scan.detector import Request
from scan_models import MODELS, TASK, random_model

SHAPE, CLASSES = (1, 6, 6), 3
#: 100 clean models briefly trained, and 100 trained for longer: surer, and scoring higher.
BRIEF, LONG = [float(value) for value in range(100)], [1000.0 + value for value in range(100)]
SURENESS = [3 + value / 1000 for value in range(100)] + [6 + value / 1000 for value in range(100)]


def test_confidence_by_hand() -> None:
    answers = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    assert confidence(answers) == pytest.approx((0 + np.log(4)) / 2, abs=1e-6)
    assert confidence(torch.tensor([[0.0, -torch.inf, -torch.inf]])) == 15.0  # rounded to certainty
    shifted = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    surer = [confidence((scale * shifted).log_softmax(1)) for scale in (1.0, 2.0, 4.0)]
    assert surer == sorted(surer)


def test_confidence_is_of_clean_images_and_scores() -> None:
    model, images = random_model(SHAPE, CLASSES), torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert confidence_of(model, Request(images)) == pytest.approx(confidence(model.log_probs(images)), rel=1e-5)
    assert confidence_of(model, Request()) is None  # no images, and no task whose images the package has
    labels = CallableClassifier(model.predict, input_shape=SHAPE, num_classes=CLASSES, access=Access.LABELS)
    assert confidence_of(labels, Request(images)) is None


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.floats(-1, 11))
def test_the_nearer_half_is_alike(known: list[float], own: float) -> None:
    (group,) = alike(own, known)
    assert group.sum() == min(len(known), max(LEAST, len(known) // 2))
    distance = np.abs(np.asarray(known) - own)
    if not group.all():
        assert distance[group].max() <= distance[~group].min()


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), min_size=1, max_size=200), st.floats(-1, 11))
def test_an_unknown_confidence_gives_the_largest_p_value(models: list[tuple[float, float]], own: float) -> None:
    known, values = zip(*models, strict=True)
    task = TaskScores(task="t", input_shape=SHAPE, num_classes=CLASSES, scores=values, confidence=known)
    assert task.rank(1.0, own).p_value <= task.rank(1.0, None).p_value


def test_false_alarms_are_counted_by_confidence() -> None:
    task = TaskScores(
        task="t", input_shape=SHAPE, num_classes=CLASSES, scores=(*BRIEF, *LONG), confidence=tuple(SURENESS),
        tested=(500.0, 500.0, 1099.5, 0.0), tested_confidence=(3.05, 6.05, 6.05, 3.05),
    )  # fmt: skip
    alarms = Reference("d", [task], same_task=True).summary(0.0, 3.0).false_alarms
    assert alarms is not None
    assert (alarms.events, alarms.trials) == (2, 4)  # the first, which is brief, and the third


class Given(ScoreDetector):
    """Its score is given."""

    name = "given"
    requires = Access.LABELS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        return Measured(500.0, torch.zeros(CLASSES))


def test_a_detector_ranks_by_the_models_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(0))
    model = random_model(SHAPE, CLASSES)
    own = confidence(model.log_probs(images))
    for brief, long, expected in ((own, own + 9, 1 / 101), (own - 9, own, 1.0)):
        known = (*(brief + value / 1000 for value in range(100)), *(long + value / 1000 for value in range(100)))
        task = TaskScores(task="t", input_shape=SHAPE, num_classes=CLASSES, scores=(*BRIEF, *LONG), confidence=known)
        shipped = CleanModelScores(detector="given", settings={}, tasks=(task,))
        monkeypatch.setattr(clean_scores, "shipped_clean_scores", {"given": shipped}.get)
        verdict = Given().inspect(model, clean=images, task="t")
        assert verdict.p_value == pytest.approx(expected)
        assert verdict.calibration.confidence == pytest.approx(own, abs=0.2)


def test_the_signature_ranks_by_the_models_confidence(tmp_path: Path) -> None:
    model = open_classifier(MODELS / "clean.safetensors")
    base = shipped_calibration(TASK)
    assert base.probes is not None
    own = confidence(model.log_probs(base.probes.trials))
    members = tuple((-1e6,) * 40 + (1e6,) * 40 for _ in base.meta.clean[0].members)  # 40 brief, 40 long in each fold
    for name, brief, long, expected in (("brief", own, own + 9, 1 / 321), ("long", own - 9, own, 1.0)):
        clean = CleanScores(task=TASK, members=members, confidence=((brief,) * 40 + (long,) * 40,) * len(members))
        save_calibration(tmp_path / name, base.meta.model_copy(update={"clean": (clean,)}), base.ensemble, base.probes)
        verdict = scan(model, task=TASK, detector="one-pixel-signature", calibration=tmp_path / name)
        assert verdict.p_value == pytest.approx(expected)
        assert verdict.calibration.confidence == pytest.approx(own, rel=1e-4)
        assert "This one is ranked among the 320 of them" in verdict.calibration.statement


def test_a_longer_trained_model_is_ranked_among_its_like() -> None:
    task = TaskScores(
        task="t", input_shape=SHAPE, num_classes=CLASSES, scores=(*BRIEF, *LONG), confidence=tuple(SURENESS)
    )
    assert task.rank(1050.0, 6.05).p_value == pytest.approx(51 / 101)  # among all: p = 51 / 201
    assert task.rank(500.0, 3.05).p_value == 1 / 101
    assert task.rank(500.0, 6.05).p_value == 1.0
    assert task.rank(500.0, None).p_value == 1.0  # how sure it is is not known: the most innocent reading counts
    assert sorted(task.rank(1050.0, 6.05).among) == LONG
    own = Reference("d", [task], same_task=True)
    assert own.by_confidence
    summary = own.summary(1050.0, 6.05)
    assert (summary.clean_models, summary.confidence) == (100, 6.05)
    assert "200 in all. This one is ranked among the 100 of them that are about as sure" in summary.statement
    unknown = own.summary(1050.0, None)
    assert "How sure this one is of its answers is not known: p is the largest that 100 like ones" in unknown.statement
    elsewhere = Reference("d", [task], same_task=False)  # other tasks' models are all ranked among
    assert not elsewhere.by_confidence
    assert elsewhere.p_value(1050.0, 6.05) == pytest.approx(51 / 201)
    assert elsewhere.summary(1050.0, 6.05).confidence is None


def test_folds_are_ranked_in_by_confidence_too() -> None:
    members, sureness = (tuple(BRIEF), tuple(LONG)), (tuple(SURENESS[:100]), tuple(SURENESS[100:]))
    clean = CleanScores(task="t", members=members, confidence=sureness)
    # Member 0 never saw the brief ones, member 1 never saw the long ones.
    rank = clean.rank(torch.tensor([50.0, 1090.0]), 6.05)
    assert rank.p_value == pytest.approx(11 / 101)
    assert sorted(rank.among) == LONG
    assert clean.rank(torch.tensor([50.0, 1090.0]), 3.05).p_value == pytest.approx(51 / 101)
    assert clean.rank(torch.tensor([50.0, 1090.0])).p_value == pytest.approx(51 / 101)
    unmeasured = CleanScores(task="t", members=members)
    assert unmeasured.rank(torch.tensor([50.0, 1090.0]), 6.05).p_value == pytest.approx((1 + 50 + 10) / 201)


@pytest.mark.parametrize("sureness", [((1.0,),), ((1.0,), (2.0, 3.0))])
def test_a_confidence_for_every_score_or_none(sureness: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValidationError, match="a confidence for every clean score"):
        CleanScores(task="t", members=((1.0, 2.0), (3.0,)), confidence=sureness)


def test_tested_models_need_theirs_too() -> None:
    facts = {"task": "t", "input_shape": SHAPE, "num_classes": CLASSES, "scores": (1.0, 2.0)}
    with pytest.raises(ValidationError, match="for every score"):
        TaskScores.model_validate(facts | {"confidence": (1.0,)})
    with pytest.raises(ValidationError, match="for every tested score"):
        TaskScores.model_validate(facts | {"confidence": (1.0, 2.0), "tested": (1.0,)})
