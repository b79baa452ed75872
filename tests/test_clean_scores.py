"""Detectors that rank one number: p-values, references, and clean scores from populations to verdicts."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.classifiers import Access, Classifier, Sidecar, TorchClassifier, save_classifier
from intaglio.data import ImageData, open_data
from intaglio.errors import ClassifierError, DataError, RecipeError
from intaglio.networks import Architecture
from intaglio.populations import ModelRecord, model_folder
from intaglio.report.reading import check_verdict
from intaglio.scan import Measured, Request, ScoreDetector, clean_scores, scan, scanning
from intaglio.scan.clean_scores import FILE, CleanModelScores, TaskScores, choose_reference, load_clean_scores
from intaglio.scan.detector import UndecidableError
from intaglio.scan.fitting_scores import fit_clean_scores, split_test
from intaglio.scan.images import clean_sample
from intaglio.scan.probes import TRIALS
from intaglio.training import TrainingSettings
from scan_models import TASK, nearest_mean, random_model

SHAPE, CLASSES = (1, 12, 12), 3


class Given(ScoreDetector):
    """Its score is given, and so is its own p-value."""

    name = "given"
    requires = Access.LABELS

    def __init__(
        self, score: float = 2.0, *, p_value: float | None = None, maps: bool = False, calibration: Path | None = None
    ) -> None:
        super().__init__(calibration=calibration)
        self.score, self.p_value, self.maps = score, p_value, maps

    def settings(self) -> dict[str, Any]:
        return {"maps": self.maps}

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        shape = classifier.input_shape[-2:]
        maps = torch.arange(3.0)[:, None, None].expand(3, *shape) if self.maps else None
        return Measured(self.score, torch.tensor([0.1, 0.7, 0.4]), maps, "mask", p_value=self.p_value)


class Bias(ScoreDetector):
    """The share of the asked images that are answered with one class."""

    name = "bias"
    requires = Access.LABELS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        assert request.inputs is not None
        assert request.training is not None
        assert request.clean is not None
        shares = classifier.predict(request.inputs).bincount(minlength=CLASSES) / len(request.inputs)
        return Measured(float(shares.max()), shares)


class Here:
    """Works in this process."""

    def __init__(self) -> None:
        self.done = 0

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for task in tasks:
            self.done += 1
            yield function(task)


def scores(*tasks: TaskScores, detector: str = "given", **settings: Any) -> CleanModelScores:
    return CleanModelScores(detector=detector, settings={"maps": False} | settings, tasks=tasks)


def task_scores(task: str, *values: float, shape: tuple[int, ...] = SHAPE, tested: Sequence[float] = ()) -> TaskScores:
    return TaskScores(task=task, input_shape=shape, num_classes=CLASSES, scores=values, tested=tuple(tested))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, CleanModelScores]:
    found: dict[str, CleanModelScores] = {}
    monkeypatch.setattr(clean_scores, "shipped_clean_scores", found.get)
    return found


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_a_score_is_ranked_among_clean_models_of_its_task(shipped: dict[str, CleanModelScores]) -> None:
    shipped["given"] = scores(
        task_scores("bands", 1.0, 2.0, 3.0, tested=(0.5, 9.0, 1.0)), task_scores("digits", 0.0, 0.5)
    )
    verdict = Given().inspect(random_model(SHAPE, CLASSES), task="bands")
    assert (verdict.p_value, verdict.calibrated, verdict.score) == (3 / 4, True, 2.0)
    assert verdict.calibration.tasks == ("bands",)
    assert verdict.calibration.statement == "Ranked against 3 clean models of bands."
    alarms = verdict.calibration.false_alarms
    assert alarms is not None
    assert (alarms.events, alarms.trials) == (0, 3)  # 1 / 4 is the least that 3 models allow
    assert [entry.index for entry in verdict.evidence] == [1, 2, 0]
    assert verdict.evidence[0].place.height == 12
    check_verdict(verdict)


def test_other_tasks_give_the_largest_of_their_p_values(shipped: dict[str, CleanModelScores]) -> None:
    shipped["given"] = scores(task_scores("bands", 1.0, 1.5, 1.7), task_scores("digits", 0.0, 2.5))
    verdict = Given().inspect(random_model(SHAPE, CLASSES), task="letters")
    assert (verdict.p_value, verdict.calibrated) == (2 / 3, False)
    assert "No clean models of this task are known" in verdict.calibration.statement
    assert "p = 0.667 against 5 clean models of other tasks, ranked task by task, not calibrated" in verdict.statement
    # A method's own p-value is worth more than other tasks' models, and less than those of its own.
    own = Given(p_value=0.01).inspect(random_model(SHAPE, CLASSES), task="letters")
    assert (own.p_value, own.flagged, own.calibrated, own.calibration.clean_models) == (0.01, True, False, 0)
    assert "computes from the model alone" in own.calibration.statement
    assert "p = 0.01 without any clean models" in own.statement
    assert Given(p_value=0.01).inspect(random_model(SHAPE, CLASSES), task="bands", alpha=0.3).p_value == 1 / 4


def test_without_any_clean_models_nothing_is_accused(shipped: dict[str, CleanModelScores]) -> None:
    verdict = Given(99.0).inspect(random_model(SHAPE, CLASSES))
    assert (verdict.p_value, verdict.flagged, verdict.calibrated) == (1.0, False, False)
    assert "can't be ranked" in verdict.calibration.statement
    shipped["given"] = scores(task_scores("bands", 1.0), steps=5)  # of other settings: not comparable
    assert Given(99.0).inspect(random_model(SHAPE, CLASSES), task="bands").p_value == 1.0
    shipped["given"] = scores(task_scores("bands", 1.0, shape=(1, 5, 5)))  # a task of that name, but other images
    assert not Given(99.0).inspect(random_model(SHAPE, CLASSES), task="bands", alpha=0.6).calibrated


def test_scores_above_too_few_clean_models_are_not_decided_upon(shipped: dict[str, CleanModelScores]) -> None:
    shipped["given"] = scores(task_scores("bands", *range(9)), task_scores("digits", *range(4)))
    classifier = random_model(SHAPE, CLASSES, source="net.onnx")
    with pytest.raises(UndecidableError) as caught:
        Given(9.0).inspect(classifier, task="bands")
    verdict = caught.value.verdict
    assert verdict is not None
    assert verdict.statement == (
        "Can't be decided at alpha = 0.05: p = 0.1, and p can't be lower against 9 clean models. Most suspicious "
        "target: class 1. Choose an alpha of at least 0.1, or rank it among more clean models (intaglio population "
        "fit)."
    )
    assert str(caught.value) == f"net.onnx: given: {verdict.statement}"
    assert (verdict.flagged, verdict.p_value, verdict.score, verdict.target_class) == (False, 1 / 10, 9.0, None)
    assert Given(9.0).inspect(classifier, task="bands", alpha=0.1).flagged
    # What one of them outdoes would not be flagged with more of them either.
    outdone = Given(8.0).inspect(classifier, task="bands")
    assert (outdone.flagged, outdone.p_value) == (False, 2 / 10)
    assert outdone.statement == "No backdoor found at alpha = 0.05: p = 0.2 against 9 clean models."
    # Over several tasks the largest p-value counts, so the smallest task sets the bound: not 1 / 14.
    message = "p = 0.2, and p can't be lower against 13 clean models of other tasks, ranked task by task. "
    with pytest.raises(UndecidableError, match=message):
        Given(9.0).inspect(classifier, task="letters", alpha=0.15)
    assert Given(9.0).inspect(classifier, task="letters", alpha=0.2).flagged


def test_the_level_that_is_advised_is_enough(shipped: dict[str, CleanModelScores]) -> None:
    shipped["given"] = scores(task_scores("bands", *range(50)))
    with pytest.raises(UndecidableError, match=r"an alpha of at least 0\.0197,"):  # 1 / 51 is 0.01961
        Given(99.0).inspect(random_model(SHAPE, CLASSES), task="bands", alpha=0.0196)
    assert Given(99.0).inspect(random_model(SHAPE, CLASSES), task="bands", alpha=0.0197).flagged


@pytest.mark.parametrize("rolled", [0, 1])
def test_a_model_that_does_not_answer_its_tasks_images_is_not_of_its_task(
    shipped: dict[str, CleanModelScores], tmp_path: Path, rolled: int
) -> None:
    """Whatever `task` says: it may come from the suspect's own side-car."""
    known = TaskScores(task=TASK, input_shape=(1, 28, 28), num_classes=10, scores=tuple(range(30)))
    shipped["given"] = scores(known, task_scores("bands", 1.0))
    classifier = TorchClassifier(nearest_mean(rolled), input_shape=(1, 28, 28), num_classes=10, task=TASK)
    verdict = Given().inspect(classifier)
    assert (verdict.subject.task, verdict.queries, verdict.calibrated) == (TASK, TRIALS, not rolled)
    assert verdict.calibration.tasks == ((TASK, "bands") if rolled else (TASK,))
    assert verdict.calibration.statement.startswith(
        "This model does not answer fashion-mnist images with that task's classes in their order, so it can't be "
        "compared with that task's clean models. No clean models of this task are known; ranked against"
        if rolled
        else "Ranked against 30 clean models of fashion-mnist."
    )
    assert ("not calibrated for this task" in verdict.statement) == bool(rolled)
    # A p-value of the method's own goes before other tasks' models, as where the task is not known.
    own = Given(p_value=0.3).inspect(classifier)
    assert (own.p_value, own.calibrated) == ((0.3, False) if rolled else (29 / 31, True))
    assert own.calibration.statement.startswith("This model does not") == bool(rolled)
    # Of clean scores of one's own there are no images to ask; and where no task is said there is none to doubt.
    shipped["given"].save(tmp_path)
    mine = Given(calibration=tmp_path).inspect(classifier)
    assert (mine.calibrated, mine.queries) == (True, 0)
    unsaid = TorchClassifier(nearest_mean(rolled), input_shape=(1, 28, 28), num_classes=10)
    assert Given().inspect(unsaid).queries == 0


