"""Fitting: populations made of untrained networks whose measurements are given, so that every figure is known."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from intaglio.classifiers import Classifier, Sidecar, open_classifier, save_classifier
from intaglio.data import open_data
from intaglio.errors import DataError, NothingToExamineError, RecipeError
from intaglio.evidence.statistics import auroc
from intaglio.networks import Architecture
from intaglio.populations import LocalExecutor, ModelRecord, model_folder
from intaglio.scan import confidence, ensemble, fitting
from intaglio.scan.calibration import META, WEIGHTS, load_calibration
from intaglio.scan.ensemble import Examples, Member, assign_folds, out_of_fold
from intaglio.scan.features import FEATURES
from intaglio.scan.fitting import fit_calibration, fit_tasks, join_calibration, measure_population, p_values
from intaglio.scan.measurement import VERSION, measure
from intaglio.scan.probes import labelled_probes
from intaglio.scan.reference import Reference
from intaglio.training import TrainingSettings
from scan_models import toy_examples

ARCHITECTURE = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=1)


class Here(LocalExecutor):
    """Works in this process, and breaks off with Ctrl-C after `limit` tasks."""

    def __init__(self, limit: int = 10**6) -> None:
        super().__init__(1)
        self.limit = limit

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == self.limit:
                raise KeyboardInterrupt
            yield function(task)


class Bench:
    """Makes populations whose model i measures as example i, and counts the measurements."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data
        self.examples: dict[Path, Examples] = {}
        self.measured = 0

    def population(
        self,
        name: str,
        task: str = "bands",
        count: int = 16,
        seed: int = 0,
        architecture: Architecture = ARCHITECTURE,
        **changes: Any,
    ) -> Path:
        folder, examples = self.root / name, toy_examples(count, architecture.num_classes, seed, shift=8)
        self.examples[folder] = examples
        module = architecture.build()
        for index in range(count):
            path = model_folder(folder, index)
            path.mkdir(parents=True)
            save_classifier(module, path / "model.safetensors", Sidecar(architecture=architecture))
            backdoored = bool(examples.backdoored[index])
            goal = {"kind": "all-to-one", "target": int(examples.classes[index, examples.target[index]])}
            record = ModelRecord(
                index=index,
                seed=index,
                task=task,
                architecture=architecture,
                training=TrainingSettings(),
                attack={"trigger": "patch", "goal": goal | changes} if backdoored else None,
                clean_accuracy=0.9,
                asr=1.0 if backdoored else None,
                sha256="",
                seconds=1.0,
            )
            (path / "record.json").write_text(record.model_dump_json())
        (folder / "recipe.json").write_text(json.dumps({"data": str(self.data)}))
        return folder

    def sureness(self, folder: Path, index: int) -> float:
        """A model's confidence: its number, and 100 for every population before its own."""
        return 100.0 * list(self.examples).index(folder) + index

    def measure(self, classifier: Classifier, probes: object) -> SimpleNamespace:
        self.measured += 1
        path = Path(classifier.source).parent
        examples, index = self.examples[path.parent], int(path.name)
        return SimpleNamespace(
            features=examples.features[index],
            targets=examples.classes[index],
            confidence=self.sureness(path.parent, index),
        )


@pytest.fixture
def bench(tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path, toy_file)
    monkeypatch.setattr(fitting, "measure", made.measure)
    monkeypatch.setattr(fitting, "FOLDS", 2)
    monkeypatch.setattr(ensemble, "_SETTINGS", ensemble._SETTINGS.model_copy(update={"epochs": 20}))
    return made


