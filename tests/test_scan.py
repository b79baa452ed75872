"""`ig.scan`, from the model to the verdict."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intaglio as ig
from intaglio.cli.main import ExitCode, main
from intaglio.data import open_data
from intaglio.errors import ClassifierError, DataError, ModelError, NothingToExamineError, RecipeError
from intaglio.report import render_report
from intaglio.scan import DETECTORS, calibration, clean_images, scan_all
from intaglio.scan.calibration import TASK_FREE, TASK_FREE_DATA, Calibration, CleanScores
from intaglio.scan.detector import UndecidableError
from intaglio.scan.measurement import measure
from intaglio.scan.one_pixel import SHOWN_CLASSES
from intaglio.scan.probes import TRIALS, labelled_probes
from intaglio.scan.scanning import UndecidedError
from scan_models import (
    MODELS,
    TASK,
    nearest_mean,
    noise,
    planted_model,
    random_model,
    scanned,
    toy_ensemble,
    toy_meta,
    without_costs,
    write_calibration,
)

SHAPE = (1, 6, 6)
BASE = ig.OnePixelSignature.name
#: The toys are 16 clean models: at 0.05 none would be decided upon that scores above them all.
ALPHA = 0.1
DOUBT = (
    "This model does not answer fashion-mnist images with that task's classes in their order, "
    "so it can't be compared with that task's clean models."
)


@pytest.fixture(autouse=True)
def _task_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small task-free calibrations instead of those shipped."""
    shipped = calibration.shipped_calibration

    def chosen(name: str) -> Calibration:
        if name in (TASK_FREE, TASK_FREE_DATA):
            probes = "clouds" if name == TASK_FREE else "data"
            return Calibration(toy_meta(name=name, probes=probes), toy_ensemble()[0], None)
        return shipped(name)

    monkeypatch.setattr(calibration, "shipped_calibration", chosen)


def fashion_model(rolled: int = 0, **options: Any) -> ig.TorchClassifier:
    """A model of Fashion-MNIST, or one whose classes are so many places further on than the task's."""
    return ig.TorchClassifier(nearest_mean(rolled), input_shape=(1, 28, 28), num_classes=10, **options)


# --- the example models ----------------------------------------------------------------------------------------------


def test_the_backdoored_example_is_found_and_its_target_named() -> None:
    clean, backdoored = scanned("clean"), scanned("backdoored")
    assert backdoored.flagged
    assert backdoored.target_class == 3
    assert backdoored.evidence[0].index == 3
    assert backdoored.score > clean.score
    assert backdoored.p_value < clean.p_value
    assert backdoored.subject.class_name(3) == "Dress"
    assert "most suspicious target: Dress" in backdoored.statement


@pytest.mark.parametrize("name", ["clean", "backdoored"])
def test_a_verdict_on_a_file(name: str) -> None:
    verdict = scanned(name)
    path = MODELS / f"{name}.onnx"
    assert verdict.subject.source == str(path)
    assert verdict.subject.sha256 == ig.open_classifier(path).sha256
    assert verdict.subject.format == "onnx"
    assert (verdict.calibrated, verdict.calibration.name, verdict.grid) == (True, TASK, None)
    assert verdict.calibration.clean_models == len(verdict.calibration.clean_scores)
    assert 8 * (4 * 28 * 28 + 1) < verdict.queries < 70_000


# --- how it is called ------------------------------------------------------------------------------------------------


def test_positional_and_keyword_arguments_mean_the_same() -> None:
    clean = noise(60, SHAPE)
    first = ig.scan(planted_model(), clean, "toys", 0.2, 3)
    second = ig.scan(planted_model(), clean=clean, task="toys", alpha=0.2, seed=3)
    assert without_costs(first) == without_costs(second)
    assert (first.task, first.alpha, first.seed) == ("toys", 0.2, 3)
    for name in ("flagged", "p_value", "score", "target_class", "calibrated", "queries", "seconds"):
        assert hasattr(first, name)
    assert first.calibrated is False
    assert first.calibration.name == TASK_FREE_DATA
    assert "not calibrated for this task" in first.statement
    assert ig.scan(planted_model(), alpha=ALPHA).calibration.name == TASK_FREE