def test_maps_go_with_their_classes(shipped: dict[str, CleanModelScores]) -> None:
    verdict = Given(maps=True).inspect(random_model(SHAPE, CLASSES))
    assert (verdict.maps.classes, verdict.maps.variant) == ((1, 2, 0), "mask")
    assert verdict.maps.decode()[:, 0, 0].tolist() == [1.0, 2.0, 0.0]
    assert verdict.evidence[0].peak == 1.0
    check_verdict(verdict)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_errors(score: float) -> None:
    with pytest.raises(ClassifierError, match=f"its given score is {score}"):
        Given(score).inspect(random_model(SHAPE, CLASSES))


# --- files ------------------------------------------------------------------------------------------------------------


def test_ones_own_clean_scores(tmp_path: Path) -> None:
    scores(task_scores("mine", 1.0, 3.0)).save(tmp_path)
    verdict = Given(calibration=tmp_path).inspect(random_model(SHAPE, CLASSES), task="whatever")
    assert (verdict.p_value, verdict.calibrated) == (2 / 3, True)
    assert load_clean_scores(tmp_path).tasks[0].scores == (1.0, 3.0)
    with pytest.raises(RecipeError, match=r"clean scores of given with .* not other"):
        choose_reference("other", {}, None, SHAPE, CLASSES, own=tmp_path)
    with pytest.raises(RecipeError, match=r"of models \(1, 12, 12\) -> 3; this one is \(1, 12, 12\) -> 4"):
        choose_reference("given", {"maps": False}, None, SHAPE, 4, own=tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10000, b'{"detector": "given", "settings": {}, "tasks": []}'])
