"""A small bench, run whole: two attacks against two detectors on the toy problem; then its table by hand."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from intaglio.bench import AttackRow, BenchRecipe, BenchTable, memory, read_bench_recipe, run_bench
from intaglio.bench.cells import Cell, cell_path, read_cell
from intaglio.bench.memory import PeakMemory
from intaglio.bench.recipe import CLEAN, slug
from intaglio.bench.table import make_table
from intaglio.bench.victims import VictimRecord, open_given, read_victim, victim_folder
from intaglio.classifiers import Access, Classifier
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, RecipeError, StorageError
from intaglio.evidence.statistics import auroc_interval
from intaglio.files import holding
from intaglio.networks import Architecture
from intaglio.populations import population
from intaglio.scan import Measured, Request, ScoreDetector, scanning
from intaglio.training import TrainingSettings


class Here:
    """Runs jobs in this process; stops after `limit` of them, as if interrupted."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.done = limit, 0

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            if self.done == self.limit:
                raise KeyboardInterrupt
            self.done += 1
            yield function(task)


class Brightness(ScoreDetector):
    """How often the asked images are answered with one class: enough to find the toy backdoors."""

    name = "brightness"
    requires = Access.LABELS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        assert request.training is not None
        assert request.inputs is not None
        assert request.clean is not None
        assert len(request.training) == 96
        counts = classifier.predict(request.inputs).bincount(minlength=classifier.num_classes).float()
        return Measured(float(counts.max()), counts)


class Refusing(ScoreDetector):
    """Never has what it needs."""

    name = "refusing"
    requires = Access.WEIGHTS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        raise ClassifierError("this one asks for the moon")


@pytest.fixture(autouse=True)
def _detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "DETECTORS", {**scanning.DETECTORS, "brightness": Brightness, "refusing": Refusing})


def recipe(toy_file: Path, **changes: Any) -> BenchRecipe:
    content: dict[str, Any] = {
        "name": "toy",
        "task": "bands",
        "data": str(toy_file),
        "clean": 3,
        "models": 2,
        "asked": 20,
        "architectures": [{"name": "lenet", "width": 4}],
        "training": {"epochs": 12, "batch_size": 16, "learning_rate": 5e-3},
        "attacks": [
            {"attack": "badnets", "options": {"rate": 0.2}},
            {"attack": "blended", "label": "blended, faint", "options": {"rate": 0.1, "alpha": 0.1}},
        ],
        "detectors": ["brightness", "refusing"],
    }
    return BenchRecipe.model_validate(content | changes)


def test_a_bench_is_played_resumed_and_never_repeated(toy_file: Path, tmp_path: Path, toy: ImageData) -> None:
    plan, out = recipe(toy_file), tmp_path / "bench"
    steps: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run_bench(plan, out, executor=Here(9), progress=lambda *step: steps.append(step))
    assert steps[-1] == (9, 21)
    assert BenchTable.from_json((out / "table.json").read_text()).detectors[1].failed == 0  # of what was finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert len([path for path in before if path.parent.parent.parent.name == "cells"]) == 2
    second = Here()
    table = run_bench(plan, out, executor=second)
    assert second.done == 12
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    third = Here()
    assert run_bench(plan, out, executor=third) == table
    assert third.done == 0

    badnets = table.attacks[0]
    assert (badnets.row, badnets.victims, badnets.failed) == ("badnets", 2, 0)
    assert badnets.asr is not None
    assert badnets.asr > 0.9
    assert badnets.asr_unpoisoned is not None
    assert badnets.asr_unpoisoned < 0.3
    assert badnets.poison_rate == pytest.approx(0.2, abs=0.01)
    entry = table.entry("badnets", "brightness")
    assert entry.auroc is not None
    assert entry.auroc.value == 1.0
    assert entry.named == 1.0
    assert table.entry("blended, faint", "refusing").failed == 2
    refusing = table.detectors[1]
    assert (refusing.failed, refusing.reasons, refusing.mean_auroc) == (3, ("this one asks for the moon",), None)
    assert BenchTable.from_json((out / "table.json").read_bytes()) == table
    low = auroc_interval(1.0, 2, 3).low
    assert f"| badnets | 1.000 [{low:.3f}, 1.000] (1.000) | -, 0 of 2 |" in (out / "table.md").read_text()
    assert 0.2 < low < 0.5  # two victims and three clean models say little
    assert (out / "table.svg").read_text().count("<rect") == 1 + 2 * 3

    # Detectors are given the poisoned training set as it was, and asked images of which the last half is triggered.
    folder = victim_folder(out, "badnets", 1)
    record = read_victim(folder)
    assert record is not None
    assert record.target == 1
    given = open_given(folder, plan, plan.source)
    changed = (given.training.images != toy.images).flatten(1).any(1)
    assert int(changed.sum()) == round(0.2 * len(toy))
    assert bool((given.training.labels[changed] == 1).all())
    assert torch.equal(given.training.images[~changed], toy.images[~changed])
    assert (given.inputs.shape, given.clean.shape) == ((20, 1, 12, 12), (40, 1, 12, 12))


