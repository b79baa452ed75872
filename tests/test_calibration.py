"""Calibrations: saved equals loaded, p-values by hand, damage refused, and the right one chosen."""

import hashlib
import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from intaglio.classifiers import CallableClassifier, TorchClassifier
from intaglio.data import TASKS
from intaglio.errors import DataError, RecipeError
from intaglio.scan import calibration as calibrations
from intaglio.scan.calibration import (
    META,
    TASK_FREE,
    TASK_FREE_DATA,
    WEIGHTS,
    Calibration,
    CleanScores,
    choose_calibration,
    load_calibration,
    shipped_calibration,
    shipped_calibrations,
)
from intaglio.scan.features import FEATURES
from intaglio.scan.probes import TRIALS, Probes
from scan_models import nearest_mean, noise, random_model, toy_ensemble, toy_meta, write_calibration

LABELLED = Probes(noise(2, (1, 3, 4)), noise(6, (1, 3, 4), seed=2), torch.arange(6) % 4)
FASHION = TASKS["fashion-mnist"]
RATE = {"events": 1, "trials": 20, "rate": 0.05, "low": 0.001, "high": 0.25}
Folds = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_calibration(tmp_path / "own")
    return tmp_path / "own"


# --- p-values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "scores", "expected"),
    [
        (((1.0, 2.0, 3.0),), (2.5,), 2 / 4),
        (((1.0, 2.0, 3.0),), (9.0,), 1 / 4),  # the least there is: 1 / (n + 1)
        (((1.0, 2.0, 3.0),), (0.0,), 1.0),
        (((1.0, 2.0, 3.0),), (2.0,), 3 / 4),  # a tie counts against the accusation
        (((1.0, 2.0), (10.0, 20.0, 30.0)), (1.5, 15.0), (1 + 1 + 2) / 6),  # each member by its own fold
        (((1.0, 2.0), (10.0, 20.0, 30.0)), (9.0, 0.0), (1 + 0 + 3) / 6),
        (((), (1.0,)), (0.0, 5.0), 1 / 2),
    ],
)
def test_p_values_by_hand(members: tuple[tuple[float, ...], ...], scores: tuple[float, ...], expected: float) -> None:
    clean = CleanScores(task="t", members=members)
    assert clean.rank(torch.tensor(scores)).p_value == pytest.approx(expected, abs=1e-12)


@given(folds=Folds, data=st.data())
@settings(deadline=None)
def test_p_values_are_ranks_that_fall_with_the_score(folds: list[list[float]], data: st.DataObject) -> None:
    clean = CleanScores(task="t", members=tuple(tuple(fold) for fold in folds))
    scores = torch.tensor(
        data.draw(st.lists(st.floats(-6, 6), min_size=len(folds), max_size=len(folds))), dtype=torch.float64
    )
    count = sum(map(len, folds))
    p_value = clean.rank(scores).p_value
    above = sum(value >= score for score, fold in zip(scores.tolist(), folds, strict=True) for value in fold)
    assert p_value == (1 + above) / (1 + count)
    assert 1 / (count + 1) <= clean.rank(scores + 1).p_value <= p_value <= 1


def test_task_free_takes_the_largest_p_value_over_tasks() -> None:
    low = CleanScores(task="low", members=((1.0, 2.0), (1.0, 2.0)))
    high = CleanScores(task="high", members=((1.0, 2.0), (7.0, 8.0)))
    calibration = Calibration(toy_meta(clean=(low, high)), toy_ensemble()[0], None)
    scores = torch.tensor([5.0, 5.0])
    assert (low.rank(scores).p_value, high.rank(scores).p_value) == (1 / 5, 3 / 5)
    assert calibration.p_value(scores) == 3 / 5
    summary = calibration.summary(scores)
    assert (summary.tasks, summary.clean_models) == (("low", "high"), 8)
    assert summary.clean_scores == (1, 2, 1, 2, 1, 2, 7, 8)


