"""The frame of every detector, tried with one that draws its score; and the probes of the one-pixel detector."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from intaglio.classifiers import Access, CallableClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, RecipeError
from intaglio.scan import Detector, Finding, OnePixelSignature, Request
from intaglio.scan.calibration import Calibration, load_calibration
from intaglio.scan.measurement import Measurement, measure
from intaglio.scan.one_pixel import choose_probes, class_evidence
from intaglio.scan.probes import BASES, CONSIDERED, TRIALS, Probes, labelled_probes, predicted_probes, synthetic_probes
from intaglio.scan.verdict import ClassEvidence, EncodedMaps, Place
from scan_models import noise, random_model, toy_ensemble, toy_meta, without_costs, write_calibration


class Drawn(Detector):
    """Asks 7 images and draws its score; the p-value is given."""

    name = "drawn"
    requires = Access.SCORES

    def __init__(self, p_value: float = 0.5) -> None:
        self.p_value = p_value
        self.request: Request | None = None

    def run(self, classifier: Any, request: Request) -> Finding:
        self.request = request
        classifier.scores(noise(7, classifier.input_shape))
        evidence = tuple(
            ClassEvidence(
                index=index, suspicion=-float(index), peak=1.0, place=Place(row=0, column=0, height=1, width=1)
            )
            for index in (2, 0, 1)
        )
        maps = EncodedMaps.encode(torch.zeros(3, 5, 5).numpy(), base="black", variant="logit", classes=(2, 0, 1))
        known = Calibration(toy_meta(), toy_ensemble()[0], None)
        calibration = known.summary(torch.zeros(len(known.meta.clean[0].members)))
        return Finding(float(torch.rand(())), self.p_value, False, calibration, evidence, maps, None)


def model(**options: Any) -> CallableClassifier:
    return random_model((1, 5, 5), 3, **options)


def test_queries_are_those_of_the_examination() -> None:
    classifier = model()
    classifier.scores(noise(4, (1, 5, 5)))
    assert Drawn().inspect(classifier).queries == 7
    assert classifier.queries == 11


@pytest.mark.parametrize(("p_value", "alpha", "flagged"), [(0.05, 0.05, True), (0.051, 0.05, False), (0.2, 0.3, True)])
def test_the_decision_is_made_at_alpha(p_value: float, alpha: float, flagged: bool) -> None:
    verdict = Drawn(p_value).inspect(model(), alpha=alpha)
    assert (verdict.flagged, verdict.alpha, verdict.p_value) == (flagged, alpha, p_value)
    assert verdict.target_class == (2 if flagged else None)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan"), float("inf")])
def test_alpha_lies_between_0_and_1(alpha: float) -> None:
    classifier = model()
    with pytest.raises(RecipeError, match="alpha lies between 0 and 1, got"):
        Drawn().inspect(classifier, alpha=alpha)
    assert classifier.queries == 0


def test_too_little_access_is_refused_before_a_query() -> None:
    labels = CallableClassifier(
        lambda x: x.flatten(1).argmax(1) % 3, input_shape=(1, 5, 5), num_classes=3, access=Access.LABELS
    )
    for detector in (Drawn(), OnePixelSignature()):
        with pytest.raises(ClassifierError, match=r"needs SCORES access, .* offers LABELS"):
            detector.inspect(labels)
    assert labels.queries == 0


def test_chance_flows_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = Drawn().inspect(model(), seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(10)
    second, other = Drawn().inspect(model(), seed=5), Drawn().inspect(model(), seed=6)
    assert without_costs(first) == without_costs(second)
    assert first.score != other.score
    assert (first.seed, other.seed) == (5, 6)


def test_errors_of_the_detector_pass_and_leave_chance_alone() -> None:
    class Failing(Drawn):
        def run(self, classifier: Any, request: Request) -> Finding:
            torch.rand(3)
            raise DataError("nothing to see")

    state = torch.random.get_rng_state()
    with pytest.raises(DataError, match="nothing to see"):
        Failing().inspect(model())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_value": 0.0}, r"drawn failed: a score of .* with a p-value of 0\.0, and 3 classes"),
        ({"p_value": 1.5}, r"with a p-value of 1\.5"),
        ({"p_value": float("nan")}, "with a p-value of nan"),
        ({"score": float("inf")}, "a score of inf"),
        ({"evidence": ()}, "and 0 classes to suspect"),
    ],
)
def test_what_no_method_can_find_is_its_failure(change: dict[str, Any], message: str) -> None:
    class Wrong(Drawn):
        def run(self, classifier: Any, request: Request) -> Finding:
            return replace(super().run(classifier, request), **change)

    with pytest.raises(ClassifierError, match=message):
        Wrong(0.01).inspect(model())


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ZeroDivisionError("of\nwhat"), ClassifierError, "^drawn failed: ZeroDivisionError: of what$"),
        (AssertionError(), ClassifierError, "^drawn failed: AssertionError$"),
        (MemoryError(), MemoryError, "^$"),
        (OSError(28, "No space left"), OSError, "No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_bug_is_the_methods_failure_but_no_memory_is_no_finding(
    error: BaseException, expected: type[BaseException], message: str
) -> None:
    class Failing(Drawn):
        def run(self, classifier: Any, request: Request) -> Finding:
            raise error

    with pytest.raises(expected, match=message) as caught:
        Failing().inspect(model())
    assert caught.value is error or caught.value.__cause__ is error


def test_run_is_given_what_the_caller_gave() -> None:
    detector, images, calls = Drawn(), noise(2, (1, 5, 5)), [0]

    def progress(done: int, total: int) -> None:
        calls[0] += 1

    detector.inspect(model(), clean=images, task="toys", seed=4, progress=progress)
    assert detector.request == Request(images, "toys", 4, progress)


def test_the_verdict_names_its_subject() -> None:
    classifier = model(source="net.onnx", sha256="ab", task="toys", classes=("cat", "dog", "cow [x]"))
    verdict = Drawn(0.01).inspect(classifier)
    subject = verdict.subject
    assert (subject.source, subject.sha256, subject.format, subject.task) == ("net.onnx", "ab", "callable", "toys")
    assert (subject.input_shape, subject.num_classes, subject.access) == ((1, 5, 5), 3, "SCORES")
    assert verdict.statement == (
        "Suspicious, but not calibrated for this task: p = 0.01 against 16 clean models of other tasks; "
        "most suspicious target: cow [x]. Only clean models of its own task could confirm it."
    )
    assert "target: class 2." in Drawn(0.01).inspect(model()).statement
    assert Drawn(0.5).inspect(classifier).statement == (
        "No backdoor found at alpha = 0.05: p = 0.5 against 16 clean models of other tasks, "
        "not calibrated for this task."
    )
    assert verdict.detector == "drawn"
    assert verdict.peak_memory_mb > 0
    assert verdict.seconds >= 0


def test_a_detector_must_write_run() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?run"):
        type("Empty", (Detector,), {"name": "empty", "requires": Access.SCORES})()


# --- the one-pixel detector ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (3, 1, 1)])
def test_inputs_without_places_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="one-pixel-signature needs images of some pixels"):
        OnePixelSignature().inspect(random_model(shape, 3))


def test_probes_are_those_that_the_calibration_was_fitted_with(tmp_path: Path) -> None:
    classifier, own = model(), Probes(noise(2, (1, 5, 5)), noise(3, (1, 5, 5), 2))
    write_calibration(tmp_path / "stored", own)
    write_calibration(tmp_path / "clouds")
    stored = choose_probes(load_calibration(tmp_path / "stored"), classifier, noise(9, (1, 5, 5)))
    assert torch.equal(stored.bases, own.bases)
    clouds = choose_probes(load_calibration(tmp_path / "clouds"), classifier, None)
    assert torch.equal(clouds.trials, synthetic_probes((1, 5, 5)).trials)
    wanting = Calibration(toy_meta(probes="data"), toy_ensemble()[0], None)
    images = noise(60, (1, 5, 5))
    assert torch.equal(choose_probes(wanting, classifier, images).bases, predicted_probes(classifier, images).bases)
    with pytest.raises(DataError, match=r"calibration toys needs clean images of the model's task \(--data\)"):
        choose_probes(wanting, classifier, None)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 20), (1, 1, 2), (3, 224, 224)])
def test_clouds_are_images_and_always_the_same(shape: tuple[int, int, int]) -> None:
    probes = synthetic_probes(shape)
    assert probes.bases.shape == (BASES, *shape)
    assert probes.trials.shape == (TRIALS, *shape)
    everything = torch.cat([probes.bases, probes.trials])
    assert float(everything.min()) >= 0
    assert float(everything.max()) <= 1
    state = torch.random.get_rng_state()
    assert torch.equal(synthetic_probes(shape).trials, probes.trials)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_probes_go_round_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 5)
    images = (torch.arange(75) / 100).view(-1, 1, 1, 1).expand(75, 1, 2, 2)
    probes = labelled_probes(ImageData(images, labels))
    numbers = [round(100 * float(image[0, 0, 0])) for image in (*probes.bases, *probes.trials)]
    assert numbers[:9] == [0, 50, 70, 1, 51, 71, 2, 52, 72]
    assert len(set(numbers)) == BASES + TRIALS
    assert numbers[15:19] == [5, 55, 6, 56]
    few = labelled_probes(ImageData(images[:5], labels[:5]))
    assert torch.equal(few.trials, few.bases)
    assert len(few.bases) == 5
    assert few.labels is not None
    assert few.labels.tolist() == [0] * 5


def test_probes_know_the_labels_that_they_were_given() -> None:
    labels = torch.arange(75) % 3
    images = (labels / 10).view(-1, 1, 1, 1).expand(75, 1, 5, 5).contiguous()
    probes = labelled_probes(ImageData(images, labels))
    assert probes.labels is not None
    assert probes.labels.dtype == torch.int64
    torch.testing.assert_close(probes.trials[:, 0, 0, 0], probes.labels / 10)
    assert predicted_probes(model(), images).labels is None  # what a model answers is no label
    assert synthetic_probes((1, 5, 5)).labels is None


def test_no_more_images_are_classified_than_needed() -> None:
    classifier = model()
    probes = predicted_probes(classifier, noise(CONSIDERED + 100, (1, 5, 5)))
    assert classifier.queries == CONSIDERED
    assert (len(probes.bases), len(probes.trials)) == (BASES, TRIALS)


def test_probes_are_of_all_classes_though_images_are_sorted() -> None:
    labels = torch.arange(3).repeat_interleave(CONSIDERED)
    images = (labels / 10).view(-1, 1, 1, 1).expand(-1, 1, 5, 5).contiguous()

    def tells(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((10 * images[:, 0, 0, 0]).round().long(), 3).float()

    probes = predicted_probes(CallableClassifier(tells, input_shape=(1, 5, 5), num_classes=3), images)
    for part in (probes.bases, probes.trials):
        assert set((10 * part[:, 0, 0, 0]).round().tolist()) == {0, 1, 2}


def test_evidence_is_sorted_and_points_at_the_peak() -> None:
    effect = torch.zeros(3, 6, 6)
    for index, (row, column) in enumerate([(0, 0), (2, 3), (5, 5)]):
        effect[index, row, column] = 9.0
    known = SimpleNamespace(responses=SimpleNamespace(effect=effect), targets=torch.tensor([2, 0, 1]), frames=None)
    measurement = cast(Measurement, known)
    evidence = class_evidence(measurement, torch.tensor([0.1, 0.9, 0.5]), (1, 6, 6))
    assert [entry.index for entry in evidence] == [0, 1, 2]
    assert [entry.suspicion for entry in evidence] == pytest.approx([0.9, 0.5, 0.1])
    for entry in evidence:
        place = entry.place
        row, column = [(0, 0), (2, 3), (5, 5)][entry.index]
        assert place.row <= row < place.row + place.height <= 6
        assert place.column <= column < place.column + place.width <= 6
    blocks = class_evidence(measurement, torch.tensor([0.1, 0.9, 0.5]), (1, 60, 70))
    assert all(entry.place.row + entry.place.height <= 60 for entry in blocks)
    assert blocks[2].place.row + blocks[2].place.height == 60


def test_measuring_costs_what_it_says() -> None:
    classifier = model()
    probes = Probes(noise(2, (1, 5, 5)), noise(3, (1, 5, 5), 2))
    measurement = measure(classifier, probes)
    fixed = 2 * (4 * 25 + 1) + 3 * (1 + len(measurement.targets) * measurement.effect.flips.shape[1])
    refined = len(measurement.targets) * 2 * (1 + 4 * (2 * 25 + 6))
    assert fixed < classifier.queries <= fixed + refined