def test_more_rows_and_models_are_added_to_what_is_there(toy_file: Path, tmp_path: Path) -> None:
    plan = recipe(toy_file, attacks=[{"attack": "badnets"}], models=1, detectors=["brightness"])
    run_bench(plan, tmp_path, executor=Here())
    more = Here()
    grown = recipe(toy_file, attacks=[{"attack": "badnets"}, {"attack": "sig"}], clean=4, models=2)
    run_bench(grown, tmp_path, executor=more)
    assert more.done == 1 + 3 + (1 + 3) + 8
    with pytest.raises(RecipeError, match="holds a bench of another recipe"):
        run_bench(recipe(toy_file, seed=1), tmp_path, executor=Here())


def test_a_row_whose_options_changed_is_not_passed_off_for_what_was_measured(toy_file: Path, tmp_path: Path) -> None:
    def badnets(rate: float, label: str = "") -> dict[str, Any]:
        return {"attack": "badnets", "label": label, "options": {"rate": rate}}

    few = {"models": 1, "clean": 2, "detectors": ["brightness"]}
    run_bench(recipe(toy_file, attacks=[badnets(0.1)], **few), tmp_path, executor=Here())
    before = (tmp_path / "bench.json").read_text()
    for attacks in ([badnets(0.2)], [badnets(0.1, "first"), badnets(0.2)], [badnets(0.1, "BadNets")]):
        with pytest.raises(RecipeError, match=r"(?i)the models of row 'badnets' were made with other options"):
            run_bench(recipe(toy_file, attacks=attacks, **few), tmp_path, executor=Here())
    assert (tmp_path / "bench.json").read_text() == before
    # A row that was left out in between is remembered; one with a label of its own is another row.
    run_bench(recipe(toy_file, attacks=[badnets(0.2, "more")], **few), tmp_path, executor=Here())
    with pytest.raises(RecipeError, match="the models of row 'badnets'"):
        run_bench(recipe(toy_file, attacks=[badnets(0.2)], **few), tmp_path, executor=Here())
    # Folders from before rows were kept apart know those of their last recipe.
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "rows"}))
    with pytest.raises(RecipeError, match="the models of row 'more'"):
        run_bench(recipe(toy_file, attacks=[badnets(0.3, "more")], **few), tmp_path, executor=Here())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": {}}))
    with pytest.raises(DataError, match="does not say which rows the bench has"):
        run_bench(recipe(toy_file, attacks=[badnets(0.2, "more")], **few), tmp_path, executor=Here())


def test_what_an_attack_cannot_do_is_a_row_of_its_own(toy_file: Path, tmp_path: Path) -> None:
    plan = recipe(toy_file, attacks=[{"attack": "badnets", "options": {"target": 7}}], detectors=["brightness"])
    table = run_bench(plan, tmp_path, executor=Here())
    assert (table.attacks[0].victims, table.attacks[0].failed) == (0, 2)
    assert "names class 7" in table.attacks[0].reasons[0]
    assert table.entry("badnets", "brightness").failed == 2
    # What is said of a model that could not be made is not kept: once its folder is removed it is tried again.
    assert not cell_path(tmp_path, "brightness", "badnets", 0).exists()
    idle = Here()
    assert run_bench(plan, tmp_path, executor=idle) == table
    assert idle.done == 0
    shutil.rmtree(victim_folder(tmp_path, "badnets", 1))
    again = Here()
    assert run_bench(plan, tmp_path, executor=again) == table
    assert again.done == 2