def test_a_score_that_is_no_number_is_no_rare_score() -> None:
    with pytest.raises(DataError, match="NaN"):
        CleanScores(task="t", members=((1.0, 2.0),)).rank(torch.tensor([float("nan")]))


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "compared"),
    [
        (None, None),
        (Probes(noise(2, (1, 3, 4)), noise(3, (1, 3, 4), seed=2)), None),
        (LABELLED, None),
        (LABELLED, 4),
    ],
)
def test_saved_is_loaded(tmp_path: Path, probes: Probes | None, compared: int | None) -> None:
    meta = write_calibration(tmp_path / "new" / "own", probes, compared)
    loaded = load_calibration(tmp_path / "new" / "own")
    assert loaded.meta == meta
    assert meta.weights_sha256 == hashlib.sha256((tmp_path / "new" / "own" / WEIGHTS).read_bytes()).hexdigest()
    ensemble, examples, _ = toy_ensemble(compared)
    assert not loaded.ensemble.training
    assert all((member.reference is None) == (compared is None) for member in loaded.ensemble.members)
    asked = (examples.features, examples.classes)
    for expected, found in zip(ensemble(*asked), loaded.ensemble(*asked), strict=True):
        assert torch.equal(expected, found)
    assert loaded.ensemble.state_dict().keys() == ensemble.state_dict().keys()
    for name, tensor in ensemble.state_dict().items():
        assert torch.equal(tensor, loaded.ensemble.state_dict()[name]), name
    if probes is None:
        assert loaded.probes is None
    else:
        assert loaded.probes is not None
        assert torch.equal(loaded.probes.bases, probes.bases)
        assert torch.equal(loaded.probes.trials, probes.trials)
        if probes.labels is None:
            assert loaded.probes.labels is None
        else:
            assert loaded.probes.labels is not None
            assert loaded.probes.labels.dtype == torch.int64
            assert torch.equal(loaded.probes.labels, probes.labels)