def test_damaged_clean_scores(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=FILE) as caught:
        load_clean_scores(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="can't be read"):
        load_clean_scores(tmp_path / "nowhere")


def test_every_shipped_file_loads_and_is_of_its_detector() -> None:
    for name, make in scanning.DETECTORS.items():
        found = clean_scores.shipped_clean_scores(name)
        if found is None:
            continue
        assert found.detector == name
        detector = make()
        assert isinstance(detector, ScoreDetector)
        assert found.settings == detector.settings()


# --- images -----------------------------------------------------------------------------------------------------------


def test_clean_images_are_the_users_or_the_tasks() -> None:
    model = random_model((1, 28, 28), 10)
    images = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    mine = clean_sample(model, Request(clean=images, seed=1), 4)
    assert all(any(torch.equal(image, one) for one in images) for image in mine)
    assert torch.equal(mine, clean_sample(model, Request(clean=images, seed=1), 4))
    assert not torch.equal(mine, clean_sample(model, Request(clean=images, seed=2), 4))
    assert len(clean_sample(model, Request(clean=images), 99)) == 9
    assert clean_sample(model, Request(task="fashion-mnist"), 5).shape == (5, 1, 28, 28)
    for request in (Request(), Request(task="cifar10"), Request(task="letters")):
        with pytest.raises(DataError, match=r"needs clean images of the model's task \(--data\)"):
            clean_sample(model, request, 5)
    with pytest.raises(DataError, match="needs clean images"):
        clean_sample(random_model((3, 28, 28), 10), Request(task="fashion-mnist"), 5)