def test_a_verdict_says_how_images_were_given_and_answers_taken() -> None:
    given = ig.Preprocessing(scale=1e-6, mean=(0.5,))
    seen = ig.scan(planted_model(), alpha=ALPHA).subject
    assert (seen.preprocessing, seen.outputs) == (ig.Preprocessing(), "logits")
    planted = planted_model()
    blinded = ig.CallableClassifier(
        planted._function, input_shape=SHAPE, num_classes=planted.num_classes, preprocessing=given
    )
    seen = ig.scan(blinded, alpha=ALPHA).subject
    assert (seen.preprocessing, seen.outputs) == (given, "logits")
    assert type(seen).from_json(seen.to_json()) == seen


def test_image_data_stand_for_their_images() -> None:
    images = noise(20, SHAPE)
    data = ig.ImageData(images, torch.zeros(20, dtype=torch.int64))
    verdicts = [ig.scan(planted_model(), given, alpha=ALPHA) for given in (data, images)]
    assert without_costs(verdicts[0]) == without_costs(verdicts[1])


def test_the_same_model_in_any_wrapping_gets_the_same_verdict() -> None:
    module = nearest_mean()

    def function(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = module(images)
            return scores

    opened = ig.TorchClassifier(module, input_shape=(1, 28, 28), num_classes=10)
    # shapes are those of the task
    verdicts = [ig.scan(model, task=TASK, detector=BASE) for model in (module, opened, function)]
    assert len({verdict.target_class for verdict in verdicts}) == 1
    assert all(verdict.calibrated for verdict in verdicts)
    for verdict in verdicts[1:]:
        # refining is greedy: a last digit that another way of computing changes can send it elsewhere
        assert verdict.score == pytest.approx(verdicts[0].score, abs=1e-2)
        assert verdict.p_value == verdicts[0].p_value
    assert [verdict.subject.access for verdict in verdicts] == ["WEIGHTS", "WEIGHTS", "SCORES"]
    with pytest.raises(ModelError, match="doesn't say its input_shape"):
        ig.scan(module)


def test_the_task_may_come_from_the_classifier() -> None:
    verdict = ig.scan(fashion_model(task=TASK))
    assert (verdict.task, verdict.calibrated) == (TASK, True)


# --- models whose classes are not the task's -------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "name"), [(False, TASK_FREE), (True, TASK_FREE_DATA)])
def test_a_model_with_its_classes_in_another_order_is_examined_as_one_of_no_known_task(data: bool, name: str) -> None:
    clean = open_data(TASK, "test").images[:100] if data else None
    verdict = ig.scan(fashion_model(1), clean, task=TASK, detector=BASE)
    plain = ig.scan(fashion_model(1), clean, detector=BASE)
    assert (verdict.calibrated, verdict.calibration.name, verdict.task) == (False, name, TASK)
    assert verdict.calibration.statement == f"{DOUBT} {toy_meta().statement}"
    assert plain.calibration.statement == toy_meta().statement
    assert verdict.statement == plain.statement
    assert "not calibrated for this task" in verdict.statement
    assert (verdict.score, verdict.p_value, verdict.evidence) == (plain.score, plain.p_value, plain.evidence)
    assert verdict.queries == plain.queries + TRIALS
    assert ig.Verdict.from_json(verdict.to_json()) == verdict


def test_a_model_with_its_classes_in_order_is_compared_with_its_task() -> None:
    verdict = ig.scan(fashion_model(), task=TASK, detector=BASE)
    assert (verdict.calibrated, verdict.calibration.name) == (True, TASK)
    assert verdict.calibration.statement.startswith(f"Calibrated for {TASK}: ranked against ")


def test_an_own_calibration_is_for_models_with_its_classes_in_order(tmp_path: Path, toy_test: ig.ImageData) -> None:
    probes = labelled_probes(toy_test)
    write_calibration(tmp_path, probes, 3, name="mine", input_shape=(1, 12, 12), statement="Calibrated for mine.")

    def bands_model(rolled: int) -> ig.CallableClassifier:
        def answer(images: Tensor) -> Tensor:
            return 10 * images.view(-1, 3, 48).mean(dim=2).roll(rolled, dims=1)

        return ig.CallableClassifier(answer, input_shape=(1, 12, 12), num_classes=3, outputs="logits")

    verdict = ig.scan(bands_model(0), calibration=tmp_path)
    assert (verdict.calibrated, verdict.calibration.name) == (True, "mine")
    assert verdict.calibration.statement == "Calibrated for mine."
    known = calibration.load_calibration(tmp_path)
    measurement = measure(bands_model(0), probes)
    with torch.no_grad():
        scores, _ = known.ensemble(measurement.features[None], measurement.targets[None])
    assert verdict.score == pytest.approx(float(scores.mean()))
    assert verdict.p_value == known.p_value(scores[0])

    other = bands_model(1)
    with pytest.raises(RecipeError, match="does not answer mine images with that task's classes in their") as caught:
        ig.scan(other, calibration=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert other.queries == TRIALS  # it is refused before it is examined


@pytest.mark.parametrize(
    ("shape", "classes", "outputs"),
    [
        ((1, 6, 6), 2, "logits"),
        ((1, 5, 5), 1000, "logits"),
        ((3, 5, 9), 4, "logits"),
        ((3, 6, 6), 3, "probabilities"),
        ((1, 9, 70), 3, "auto"),
    ],
)
def test_models_of_any_form_are_scanned(shape: tuple[int, int, int], classes: int, outputs: Any) -> None:
    verdict = ig.scan(random_model(shape, classes, outputs=outputs), alpha=ALPHA)
    assert verdict.subject.num_classes == classes
    assert len(verdict.evidence) == min(classes, 16)
    assert verdict.maps.shape[0] == min(classes, 16, SHOWN_CLASSES)
    assert verdict.maps.shape[1:] == ((9, 32) if max(shape) > 64 else shape[1:])
    assert verdict.grid == ((9, 32) if max(shape) > 64 else None)
    for entry in verdict.evidence:
        assert entry.place.row + entry.place.height <= shape[1]
        assert entry.place.column + entry.place.width <= shape[2]
    assert ig.Verdict.from_json(verdict.to_json()) == verdict


def test_an_own_calibration_is_used(tmp_path: Path) -> None:
    write_calibration(tmp_path, name="mine", task_free=False, input_shape=SHAPE, num_classes=4)
    verdict = ig.scan(planted_model(), alpha=ALPHA, calibration=tmp_path)
    assert (verdict.calibration.name, verdict.calibrated) == ("mine", True)
    with pytest.raises(RecipeError, match="task mine has 4 classes"):
        ig.scan(random_model(SHAPE, 3), calibration=tmp_path)


def test_the_smallest_task_bounds_the_p_value(tmp_path: Path) -> None:
    """40 clean models, but the largest rank counts, and one of the tasks has 10 of them."""
    low = (-1e6,)
    tasks = [CleanScores(task=name, members=(low * half, low * half)) for name, half in (("a", 15), ("b", 5))]
    write_calibration(tmp_path, clean=tuple(tasks))
    message = "p = 0.0909, and p can't be lower against 40 clean models of other tasks, ranked task by task"
    with pytest.raises(UndecidableError, match=message) as caught:
        ig.scan(planted_model(), calibration=tmp_path)
    verdict = caught.value.verdict
    assert verdict is not None
    assert (verdict.flagged, verdict.p_value, verdict.target_class) == (False, 1 / 11, None)
    assert "be decided at this alpha" in render_report([verdict])
    copied = copy.copy(caught.value)  # by what pickle goes by, between processes
    assert (str(copied), copied.verdict) == (str(caught.value), verdict)
    assert ig.scan(planted_model(), alpha=1 / 11, calibration=tmp_path).flagged


def test_a_level_that_too_few_clean_models_allow_is_not_a_clean_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "verdict.json"
    model = str(MODELS / "backdoored.onnx")
    assert main(["scan", model, "--task", TASK, "--alpha", "0.01", "--json", str(path)]) == ExitCode.NOTHING
    printed = capsys.readouterr()
    assert printed.err.startswith(
        f"intaglio: {model}: {BASE}: Can't be decided at alpha = 0.01: p = 0.0164, and p can't be lower"
    )
    assert (printed.err.count("\n"), printed.out, path.exists()) == (1, "", False)


def test_progress_rises_to_its_end() -> None:
    steps: list[tuple[int, int]] = []
    ig.scan(planted_model(), alpha=ALPHA, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_scan_all_gives_one_verdict_per_detector() -> None:
    verdicts = scan_all(planted_model(), detectors=["auto", "one-pixel-signature", "auto"], alpha=ALPHA, seed=2)
    assert [verdict.detector for verdict in verdicts] == ["one-pixel-signature"] * 2
    assert without_costs(verdicts[0]) == without_costs(verdicts[1])
    assert all(detector().name == name for name, detector in DETECTORS.items())


def test_a_detector_that_fails_costs_no_other_verdict() -> None:
    """BAN can't look into a model of one layer; the other verdict is kept, and the failure told."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    classifier = ig.TorchClassifier(module, input_shape=SHAPE, num_classes=4)
    with pytest.raises(UndecidedError, match="ban puts noise on batch normalisations") as caught:
        scan_all(classifier, detectors=["ban", "final-layer"], clean=noise(20, SHAPE))
    assert [verdict.detector for verdict in caught.value.verdicts] == ["final-layer"]
    assert (list(caught.value.failed), caught.value.undecided) == (["ban"], ())
    with pytest.raises(ModelError, match="ban puts noise on"):
        scan_all(classifier, detectors=["ban"], clean=noise(20, SHAPE))


@pytest.mark.parametrize("clean", [None, noise(20, SHAPE)])
def test_a_model_that_answers_every_image_alike_is_no_suspect(clean: torch.Tensor | None) -> None:
    constant = ig.CallableClassifier(
        lambda images: torch.tensor([5.0, 0.0, 0.0]).expand(len(images), 3), input_shape=SHAPE, num_classes=3
    )
    with pytest.raises(NothingToExamineError, match="answers every image alike"):
        ig.scan(constant, clean)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        (noise(4, (1, 6, 5)), r"expected float32 images \[N, 1, 6, 6\]"),
        (noise(4, (3, 6, 6)), r"expected float32 images \[N, 1, 6, 6\]"),
        (torch.zeros(0, *SHAPE), "no images"),
        (noise(4, SHAPE).double(), "float64"),
        (255 * noise(4, SHAPE), r"expected \[0, 1\]; divide 8-bit images by 255"),
        (torch.cat([noise(3, SHAPE), noise(1, SHAPE) - 1]), r"expected \[0, 1\]"),
        (torch.cat([noise(3, SHAPE), torch.full((1, *SHAPE), float("nan"))]), r"expected \[0, 1\]"),
        (noise(4, SHAPE).numpy(), "expected a tensor of float32 images"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_images_that_do_not_fit_are_refused(tmp_path: Path, clean: Any, message: str, own: bool) -> None:
    write_calibration(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        ig.scan(planted_model(), clean, calibration=tmp_path if own else None)
    assert "\n" not in str(caught.value)


def test_unknown_detectors_and_wrong_levels_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown detector 'oracle'; known are auto, one-pixel-signature"):
        ig.scan(planted_model(), detector="oracle")
    with pytest.raises(RecipeError, match="alpha lies between 0 and 1"):
        ig.scan(planted_model(), alpha=1.5)
    with pytest.raises(RecipeError, match="task fashion-mnist has 10 classes, this model answers with 7"):
        ig.scan(random_model((1, 28, 28), 7), task=TASK)


def test_a_model_that_breaks_off_is_reported() -> None:
    asked = 0

    def answer(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        return torch.full((len(images), 3), float("nan")) if asked > 500 else images.flatten(1)[:, :3]

    broken = ig.CallableClassifier(answer, input_shape=SHAPE, num_classes=3)
    with pytest.raises(ClassifierError, match="not finite"):
        ig.scan(broken)


def test_clean_images_come_from_the_test_split() -> None:
    classifier = random_model((1, 28, 28), 10)
    assert torch.equal(clean_images(TASK, classifier), open_data(TASK, "test").images)
    with pytest.raises(DataError, match=r"fashion-mnist: images are \(1, 28, 28\), but the model takes \(1, 6, 6\)"):
        clean_images(TASK, planted_model())