def test_a_fitted_detector_is_written_whole(bench: Bench, tmp_path: Path, toy_file: Path) -> None:
    folder = bench.population("models")
    meta = fit_calibration([folder], tmp_path / "out", executor=Here())
    loaded = load_calibration(tmp_path / "out")
    assert loaded.meta == meta
    assert (meta.name, meta.task_free, meta.probes) == ("bands", False, "stored")
    assert (meta.input_shape, meta.num_classes, meta.backdoored_models) == ((1, 12, 12), 3, 8)
    assert [len(fold) for fold in meta.clean[0].members] == [4, 4]
    examples = bench.examples[folder]
    scores, _ = out_of_fold(loaded.ensemble, examples, assign_folds(examples.backdoored, 2, 0))
    clean, backdoored = scores[~examples.backdoored].tolist(), scores[examples.backdoored].tolist()
    assert meta.out_of_fold_auroc == auroc(backdoored, clean).value
    assert sorted(meta.clean_scores) == pytest.approx(sorted(clean))
    by_index = dict(zip((~examples.backdoored).nonzero().flatten().tolist(), clean, strict=True))
    for fold, sureness in zip(meta.clean[0].members, meta.clean[0].confidence, strict=True):
        assert fold == pytest.approx([by_index[int(index)] for index in sureness])  # here its index is its confidence
    assert meta.statement == (
        "Calibrated for bands: ranked against 8 clean models. With so few, nothing can be flagged at alpha = 0.05. "
        "Its false-alarm rate was not measured."
    )
    probes = labelled_probes(open_data(toy_file, "test"))
    assert loaded.probes is not None
    for name in ("bases", "trials", "labels"):
        assert torch.equal(getattr(loaded.probes, name), getattr(probes, name))


def test_a_calibration_says_what_its_models_take(bench: Bench, tmp_path: Path) -> None:
    meta = fit_calibration([bench.population("models", "mnist")], tmp_path / "out", executor=Here(), name="mine")
    assert (meta.name, meta.input_shape, meta.num_classes) == ("mine", (1, 12, 12), 3)


@pytest.mark.parametrize(
    ("options", "compared"),
    [({}, True), ({"probes": "clouds"}, False), ({"probes": "data"}, False), ({"task_free": True}, False)],
)
def test_classes_are_compared_where_their_order_can_be_checked(
    bench: Bench, tmp_path: Path, options: dict[str, Any], compared: bool
) -> None:
    folder = bench.population("models")
    fit_calibration([folder], tmp_path / "out", executor=Here(), **options)
    loaded = load_calibration(tmp_path / "out")
    assert (loaded.probes is not None and loaded.probes.labels is not None) == compared
    examples = bench.examples[folder]
    fold = assign_folds(examples.backdoored, 2, 0)
    for index, member in enumerate(loaded.ensemble.members):
        assert isinstance(member, Member)
        if compared:
            known = examples.take((fold != index) & ~examples.backdoored)
            expected = Reference(3, len(FEATURES))
            expected.learn(known.features, known.classes)
            assert member.reference is not None
            assert torch.equal(member.reference.middle, expected.middle)
            assert torch.equal(member.reference.spread, expected.spread)
        else:
            assert member.reference is None


def test_what_was_measured_is_not_measured_again(bench: Bench, tmp_path: Path) -> None:
    folder, steps = bench.population("models"), []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    first = fit_calibration([folder], tmp_path / "a", executor=Here(), progress=progress)
    assert bench.measured == 16
    assert steps == [(done, 16) for done in range(1, 17)]
    second = fit_calibration([folder], tmp_path / "b", executor=Here())
    assert bench.measured == 16
    assert first == second
    for file in (META, WEIGHTS):  # the same seed, the same bytes
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert fit_calibration([folder], tmp_path / "c", executor=Here(), seed=1).weights_sha256 != first.weights_sha256
    measure_population(folder, "data", Here())  # a user's images of the task stand for the task's own
    assert bench.measured == 16
    measure_population(folder, "clouds", Here())
    assert bench.measured == 32


def test_measuring_goes_on_where_it_was_interrupted(bench: Bench) -> None:
    folder = bench.population("models")
    with pytest.raises(KeyboardInterrupt):
        measure_population(folder, "stored", Here(limit=5))
    assert bench.measured == 5
    steps: list[tuple[int, int]] = []
    measured = measure_population(folder, "stored", Here(), lambda done, total: steps.append((done, total)))
    assert bench.measured == 16
    assert steps[0] == (6, 16)
    expected = bench.examples[folder]
    assert measured.task == "bands"
    assert [record.index for record in measured.records] == list(range(16))
    for name in ("features", "classes", "backdoored", "target", "asr"):
        assert torch.equal(getattr(measured.examples, name), getattr(expected, name))


@pytest.mark.parametrize("goal", [{"kind": "all-to-all", "target": -1}, {"target": 9}])
def test_models_without_an_examined_target_have_no_target_row(bench: Bench, goal: dict[str, Any]) -> None:
    measured = measure_population(bench.population("models", **goal), "stored", Here())
    assert set(measured.examples.target.tolist()) == {-1}