# --- from populations -------------------------------------------------------------------------------------------------


def population(folder: Path, data: Path, count: int, *, task: str = "bands", classes: int = CLASSES) -> Path:
    """Untrained networks, every fourth of them said to be backdoored."""
    architecture = Architecture(name="lenet", input_shape=SHAPE, num_classes=classes, width=1)
    for index in range(count):
        torch.manual_seed(index)
        path = model_folder(folder, index)
        path.mkdir(parents=True)
        save_classifier(architecture.build(), path / "model.safetensors", Sidecar(architecture=architecture))
        attack = {"trigger": "patch", "goal": {"kind": "all-to-one", "target": 0}} if index % 4 == 3 else None
        record = ModelRecord(
            index=index, seed=index, task=task, architecture=architecture, training=TrainingSettings(), attack=attack,
            clean_accuracy=0.9, asr=1.0 if attack else None, sha256="", seconds=1.0,
        )  # fmt: skip
        (path / "record.json").write_text(record.model_dump_json())
    (folder / "recipe.json").write_text(json.dumps({"data": str(data), "recipe": {"samples": 60}}))
    return folder


def test_clean_models_of_populations_are_scored_once(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scanning.DETECTORS, "bias", Bias)
    monkeypatch.setitem(scanning.DETECTORS, "given", Given)
    models, others = population(tmp_path / "a", toy_file, 8), population(tmp_path / "b", toy_file, 4)
    here, steps = Here(), list[tuple[int, int]]()
    found = fit_clean_scores(
        "bias", [models], tmp_path / "out", test=[others], executor=here, progress=lambda *step: steps.append(step)
    )
    assert (here.done, steps[-1]) == (9, (9, 9))
    assert load_clean_scores(tmp_path / "out") == found
    assert (found.detector, found.settings) == ("bias", {})
    (task,) = found.tasks
    assert (task.task, task.input_shape, len(task.scores), len(task.tested)) == ("bands", SHAPE, 6, 3)
    assert task.tested == task.scores[:3]  # the same seeds make the same networks
    assert all(1 / 3 <= score <= 1 for score in task.scores)

    again = Here()
    assert (
        fit_clean_scores("bias", [models], tmp_path / "two", models=2, executor=again).tasks[0].scores
        == (task.scores[:2])
    )
    assert again.done == 0
    with pytest.raises(DataError, match="its task digits is none of the populations"):
        fit_clean_scores(
            "bias", [models], tmp_path / "no", executor=Here(),
            test=[population(tmp_path / "digits", toy_file, 1, task="digits")],
        )  # fmt: skip
    wider = population(tmp_path / "wider", toy_file, 1, classes=4)
    with pytest.raises(DataError, match="models of bands differ in their inputs or classes"):
        fit_clean_scores("bias", [models, wider], tmp_path / "no", executor=Here())
    with pytest.raises(RecipeError, match="one-pixel-signature does not rank one number"):
        fit_clean_scores("one-pixel-signature", [models], tmp_path / "no", executor=Here())
    (tmp_path / "again").symlink_to(models)
    for folders, test in (([models, tmp_path / "again"], []), ([models], [models])):
        with pytest.raises(RecipeError, match="named twice; a fit is tested on models that it never saw"):
            fit_clean_scores("bias", folders, tmp_path / "no", test=test, executor=Here())
    assert not (tmp_path / "no").exists()
    monkeypatch.setattr(clean_scores, "shipped_clean_scores", {"bias": found}.get)
    model = random_model(SHAPE, CLASSES)
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    verdict = scan(model, images, "bands", detector="bias", inputs=images, training=open_data(toy_file))
    assert verdict.calibrated
    assert verdict.p_value == (1 + sum(score >= verdict.score for score in task.scores)) / 7


def test_images_asked_are_of_all_classes_though_data_are_sorted() -> None:
    labels = torch.arange(4).repeat_interleave(150)
    images = (labels / 10).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    asked, clean = split_test(ImageData(images.contiguous(), labels))
    assert (len(asked), len(clean)) == (200, 400)
    for part in (asked, clean):
        assert (10 * part[:, 0, 0, 0]).round().long().bincount().tolist() == [len(part) // 4] * 4
