"""Ranks among clean models that are as sure of their answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from intaglio.classifiers import Access, CallableClassifier
from intaglio.scan.calibration import CleanScores
from intaglio.scan.clean_scores import Reference, TaskScores
from intaglio.scan.confidence import LEAST, alike, confidence, confidence_of
from intaglio.scan.detector import Request
from scan_models import random_model

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