def test_two_runs_are_not_at_work_in_one_folder(toy_file: Path, tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(StorageError, match="another run is at work in it"):
        run_bench(recipe(toy_file), tmp_path, executor=Here())
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_made_again_takes_its_cells_along(toy_file: Path, tmp_path: Path) -> None:
    few = recipe(toy_file, attacks=[{"attack": "badnets"}], models=1, clean=2, detectors=["brightness"])
    run_bench(few, tmp_path, executor=Here())
    shutil.rmtree(victim_folder(tmp_path, "badnets", 0))
    other = cell_path(tmp_path, "trodo", "badnets", 0)  # of a detector that this recipe doesn't name
    other.parent.mkdir(parents=True)
    shutil.copy(cell_path(tmp_path, "brightness", "badnets", 0), other)
    again = Here()
    run_bench(few, tmp_path, executor=again)
    assert again.done == 2
    assert not other.exists()


class Broken(ScoreDetector):
    """Somebody's plug-in, with a bug."""

    name = "broken"
    requires = Access.LABELS

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        raise ZeroDivisionError("of what\nno")


def test_a_detector_with_a_bug_costs_the_others_nothing(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "DETECTORS", {**scanning.DETECTORS, "broken": Broken})
    few = {"attacks": [{"attack": "badnets"}], "models": 1, "clean": 2}
    table = run_bench(recipe(toy_file, detectors=["broken", "brightness"], **few), tmp_path, executor=Here())
    assert table.detectors[0].reasons == ("broken failed: ZeroDivisionError: of what no",)
    assert table.entry("badnets", "brightness").auroc is not None


class OutOfMemory(Broken):
    """What is no finding."""

    name = "broken"

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        raise MemoryError


def test_a_moment_without_memory_is_no_result(toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "DETECTORS", {**scanning.DETECTORS, "broken": OutOfMemory})
    few = recipe(toy_file, detectors=["broken"], attacks=[{"attack": "badnets"}], models=1, clean=2)
    with pytest.raises(MemoryError):
        run_bench(few, tmp_path, executor=Here())
    assert not list((tmp_path / "cells").rglob("*.json"))
    monkeypatch.setattr(scanning, "DETECTORS", {**scanning.DETECTORS, "broken": Brightness})
    assert run_bench(few, tmp_path, executor=Here()).entry("badnets", "broken").models == 1


def test_images_that_changed_in_place_are_not_gone_on_with(toy_file: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "toy.npz", tmp_path / "out"
    shutil.copy(toy_file, data)
    few = {"attacks": [{"attack": "badnets"}], "models": 1, "clean": 2, "detectors": ["brightness"]}
    run_bench(recipe(data, **few), out, executor=Here())
    with np.load(data) as arrays:
        content = dict(arrays)
    np.savez(data, **{name: value[::-1] for name, value in content.items()})
    for cached in (population.load_splits, population.splits_digest):
        cached.cache_clear()
    with pytest.raises(RecipeError, match="the images are no longer those that its models were trained on"):
        run_bench(recipe(data, **few), out, executor=Here())


def test_versions_are_those_that_cells_were_made_with(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"attacks": [{"attack": "badnets"}], "models": 1, "clean": 2}
    first = run_bench(recipe(toy_file, detectors=["brightness"], **few), tmp_path, executor=Here()).versions
    monkeypatch.setattr("intaglio.bench.cells.package_versions", lambda: first | {"torch": "99"})
    second = run_bench(recipe(toy_file, detectors=["brightness", "trodo"], **few), tmp_path, executor=Here()).versions
    assert second == first | {"torch": f"{first['torch']}, 99"}


def test_an_option_that_no_attack_looks_at_does_not_end_the_bench(toy_file: Path, tmp_path: Path) -> None:
    attacks = [{"attack": "label-consistent", "options": {"steps": 2.5}}, {"attack": "badnets"}]
    table = run_bench(recipe(toy_file, attacks=attacks, models=1), tmp_path, executor=Here())
    assert [(row.victims, row.failed) for row in table.attacks] == [(0, 1), (1, 0)]
    assert table.attacks[0].reasons == ("TypeError: 'float' object cannot be interpreted as an integer",)
    assert "TypeError" in (tmp_path / "table.md").read_text()


def test_models_do_not_depend_on_what_else_is_asked_for(toy_file: Path, tmp_path: Path) -> None:
    alone = recipe(toy_file, attacks=[{"attack": "sig"}], clean=2, models=1, detectors=["brightness"])
    among = recipe(toy_file, attacks=[{"attack": "badnets"}, {"attack": "sig"}], clean=2, models=1)
    for plan, name in ((alone, "a"), (among, "b")):
        run_bench(plan, tmp_path / name, executor=Here())
    weights = [(victim_folder(tmp_path / name, "sig", 0) / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attacks": [{"attack": "goodnets"}]}, "attacks.0: attack goodnets: unknown; known are badnets"),
        ({"attacks": [{"attack": "badnets", "options": {"rate": 2}}]}, "attacks.0: attack badnets: "),
        ({"attacks": [{"attack": "badnets", "options": {"speed": 2}}]}, "attacks.0: attack badnets: .*speed"),
        ({"attacks": [{"attack": "badnets", "options": {"trigger": {"size": 5}}}]}, "attacks.0: .* takes a Trigger"),
        ({"attacks": [{"attack": "issba", "options": {"batch_size": 0}}]}, "attacks.0: attack issba: batch_size: "),
        ({"attacks": [{"attack": "issba", "options": {"learning_rate": -1}}]}, "attacks.0: .*: learning_rate: "),
        (
            {"attacks": [{"attack": "input-aware", "options": {"mask_epochs": 2.5}}]},
            "attacks.0: .* epoch for the masks",
        ),
        ({"attacks": [{"attack": "input-aware", "options": {"width": 7}}]}, "attacks.0: .* multiple of 4"),
        ({"attacks": [{"attack": "badnets"}, {"attack": "badnets"}]}, "badnets: named twice"),
        ({"attacks": [{"attack": "badnets", "label": "clean"}]}, "'clean' is the row of clean models"),
        (
            {"attacks": [{"attack": "badnets", "label": "Clean"}]},
            "Clean, clean: named twice, or alike but for",
        ),
        (
            {"attacks": [{"attack": "sig", "label": "a (1)"}, {"attack": "sig", "label": "A [1]"}]},
            r"A \[1\], a \(1\): named twice, or alike",
        ),
        ({"detectors": ["brightness"] * 2}, "brightness: named twice"),
        ({"architectures": [{"name": "alexnet"}]}, "architectures.0: unknown architecture 'alexnet'"),
        ({"clean": 1}, "clean: "),
        ({"clean": 10**12}, "clean: .*less than or equal to 100000"),
        ({"models": 10**12}, "models: .*less than or equal to 100000"),
        ({"colour": 1}, "colour: "),
    ],
)
def test_recipes_that_make_no_sense(changes: dict[str, Any], problem: str, toy_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(recipe(toy_file).model_dump(mode="json") | changes))
    with pytest.raises(RecipeError, match=problem) as caught:
        read_bench_recipe(path)
    assert "\n" not in str(caught.value)


def test_data_and_folders_that_do_not_do(toy_file: Path, tmp_path: Path, toy: ImageData) -> None:
    with pytest.raises(DataError, match="60 test images, fewer than twice the 40 of `asked`"):
        run_bench(recipe(toy_file, asked=40), tmp_path / "a", executor=Here())
    with pytest.raises(RecipeError, match="unknown detector 'crystal-ball'"):
        run_bench(recipe(toy_file, detectors=["crystal-ball"]), tmp_path / "b", executor=Here())
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=toy.images.numpy(), labels=toy.labels.numpy())
    with pytest.raises(DataError, match="its test images are those that are trained on"):
        run_bench(recipe(whole), tmp_path / "d", executor=Here())
    assert not list((tmp_path / "d").glob("models/*"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "bench.json").write_text("{")
    with pytest.raises(DataError, match="does not name the bench's recipe"):
        run_bench(recipe(toy_file), tmp_path / "c", executor=Here())
    for read, name in ((read_victim, "record.json"), (lambda folder: read_cell(folder / "cell.json"), "cell.json")):
        (tmp_path / name).write_text("[]")
        with pytest.raises(DataError, match="damaged"):
            read(tmp_path)
    assert read_victim(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("name", "folder"), [("..", "--"), (".", "-"), ("../..", "..-.."), ("A b.c", "a-b.c")])
def test_names_are_folders_inside_their_parent(name: str, folder: str, tmp_path: Path) -> None:
    assert slug(name) == folder
    assert victim_folder(tmp_path, name, 0) == tmp_path / "models" / folder / "000"
    assert victim_folder(tmp_path, name, 0).resolve().is_relative_to(tmp_path.resolve() / "models")


def test_paths_in_a_recipe_are_seen_from_its_folder(toy_file: Path, tmp_path: Path) -> None:
    path = toy_file.parent / "bench.yaml"
    path.write_text(yaml.safe_dump(recipe(toy_file, data=toy_file.name).model_dump(mode="json")))
    assert Path(read_bench_recipe(path).source) == toy_file.resolve()
    assert recipe(toy_file, data=None).source == "bands"


def test_the_table_by_hand(tmp_path: Path) -> None:
    network = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3)
    plan = BenchRecipe(
        name="n", task="t", architectures=({"name": "lenet"},), attacks=(AttackRow(attack="badnets"),),
        detectors=("auto",), training=TrainingSettings(),
    )  # fmt: skip
    victims = [
        VictimRecord(row=CLEAN, index=i, seed=i, architecture=network, clean_accuracy=0.9) for i in range(4)
    ] + [
        VictimRecord(
            row="badnets", index=i, seed=i, architecture=network, clean_accuracy=0.88, asr=asr, target=1,
            asr_unpoisoned=0.1, robust_accuracy=0.05, poison_rates={"whole": 0.1, "target_class": 0.5, "cover": 0.0},
        )
        for i, asr in enumerate((1.0, 0.5))
    ]  # fmt: skip
    cells = [
        Cell(
            detector="auto",
            row=CLEAN,
            index=i,
            score=float(i),
            p_value=p,
            calibrated=True,
            seconds=2.0,
            queries=10,
            peak_memory_mb=peak,
        )
        for i, (p, peak) in enumerate(((0.9, None), (0.5, 100.0), (0.3, 300.0), (0.04, 500.0)))
    ] + [
        Cell(detector="auto", row="badnets", index=0, score=9.0, guess=1),
        Cell(detector="auto", row="badnets", index=1, score=1.5, guess=2),
    ]
    table = make_table(plan, victims, cells)
    entry = table.entry("badnets", "auto")
    assert entry.auroc is not None
    assert entry.auroc.value == 0.75
    assert entry.auroc_working is not None
    assert entry.auroc_working.value == 1.0
    assert entry.named == 0.5
    attack, detector = table.attacks[0], table.detectors[0]
    assert (attack.working, attack.asr, attack.accuracy_loss) == (1, 0.75, 0.02)
    assert detector.false_alarms is not None
    assert (detector.false_alarms.events, detector.false_alarms.trials) == (1, 4)
    assert (detector.seconds, detector.queries, detector.mean_auroc) == (2.0, 10, 0.75)
    assert detector.peak_memory_mb == 300.0
    kinds = [
        cell.model_copy(update={"by": "a" if cell.row == CLEAN else "b", "p_value": p})
        for cell, p in zip(cells, (0.9, 0.5, 0.3, 0.04, 0.2, 0.02), strict=True)
    ]
    by_rank = make_table(plan, victims, kinds).entry("badnets", "auto")  # scores of two kinds: 9.0 is not above 3.0
    assert by_rank.auroc is not None
    assert by_rank.auroc_working is not None
    assert (by_rank.of, by_rank.auroc.value, by_rank.auroc_working.value) == ("p-values", 0.875, 0.75)
    measured = plan.model_copy(update={"detectors": ("brightness",)})
    own = [cell.model_copy(update={"detector": "brightness"}) for cell in kinds]  # its scores are of one kind always
    by_score = make_table(measured, victims, own).entry("badnets", "brightness")
    assert by_score.auroc is not None
    assert (by_score.of, by_score.auroc.value) == ("scores", 0.75)
    assert set(table.versions.values()) == {"unknown"}
    few = make_table(
        plan.model_copy(update={"models": 3}), victims, [*cells[:5], cells[5].model_copy(update={"score": None})]
    )
    few.write(tmp_path)
    assert "(1.000), 1 of 3 |" in (tmp_path / "table.md").read_text()
    rows = plan.model_copy(update={"attacks": (*plan.attacks, AttackRow(attack="sig", label="a | b\nc"))})
    make_table(rows, victims, cells).write(tmp_path)
    assert "| a \\| b c | -, 0 of 12 |" in (tmp_path / "table.md").read_text()
    assert "| **mean** | - |" in (tmp_path / "table.md").read_text()  # over one row of two it would compare other rows
    unknown = [cell.model_copy(update={"peak_memory_mb": None}) for cell in cells]
    table = make_table(plan, victims, unknown)
    assert table.detectors[0].peak_memory_mb is None
    table.write(tmp_path)
    assert "| 2.00 | 10 | - | 0 |" in (tmp_path / "table.md").read_text()


def test_a_peak_of_memory_is_that_of_its_own_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One worker fills many cells: what an earlier one needed must not be passed off for what this one did."""
    before = PeakMemory()
    large = np.ones(32 * 2**20)
    with_large = before.megabytes()
    del large
    afterwards = PeakMemory().megabytes()
    if with_large is None or afterwards is None:
        pytest.skip("this system doesn't tell the peak of a part of a process")
    assert 200 < with_large - afterwards < 300
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "no-such-system")
    assert PeakMemory().megabytes() is None
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  900000 kB\nVmHWM:\t  20480 kB\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    assert PeakMemory().megabytes() == 20.0
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_the_command(
    toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, workers = tmp_path / "bench.yaml", tmp_path / "out", []

    def here(count: int | None) -> Here:
        workers.append(count)
        return Here()

    monkeypatch.setattr("intaglio.populations.LocalExecutor", here)
    content = recipe(toy_file, detectors=["brightness"], clean=2, models=1, attacks=[{"attack": "badnets"}])
    path.write_text(yaml.safe_dump(content.model_dump(mode="json")))
    assert main(["bench", str(path), "--out", str(out), "--json", "-", "--workers", "3"]) == 0
    printed = BenchTable.from_json(capsys.readouterr().out)
    assert printed.entry("badnets", "brightness").models == 1
    assert workers == [3]
    assert main(["bench", str(path), "--out", str(out), "--json", str(out / "bench.json")]) == ExitCode.USAGE
    assert "bench.json would be written over" in " ".join(capsys.readouterr().err.split())
    assert main(["bench", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (out / "table.md").read_text()
    assert main(["bench", str(tmp_path / "none.yaml"), "--out", str(out)]) == 2


def test_the_example_can_be_read() -> None:
    plan = read_bench_recipe(Path(__file__).parents[1] / "examples" / "bench-small.yaml")
    assert plan.source == "fashion-mnist"
    assert sum(count for _, count in plan.rows()) == 14


def test_a_bench_goes_on_with_the_images_that_it_was_begun_with(toy_file: Path, tmp_path: Path) -> None:
    """Recipes with the same text in two folders may name different images."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(toy_file, tmp_path / name / "toy.npz")
        text = recipe(toy_file, data="toy.npz", detectors=["brightness"], clean=2, models=1).model_dump_json()
        (tmp_path / name / "recipe.yaml").write_text(text)
    first, second = (read_bench_recipe(tmp_path / name / "recipe.yaml") for name in ("one", "two"))
    run_bench(first, tmp_path / "bench", executor=Here())
    with pytest.raises(RecipeError, match=r"its models were trained on .*one.toy.npz, not .*two.toy.npz; choose"):
        run_bench(second, tmp_path / "bench", executor=Here())