def test_same_calibration_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_calibration(tmp_path / name)
    for file in (META, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    meta = json.loads((folder / META).read_text())
    change(meta)
    (folder / META).write_text(json.dumps(meta))


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the weights, and their digest with them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    rewrite(folder, lambda meta: meta.update(weights_sha256=digest))


def flip_last_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def cut_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()[:-100]
    (folder / WEIGHTS).write_bytes(content)
    rewrite(folder, lambda meta: meta.update(weights_sha256=hashlib.sha256(content).hexdigest()))


def narrow(tensors: dict[str, Tensor]) -> None:
    key = next(name for name in tensors if name.endswith("encoder.1.weight"))
    tensors[key] = torch.zeros(32, len(FEATURES) - 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / META).unlink(), r"not a fitted detector \(No such file"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"not a fitted detector \(No such file"),
        (flip_last_byte, "does not belong to calibration.json"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(weights_sha256="0")), "does not belong to"),
        (lambda folder: (folder / META).write_text("{"), r"calibration\.json: not a CalibrationMeta: Invalid JSON"),
        (lambda folder: (folder / META).write_bytes(b"\xff\xfe"), r"calibration\.json: not a CalibrationMeta"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(extra=1)), "extra: Extra inputs"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(probes="photos")), "probes: Input should be"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(clean=[])), "clean scores .* are missing"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(probes="stored")), "probe images are missing"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(false_alarms_by_task=[RATE] * 5)), "of 5 tasks, not"),
        (
            lambda folder: rewrite(folder, lambda meta: meta["clean"].append({"task": "b", "members": [[1.0]]})),
            "clean scores .* are missing",
        ),
        (lambda folder: rewrite(folder, lambda meta: meta["clean"][0]["members"].pop()), "weights of another version"),
        (lambda folder: rewrite(folder, lambda meta: meta.update(out_of_fold_auroc=float("nan"))), "not a Calibration"),
        (cut_weights, "damaged weights"),
        (lambda folder: reweigh(folder, narrow), "weights of another version"),
        (lambda folder: reweigh(folder, lambda tensors: tensors.update(more=torch.ones(1))), "of another version"),
    ],
)
def test_damage_is_refused_in_one_line(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        load_calibration(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def resize_references(rows: int, columns: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if ".reference." in name:
                tensors[name] = torch.zeros(rows, columns)

    return change


WIDTH, OTHER_CLASSES = len(FEATURES), "class by class, but not the classes of its own task"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: rewrite(folder, lambda meta: meta.update(num_classes=5)), OTHER_CLASSES),
        (lambda folder: rewrite(folder, lambda meta: meta.update(num_classes=-4)), OTHER_CLASSES),
        (lambda folder: rewrite(folder, lambda meta: meta.update(num_classes=10**12)), OTHER_CLASSES),
        (lambda folder: rewrite(folder, lambda meta: meta.update(num_classes=None)), OTHER_CLASSES),
        (lambda folder: reweigh(folder, resize_references(3, WIDTH)), OTHER_CLASSES),
        (lambda folder: reweigh(folder, resize_references(4, WIDTH + 1)), OTHER_CLASSES),
        (lambda folder: reweigh(folder, lambda tensors: tensors.pop("labels")), OTHER_CLASSES),
        (
            lambda folder: reweigh(folder, lambda tensors: tensors.update(labels=torch.arange(3))),
            "not as many labels as probe images",
        ),
        (
            lambda folder: reweigh(folder, lambda tensors: tensors.pop("ensemble.members.1.reference.spread")),
            "weights of another version",
        ),
        (
            lambda folder: reweigh(folder, lambda tensors: tensors.pop("ensemble.members.0.reference.middle")),
            "weights of another version",
        ),
    ],
)
def test_damaged_references_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_calibration(tmp_path, LABELLED, 4)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_calibration(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_labels_without_images_are_refused(folder: Path) -> None:
    reweigh(folder, lambda tensors: tensors.update(labels=torch.arange(3)))
    with pytest.raises(DataError, match="not as many labels as probe images"):
        load_calibration(folder)


def test_oversized_files_are_not_read(folder: Path) -> None:
    with (folder / WEIGHTS).open("rb+") as stream:
        stream.truncate(65 * 2**20)
    with pytest.raises(DataError, match="over 67108864 bytes, not a calibration"):
        load_calibration(folder)


# --- whose classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rolled", "recognised"), [(0, True), (1, False), (5, False)])
def test_a_model_is_recognised_by_its_answers(rolled: int, recognised: bool) -> None:
    classifier = TorchClassifier(nearest_mean(rolled), input_shape=FASHION.input_shape, num_classes=10)
    assert shipped_calibration("fashion-mnist").recognises(classifier) is recognised
    assert classifier.queries == TRIALS


@pytest.mark.parametrize(
    ("classes", "hits", "recognised"),
    [(10, 40, True), (10, 10, True), (10, 9, False), (10, 4, False), (10, 0, False), (2, 28, True), (2, 27, False)],
)
def test_right_answers_are_more_than_guessing_would_give(classes: int, hits: int, recognised: bool) -> None:
    labels = torch.arange(40) % classes
    wrong = labels + 1 + torch.arange(40) // classes % max(1, classes - 1)  # spread: no other order does better
    answers = torch.where(torch.arange(40) < hits, labels, wrong % classes)
    tail = sum(comb(40, k) * (classes - 1) ** (40 - k) for k in range(hits, 41)) / classes**40
    assert (tail < 0.01) == recognised
    classifier = CallableClassifier(
        lambda images: torch.eye(classes)[answers], input_shape=(1, 3, 4), num_classes=classes, outputs="logits"
    )
    probes = Probes(noise(2, (1, 3, 4)), noise(40, (1, 3, 4)), labels)
    assert Calibration(toy_meta(), toy_ensemble()[0], probes).recognises(classifier) is recognised


@pytest.mark.parametrize(("swapped", "recognised"), [((), True), ((6, 9), False), ((0, 1), False)])
def test_a_model_with_swapped_classes_is_not_recognised(swapped: tuple[int, ...], recognised: bool) -> None:
    labels = torch.arange(40) % 10
    order = torch.arange(10)
    order[list(swapped)] = order[list(reversed(swapped))]
    classifier = CallableClassifier(
        lambda images: torch.eye(10)[order[labels]], input_shape=(1, 3, 4), num_classes=10, outputs="logits"
    )
    probes = Probes(noise(2, (1, 3, 4)), noise(40, (1, 3, 4)), labels)
    assert Calibration(toy_meta(), toy_ensemble()[0], probes).recognises(classifier) is recognised


@pytest.mark.parametrize("probes", [None, Probes(noise(2, (1, 3, 4)), noise(3, (1, 3, 4)))])
def test_without_labels_every_model_is_recognised_and_none_is_asked(probes: Probes | None) -> None:
    classifier = random_model((1, 3, 4), 3)
    assert Calibration(toy_meta(), toy_ensemble()[0], probes).recognises(classifier)
    assert classifier.queries == 0


# --- which one -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that these are shipped: each an empty one of its name."""

    def named(name: str) -> Calibration:
        return Calibration(toy_meta(name=name), toy_ensemble()[0], None)

    monkeypatch.setattr(calibrations, "shipped_calibrations", lambda: ("fashion-mnist", TASK_FREE, TASK_FREE_DATA))
    monkeypatch.setattr(calibrations, "shipped_calibration", named)


@pytest.mark.parametrize(
    ("task", "shape", "classes", "data", "expected"),
    [
        ("fashion-mnist", (1, 28, 28), 10, False, "fashion-mnist"),
        ("fashion-mnist", (1, 28, 28), 10, True, "fashion-mnist"),
        ("cifar10", (3, 32, 32), 10, False, "task-free"),  # a known task, but none of its calibrations is shipped
        ("cifar10", (3, 32, 32), 10, True, "task-free-data"),
        ("tumours", (3, 50, 60), 2, False, "task-free"),
        (None, (1, 28, 28), 10, False, "task-free"),
        (None, (1, 28, 28), 10, True, "task-free-data"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_choice(task: str | None, shape: tuple[int, ...], classes: int, data: bool, expected: str) -> None:
    assert choose_calibration(task, shape, classes, data=data).meta.name == expected


@pytest.mark.parametrize(
    ("task", "shape", "classes", "message"),
    [
        ("fashion-mnist", (1, 28, 28), 7, "task fashion-mnist has 10 classes, this model answers with 7"),
        ("fashion-mnist", (3, 28, 28), 10, r"fashion-mnist has inputs \(1, 28, 28\), this model takes \(3, 28, 28\)"),
        ("cifar10", (3, 224, 224), 10, r"cifar10 has inputs \(3, 32, 32\), this model takes \(3, 224, 224\)"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_models_that_do_not_fit_the_task_are_refused(
    task: str, shape: tuple[int, ...], classes: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        choose_calibration(task, shape, classes)


@pytest.mark.usefixtures("shipped")
def test_the_users_own_goes_before_all(tmp_path: Path) -> None:
    write_calibration(tmp_path, input_shape=(1, 5, 5), num_classes=3, name="mine")
    assert choose_calibration("fashion-mnist", (1, 5, 5), 3, own=tmp_path).meta.name == "mine"
    with pytest.raises(RecipeError, match="task mine has 3 classes, this model answers with 4"):
        choose_calibration(None, (1, 5, 5), 4, own=tmp_path)
    with pytest.raises(RecipeError, match=r"task mine has inputs \(1, 5, 5\)"):
        choose_calibration(None, (1, 5, 6), 3, own=tmp_path)
    with pytest.raises(DataError, match="not a fitted detector"):
        choose_calibration("fashion-mnist", (1, 28, 28), 10, own=tmp_path / "absent")


def test_all_shipped_calibrations_load() -> None:
    names = shipped_calibrations()
    assert "fashion-mnist" in names
    size = 0
    for name in names:
        shipped = shipped_calibration(name)
        meta, high = shipped.meta, torch.full((len(shipped.meta.clean[0].members),), 1e6)
        summary = shipped.summary(high)
        assert meta.task_free == (name in (TASK_FREE, TASK_FREE_DATA))
        assert meta.probes == {TASK_FREE: "clouds", TASK_FREE_DATA: "data"}.get(name, "stored")
        assert summary.statement
        assert len(summary.clean_scores) == summary.clean_models > 0
        assert f"{len(meta.clean_scores)} clean models" in summary.statement
        ranked = [len(task.rank(high).among) for task in meta.clean]
        assert shipped.p_value(high) == max(1 / (1 + count) for count in ranked)
        if not meta.task_free:
            assert (meta.input_shape, meta.num_classes) == (FASHION.input_shape, len(FASHION.classes))
            assert shipped.probes is not None
            assert shipped.probes.labels is not None
            assert torch.bincount(shipped.probes.labels).tolist() == [TRIALS // 10] * 10
        assert all((member.reference is None) == meta.task_free for member in shipped.ensemble.members)
        root = Path(calibrations.__file__).parent / "calibrations" / name
        size += sum(file.stat().st_size for file in root.iterdir())
    assert size < 3 * 2**20
