"""Verdicts: frozen, the same after JSON, as their published schema says, with maps that unpack again."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import ValidationError

from intaglio.errors import DataError
from intaglio.results import Result
from intaglio.scan import Verdict
from intaglio.scan.verdict import EncodedMaps
from scan_models import TASK, scanned

NAMES = ("clean", "backdoored")


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    verdict = scanned(name)
    again = Verdict.from_json(verdict.to_json())
    assert again == verdict
    assert again.to_json() == verdict.to_json()
    assert Verdict.model_validate(verdict.to_dict()) == verdict
    assert json.loads(verdict.to_json()) == verdict.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_is_as_its_schema_says(name: str) -> None:
    schema = Verdict.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = scanned(name).to_dict()
    validator.validate(document)
    for broken in (document | {"extra": 1}, document | {"p_value": "low"}, {"kind": document["kind"]}):
        assert not validator.is_valid(broken)


def test_verdicts_are_frozen() -> None:
    verdict = scanned("clean")
    for record, name in ((verdict, "flagged"), (verdict.subject, "task"), (verdict.evidence[0], "suspicion")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, None)
    assert hash(verdict.evidence[0]) == hash(verdict.evidence[0].model_copy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a Verdict: Invalid JSON"),
        ("[]", "not a Verdict: .*object"),
        ("{}", "not a Verdict: statement: Field required"),
        ('{"kind": "intaglio.seal/1"}', "not a Verdict: kind: Input should be"),
    ],
)
def test_what_is_no_verdict_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Verdict.from_json(text)
    assert "\n" not in str(caught.value)


def test_as_many_false_alarm_rates_as_tasks() -> None:
    document = scanned("clean").to_dict()
    rate = {"events": 1, "trials": 20, "rate": 0.05, "low": 0.001, "high": 0.25}
    tasks = len(document["calibration"]["tasks"])
    document["calibration"]["false_alarms_by_task"] = [rate] * tasks
    assert len(Verdict.from_json(json.dumps(document)).calibration.false_alarms_by_task) == tasks
    document["calibration"]["false_alarms_by_task"] = [rate] * (tasks + 1)
    with pytest.raises(DataError, match=f"{tasks + 1} false-alarm rates of {tasks} tasks"):
        Verdict.from_json(json.dumps(document))


def test_numbers_that_are_none_are_refused() -> None:
    text = scanned("clean").model_copy(update={"score": float("nan")}).to_json()
    with pytest.raises(DataError, match="not a Verdict: score"):
        Verdict.from_json(text)


@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
@settings(deadline=None)
def test_maps_unpack_to_what_was_packed(maps: np.ndarray[tuple[int, int, int], np.dtype[np.float32]]) -> None:
    packed = EncodedMaps.encode(maps, base="black", variant="logit", classes=tuple(range(len(maps))))
    again = EncodedMaps.from_json(packed.to_json()).decode()
    assert again.dtype == np.float32
    assert again.shape == maps.shape
    np.testing.assert_allclose(again, maps, rtol=1e-3, atol=1e-6)


def test_maps_beyond_half_precision_are_clipped() -> None:
    maps = np.array([[[1e9, -1e9, 0.5]]], dtype=np.float32)
    packed = EncodedMaps.encode(maps, base="black", variant="logit", classes=(0,))
    np.testing.assert_allclose(packed.decode(), [[[6e4, -6e4, 0.5]]], rtol=1e-3)


def test_what_a_real_verdict_says_agrees_with_itself() -> None:
    for name in NAMES:
        verdict = scanned(name)
        assert verdict.flagged == (verdict.p_value <= verdict.alpha)
        assert (verdict.target_class is None) == (not verdict.flagged)
        suspicions = [entry.suspicion for entry in verdict.evidence]
        assert suspicions == sorted(suspicions, reverse=True)
        assert sorted(entry.index for entry in verdict.evidence) == list(range(10))
        maps = verdict.maps.decode()
        assert maps.shape == verdict.maps.shape == (10, 28, 28)
        assert float(maps.min()) >= 0
        assert verdict.maps.classes == tuple(entry.index for entry in verdict.evidence)
        count = verdict.calibration.clean_models
        lowest = " (the lowest possible)" if verdict.p_value == 1 / (count + 1) else ""
        assert f"p = {verdict.p_value:.3g}{lowest} against {count} clean models" in verdict.statement
        clean = verdict.calibration.clean_models
        assert 1 / (clean + 1) <= verdict.p_value <= 1
        assert (verdict.p_value * (clean + 1)) == pytest.approx(round(verdict.p_value * (clean + 1)))
        assert (verdict.task, verdict.detector, verdict.kind) == (TASK, "one-pixel-signature", "intaglio.verdict/1")
        assert {"intaglio", "torch", "numpy"} <= set(verdict.versions)


def test_every_result_is_closed_and_frozen() -> None:
    assert Result.model_config == Verdict.model_config
    assert Verdict.model_config["extra"] == "forbid"
    assert Verdict.model_json_schema()["additionalProperties"] is False