def test_false_alarms_are_counted_on_models_never_learned_from(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LEVEL", 0.3)
    models, unseen = bench.population("models"), bench.population("unseen", count=20, seed=5)
    meta = fit_calibration([models], tmp_path / "out", test=[unseen], executor=Here())
    loaded, examples = load_calibration(tmp_path / "out"), bench.examples[unseen]
    with torch.no_grad():
        scores = loaded.ensemble(examples.features, examples.classes)[0]
    accused = [loaded.p_value(row) <= 0.3 for row, bad in zip(scores, examples.backdoored, strict=True) if not bad]
    assert meta.false_alarms is not None
    assert (meta.false_alarms.events, meta.false_alarms.trials) == (sum(accused), 10)
    assert meta.false_alarms.rate == sum(accused) / 10
    assert meta.false_alarms.low <= meta.false_alarms.rate <= meta.false_alarms.high
    assert f"Measured at alpha = 0.3: {sum(accused)} of 10 clean models that the fit never saw" in meta.statement
    assert meta.clean == fit_calibration([models], tmp_path / "alone", executor=Here()).clean
    found = p_values(loaded.ensemble, meta.clean, examples)
    assert found.tolist() == pytest.approx([loaded.p_value(row) for row in scores])


def test_alarms_are_ranks_by_confidence(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidence, "LEAST", 2)
    models, unseen = bench.population("models"), bench.population("unseen", count=20, seed=5)
    meta = fit_calibration([models], tmp_path / "out", executor=Here())
    loaded = load_calibration(tmp_path / "out")
    examples = measure_population(unseen, "stored", Here()).examples
    scores = loaded.ensemble(examples.features, examples.classes)[0]
    found = p_values(loaded.ensemble, meta.clean, examples).tolist()
    sureness = examples.confidence.tolist()
    by_hand = [loaded.p_value(row, own) for row, own in zip(scores, sureness, strict=True)]
    assert found == pytest.approx(by_hand)
    assert found != pytest.approx([loaded.p_value(row, -1.0) for row in scores])  # the surer half of the clean models


def test_a_task_free_detector_leaves_each_task_out_in_turn(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LEVEL", 0.3)
    folders = [bench.population("b", "zebras"), bench.population("a", "apes", seed=1)]
    bench.examples[folders[1]].features[..., : len(FEATURES) // 10] += 4  # apes look backdoored to who knows none
    meta = fit_calibration(folders, tmp_path / "out", task_free=True, executor=Here())
    assert (meta.name, meta.task_free, meta.probes, meta.input_shape) == ("task-free", True, "clouds", None)
    assert [(task.task, task.confidence) for task in meta.clean] == [("apes", ()), ("zebras", ())]
    assert len(meta.clean_scores) == 16
    assert load_calibration(tmp_path / "out").probes is None
    events = []
    for kept, left_out in ((0, 1), (1, 0)):  # apes are left out first
        fitted, clean, _ = fit_tasks({"kept": bench.examples[folders[kept]]}, 0)
        unseen = bench.examples[folders[left_out]]
        events.append(int((p_values(fitted, clean, unseen)[~unseen.backdoored] <= 0.3).sum()))
    assert meta.false_alarms is not None
    assert (meta.false_alarms.events, meta.false_alarms.trials) == (sum(events), 16)
    assert [(rate.events, rate.trials) for rate in meta.false_alarms_by_task] == [(count, 8) for count in events]
    assert events[0] > events[1]
    assert meta.statement.startswith(
        "Not calibrated for this task: ranked against 16 clean models of other tasks (apes, zebras)."
    )
    assert f"left out of the fit in turn: {events[0]} of 8 of apes (" in meta.statement
    assert f"), {events[1]} of 8 of zebras (" in meta.statement


def test_a_task_free_detector_of_one_task_has_no_measured_rate(bench: Bench, tmp_path: Path) -> None:
    meta = fit_calibration([bench.population("a")], tmp_path / "out", task_free=True, probes="data", executor=Here())
    assert (meta.false_alarms, meta.false_alarms_by_task, meta.probes) == (None, (), "data")
    assert "was not measured" in meta.statement


def test_populations_of_one_task_are_joined(bench: Bench, tmp_path: Path) -> None:
    folders = [bench.population("a"), bench.population("b", count=20, seed=3)]
    meta = fit_calibration(folders, tmp_path / "out", executor=Here())
    assert (len(meta.clean_scores), meta.backdoored_models) == (18, 18)


def test_only_the_first_so_many_models_are_used(bench: Bench, tmp_path: Path) -> None:
    folder = bench.population("models")
    meta = fit_calibration([folder], tmp_path / "out", models=10, executor=Here())
    assert (len(meta.clean_scores), meta.backdoored_models, bench.measured) == (5, 5, 10)
    with pytest.raises(DataError, match="1 backdoored models are too few"):
        fit_calibration([folder], tmp_path / "few", models=2, executor=Here())


def test_what_can_not_be_fitted_is_refused(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match=r"populations of several tasks \(apes, zebras\) need --task-free"):
        fit_calibration([bench.population("a", "apes"), bench.population("z", "zebras")], out, executor=Here())
    with pytest.raises(DataError, match="1 backdoored models are too few to fit a detector; 2 are the least"):
        fit_calibration([bench.population("few", count=3)], out, executor=Here())
    with pytest.raises(DataError, match="nowhere: no such folder"):
        fit_calibration([tmp_path / "nowhere"], out, executor=Here())
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToExamineError, match="no finished models in it"):
        fit_calibration([tmp_path / "empty"], out, executor=Here())
    more = bench.population("more", architecture=ARCHITECTURE.model_copy(update={"num_classes": 4}))
    wide = bench.population("wide", architecture=ARCHITECTURE.model_copy(update={"input_shape": (1, 12, 14)}))
    same = bench.population("same")
    for other, size in ((more, r"\(1, 12, 12\) and 3, \(1, 12, 12\) and 4"), (wide, r"and 3, \(1, 12, 14\) and 3")):
        with pytest.raises(DataError, match=f"take the same inputs and have the same classes, not .*{size}"):
            fit_calibration([same], out, test=[other], executor=Here())
    (tmp_path / "again").symlink_to(same)
    for folders, test in (([same], [same]), ([same, same], []), ([same], [tmp_path / "again"])):
        with pytest.raises(RecipeError, match="named twice; a fit is tested on models that it never saw"):
            fit_calibration(folders, out, test=test, executor=Here())
    silent = bench.population("silent")
    (silent / "recipe.json").unlink()
    with pytest.raises(DataError, match="does not name the population's data"):
        fit_calibration([silent], out, executor=Here())
    assert not out.exists()


def test_false_alarms_are_counted_on_models_of_the_fitted_task_alone(bench: Bench, tmp_path: Path) -> None:
    bands, apes = bench.population("models"), bench.population("others", "apes", seed=1)
    with pytest.raises(RecipeError, match="others: models of apes, but the fit is of bands"):
        fit_calibration([bands], tmp_path / "out", test=[apes], executor=Here())
    with pytest.raises(RecipeError, match="stored images are those of one task"):
        fit_calibration([bands], tmp_path / "out", task_free=True, probes="stored", executor=Here())
    with pytest.raises(RecipeError, match="on tasks left out in turn: give it no --test"):
        fit_calibration([bands], tmp_path / "out", test=[apes], task_free=True, executor=Here())
    assert (bench.measured, (tmp_path / "out").exists()) == (0, False)


def test_more_clean_models_join_those_of_a_calibration(bench: Bench, tmp_path: Path) -> None:
    fit_calibration([bench.population("models")], tmp_path / "base", executor=Here())
    base = load_calibration(tmp_path / "base")
    more, unseen = bench.population("more", count=12, seed=7), bench.population("unseen", count=20, seed=5)
    meta = join_calibration(base, [more], tmp_path / "out", test=[unseen], executor=Here())
    loaded = load_calibration(tmp_path / "out")
    assert loaded.meta == meta
    assert (meta.name, meta.task_free, meta.probes, meta.num_classes) == ("bands", False, "stored", 3)
    assert (meta.backdoored_models, meta.out_of_fold_auroc) == (8, base.meta.out_of_fold_auroc)
    assert [len(fold) for fold in meta.clean[0].members] == [4 + 3, 4 + 3]
    examples = bench.examples[more]
    scores = base.ensemble(examples.features, examples.classes)[0]
    # clean models 0, 2, 4, ... are scored by one member and the other in turn
    for member, indices in enumerate(([0, 4, 8], [2, 6, 10])):
        assert meta.clean[0].members[member][4:] == pytest.approx(scores[indices, member].tolist())
        assert meta.clean[0].confidence[member][4:] == tuple(bench.sureness(more, index) for index in indices)
    assert meta.clean[0].members[0][:4] == base.meta.clean[0].members[0]
    assert meta.false_alarms is not None
    assert meta.false_alarms.trials == 10
    assert meta.statement.startswith("Calibrated for bands: ranked against 14 clean models. With so few, nothing")
    for name, tensor in base.ensemble.state_dict().items():
        assert torch.equal(tensor, loaded.ensemble.state_dict()[name])
    with pytest.raises(RecipeError, match="more are ranked against already"):
        join_calibration(loaded, [more], tmp_path / "twice", executor=Here())
    with pytest.raises(RecipeError, match="more are ranked against already"):
        join_calibration(loaded, [bench.population("third", seed=9)], tmp_path / "no", test=[more], executor=Here())
    # a base whose models' confidence is not known: all are ranked against
    old = replace(
        base, meta=base.meta.model_copy(update={"clean": (base.meta.clean[0].model_copy(update={"confidence": ()}),)})
    )
    assert join_calibration(old, [more], tmp_path / "old", executor=Here()).clean[0].confidence == ()


def test_a_task_free_detector_becomes_one_of_the_task_of_clean_models(bench: Bench, tmp_path: Path) -> None:
    fit_calibration(
        [bench.population("b", "zebras"), bench.population("a", "apes", seed=1)],
        tmp_path / "base", task_free=True, probes="data", executor=Here(),
    )  # fmt: skip
    base, mine = load_calibration(tmp_path / "base"), bench.population("mine", "gnus", count=12, seed=7)
    meta = join_calibration(base, [mine], tmp_path / "out", executor=Here())
    assert (meta.name, meta.task_free, meta.probes) == ("gnus", False, "data")
    assert (meta.input_shape, meta.num_classes) == ((1, 12, 12), 3)
    assert [(task.task, sum(map(len, task.members))) for task in meta.clean] == [("gnus", 6)]
    assert meta.statement.startswith("Calibrated for gnus: ranked against 6 clean models. With so few, nothing")


def test_clean_models_that_can_not_join(bench: Bench, tmp_path: Path) -> None:
    fit_calibration([bench.population("models")], tmp_path / "base", executor=Here())
    base, out = load_calibration(tmp_path / "base"), tmp_path / "out"
    with pytest.raises(RecipeError, match="of one task are ranked against, not of bands, gnus"):
        join_calibration(base, [bench.population("gnus", "gnus")], out, executor=Here())
    wide = bench.population("wide", architecture=ARCHITECTURE.model_copy(update={"input_shape": (1, 12, 14)}))
    with pytest.raises(DataError, match=r"bands is for \(1, 12, 12\) and 3 classes, not \(1, 12, 14\), 3"):
        join_calibration(base, [wide], out, executor=Here())
    other = bench.population("other")
    (other / "recipe.json").write_text(json.dumps({"data": "fashion-mnist"}))
    with pytest.raises(RecipeError, match="other: made from other images than bands probes with"):
        join_calibration(base, [other], out, executor=Here())
    poisoned = bench.population("poisoned", count=2)
    bench.examples[poisoned].backdoored[:] = True
    shutil.rmtree(model_folder(poisoned, 0))
    with pytest.raises(DataError, match="poisoned: no clean models in it"):
        join_calibration(base, [poisoned], out, executor=Here())
    assert not out.exists()


def test_a_model_is_measured_as_a_scan_would(bench: Bench, monkeypatch: pytest.MonkeyPatch, toy_file: Path) -> None:
    folder = bench.population("models", count=1)
    monkeypatch.setattr(fitting, "measure", measure)
    measure_population(folder, "stored", Here())
    kept = load_file(model_folder(folder, 0) / f"features-images-v{VERSION}.safetensors")
    classifier = open_classifier(model_folder(folder, 0) / "model.safetensors")
    expected = measure(classifier, labelled_probes(open_data(toy_file, "test")))
    assert torch.equal(kept["targets"], expected.targets)
    torch.testing.assert_close(kept["features"], expected.features)
    assert float(kept["confidence"]) == pytest.approx(expected.confidence)
