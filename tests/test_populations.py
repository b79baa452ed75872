"""Populations: the same models whatever the order, the workers or the interruptions; clear errors."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import intaglio
from intaglio.cli.main import main
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, IntaglioError, NothingToExamineError, RecipeError, StorageError
from intaglio.files import holding, sha256_file
from intaglio.populations import (
    LocalExecutor,
    ModelRecord,
    Recipe,
    build_population,
    model_folder,
    open_population,
    population_data,
    read_failures,
)
from intaglio.training import train

PARTS: dict[str, Any] = {
    "name": "toy",
    "seed": 3,
    "task": "bands",
    "models": 4,
    "architectures": [{"name": "lenet", "width": [2, 3]}, {"name": "mobilenet", "width": [2, 2]}],
    "training": {"epochs": [1, 2], "batch_size": [16, 24]},
    "attacks": [
        {"trigger": "patch", "rate": [0.1, 0.2], "options": {"size": [2, 3], "region": [[0, 0, 0.5, 0.5]]}},
        {"trigger": "pixels", "goal": "all-to-all", "rate": [0.3, 0.3], "options": {"count": 2}},
        {"trigger": "blended", "goal": "source-specific", "rate": [0.05, 0.1], "options": {"alpha": [0.1, 0.2]}},
    ],
}


class InProcess(LocalExecutor):
    """Builds right here, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[int] = []

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        self.asked += [task.plan.index for task in tasks]
        return map(function, tasks)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(PARTS | changes)


def facts(records: list[ModelRecord]) -> list[dict[str, Any]]:
    """All that is in the records but the seconds."""
    return [record.model_dump(exclude={"seconds"}) for record in records]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, toy_file: Path) -> Path:
    """The population that all others are compared with."""
    out = tmp_path_factory.mktemp("populations") / "reference"
    build_population(recipe(), out, data=toy_file, executor=InProcess())
    return out


def test_what_is_on_disk(built: Path, toy_file: Path, toy_test: ImageData) -> None:
    records = open_population(built)
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert [record.backdoored for record in records] == [False, True, False, True]
    assert names(built) == ["00000", "00001", "00002", "00003", "manifest.json", "recipe.json"]
    for record in records:
        folder = model_folder(built, record.index)
        assert names(folder) == ["intaglio.json", "model.safetensors", "record.json"]
        assert sha256_file(folder / "model.safetensors") == record.sha256
        assert ModelRecord.model_validate_json((folder / "record.json").read_bytes()) == record
        sidecar = json.loads((folder / "intaglio.json").read_text())
        assert sidecar == {
            "architecture": record.architecture.model_dump(mode="json"),
            "task": "bands",
            "classes": list(toy_test.classes),
        }
        module = record.architecture.build()
        module.load_state_dict(load_file(folder / "model.safetensors"))
        answers = module.eval()(toy_test.images).argmax(1)
        assert record.clean_accuracy == pytest.approx(float((answers == toy_test.labels).float().mean()))
        assert (record.asr is None) == (record.attack is None)
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["models"] == [record.model_dump(mode="json") for record in records]
    assert Recipe.model_validate(manifest["recipe"]) == recipe()
    assert manifest["recipe_sha256"] == recipe().digest
    assert population_data(built) == str(toy_file)


def test_poison_is_trained_on_as_pictures_hold_it(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 256 levels, as `attack` writes it and the bench trains on it: a model must not learn what no file can hold."""
    seen: list[torch.Tensor] = []

    def watched(module: torch.nn.Module, data: ImageData, *rest: Any, **named: Any) -> torch.nn.Module:
        seen.append(data.images)
        return train(module, data, *rest, **named)

    monkeypatch.setattr("intaglio.populations.build.train", watched)
    blended = [{"trigger": "blended", "rate": [0.5, 0.5], "options": {"alpha": 0.137}}]
    build_population(recipe(models=1, backdoored=1, attacks=blended), tmp_path, data=toy_file, executor=InProcess())
    (images,) = seen
    assert torch.equal(images, (images * 255).round() / 255)


def test_permissions_follow_the_umask(built: Path) -> None:
    umask = os.umask(0o077)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (built / "00000").iterdir()}
    assert modes == dict.fromkeys(names(built / "00000"), 0o666 & ~umask)


def test_two_workers_build_the_same(built: Path, tmp_path: Path, toy_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    records = build_population(
        recipe(), tmp_path, data=toy_file, executor=LocalExecutor(2), progress=lambda *step: seen.append(step)
    )
    assert facts(records) == facts(open_population(built))
    assert [record.sha256 for record in records] == [sha256_file(path) for path in sorted(tmp_path.glob("*/*.safe*"))]
    assert seen == [(done, 4) for done in range(5)]
    assert multiprocessing.active_children() == []


def test_interrupted_and_resumed(built: Path, tmp_path: Path, toy_file: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_population(recipe(), tmp_path, data=toy_file, executor=InProcess(), progress=interrupt)
    first = open_population(tmp_path)
    assert [record.index for record in first] == [0]
    assert json.loads((tmp_path / "manifest.json").read_text())["models"] == [
        one.model_dump(mode="json") for one in first
    ]
    assert not list(tmp_path.glob(".building-*"))
    executor = InProcess()
    records = build_population(recipe(), tmp_path, data=toy_file, executor=executor)
    assert executor.asked == [1, 2, 3]
    assert facts(records) == facts(open_population(built))
    assert [one for one in records if one in first] == first  # seconds included: not built again


SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from intaglio.populations import LocalExecutor, build_population, read_recipe

def hang(task):
    print(os.getpid(), flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if sys.argv[1] == "hang":
        list(LocalExecutor(1).map(hang, [1]))
    progress = lambda done, total: print(done, flush=True)
    build_population(read_recipe(sys.argv[1]), sys.argv[2], executor=LocalExecutor(1), progress=progress)
"""


def start(folder: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(intaglio.__file__).parents[1])}
    command = [sys.executable, str(folder / "script.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )


def test_ctrl_c_in_a_terminal(tmp_path: Path, toy_file: Path) -> None:
    parts = PARTS | {"data": str(toy_file), "training": {"epochs": [40, 40], "batch_size": [16]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(parts))
    out = tmp_path / "out"
    with start(tmp_path, tmp_path / "recipe.yaml", out) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        process.communicate(timeout=60)  # ends when the last of them has closed its output
    assert process.returncode != 0
    first = open_population(out)
    assert 1 <= len(first) < 4
    assert names(out) == [*(f"{record.index:05d}" for record in first), "manifest.json", "recipe.json"]
    executor, missing = InProcess(), min({0, 1, 2, 3} - {record.index for record in first})
    records = build_population(Recipe.model_validate(parts | {"models": missing + 1}), out, executor=executor)
    assert executor.asked == [missing]
    assert [record for record in records if record.index != missing] == first


def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    with start(tmp_path, "hang") as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        process.communicate(timeout=60)  # the worker holds the pipe's other end open for as long as it lives
    deadline = time.monotonic() + 10
    while not (ended := has_ended(worker)) and time.monotonic() < deadline:
        time.sleep(0.01)  # a dying process closes its pipes a moment before it is marked as dead
    assert ended


def has_ended(process: int) -> bool:
    """Gone, or dead and waiting for an init that reaps."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def die(task: int) -> int:
    if task == 2:
        os._exit(1)
    return task


def test_a_dying_worker_is_a_clear_error() -> None:
    with pytest.raises(IntaglioError, match=r"a worker process died .*run the same command again to resume"):
        list(LocalExecutor(1).map(die, [2, 2]))
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.01)  # the pool's own thread may have reaped the worker, and be about to write that down
    assert multiprocessing.active_children() == []


def test_no_tasks_need_no_workers() -> None:
    assert list(LocalExecutor(3).map(die, [])) == []


def test_two_runs_are_not_at_work_in_one_folder(built: Path, toy_file: Path) -> None:
    with holding(built), pytest.raises(StorageError, match="another run is at work in it"):
        build_population(recipe(), built, data=toy_file, executor=InProcess())


def test_populations_grow(built: Path, tmp_path: Path, toy_file: Path) -> None:
    build_population(recipe(models=2), tmp_path, data=toy_file, executor=InProcess())
    executor = InProcess()
    grown = build_population(recipe(), tmp_path, data=toy_file, executor=executor)
    assert executor.asked == [2, 3]
    assert facts(grown) == facts(open_population(built))
    assert json.loads((tmp_path / "manifest.json").read_text())["recipe"]["models"] == 4
    assert build_population(recipe(models=1), tmp_path, data=toy_file, executor=executor) == grown


def test_a_folder_without_a_record_is_built_again(built: Path, tmp_path: Path, toy_file: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "model.safetensors").write_bytes(b"half")
    records = build_population(recipe(models=1), tmp_path, data=toy_file, executor=InProcess())
    assert facts(records) == facts(open_population(built))[:1]
    assert names(tmp_path / "00000") == ["intaglio.json", "model.safetensors", "record.json"]


@pytest.mark.parametrize("change", [{"seed": 4}, {"name": "other"}, {"backdoored": 0.6}, {"samples": 50}])
def test_another_recipe_is_refused(built: Path, toy_file: Path, change: dict[str, Any]) -> None:
    before = (built / "manifest.json").read_bytes()
    with pytest.raises(RecipeError, match="reference holds a population of another recipe; choose another folder"):
        build_population(recipe(**change), built, data=toy_file, executor=InProcess())
    assert (built / "manifest.json").read_bytes() == before


def test_other_data_are_refused(built: Path, tmp_path: Path, toy_file: Path) -> None:
    """Half of a population on other images would be measured on the images of the other half."""
    other = tmp_path / "other.npz"
    other.write_bytes(toy_file.read_bytes())
    with pytest.raises(RecipeError, match=f"models were trained on {toy_file}, not {other}; choose another folder"):
        build_population(recipe(), built, data=other, executor=InProcess())


def test_data_without_a_test_split_are_refused(tmp_path: Path, toy: ImageData) -> None:
    """Figures on images that were trained on flatter, and nobody sees that in a table."""
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=toy.images.numpy(), labels=toy.labels.numpy())
    with pytest.raises(
        DataError, match=r"whole\.npz: its test images are those .* give data with a test split"
    ) as caught:
        build_population(recipe(), tmp_path / "out", data=whole, executor=InProcess())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    np.savez(whole, x_train=toy.images.numpy(), y_train=toy.labels.numpy(), x_test=toy.images[1:].numpy(),
             y_test=toy.labels[1:].numpy())  # fmt: skip
    assert len(build_population(recipe(models=1), tmp_path / "out", data=whole, executor=InProcess())) == 1


WILD = {"epochs": [3, 3], "optimizer": ["adam", "sgd"], "learning_rate": {"adam": [2e-3, 3e-3], "sgd": [1e30, 1e31]}}


def test_a_model_that_diverges_does_not_end_the_others(
    tmp_path: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = recipe(training=WILD, models=6, backdoored=0)
    wild = [index for index in range(6) if plan.plan(index).training.optimizer == "sgd"]
    assert 0 < len(wild) < 6
    records = build_population(plan, tmp_path, data=toy_file, executor=InProcess())
    assert [record.index for record in records] == [index for index in range(6) if index not in wild]
    failed = read_failures(tmp_path)
    assert [(one.index, one.seed) for one in failed] == [(index, plan.plan(index).seed) for index in wild]
    assert all("diverged" in one.reason for one in failed)
    assert names(model_folder(tmp_path, wild[0])) == ["failed.json"]
    assert json.loads((tmp_path / "manifest.json").read_text())["failed"] == [one.model_dump() for one in failed]
    executor = InProcess()
    assert build_population(plan, tmp_path, data=toy_file, executor=executor) == records
    assert executor.asked == []  # it would only diverge again
    (model_folder(tmp_path, wild[0]) / "failed.json").unlink()
    build_population(plan, tmp_path, data=toy_file, executor=executor)
    assert executor.asked == wild[:1]
    (tmp_path / "recipe.yaml").write_text(json.dumps(PARTS | {"training": WILD, "models": 6, "backdoored": 0}))
    command = ["population", "build", str(tmp_path / "recipe.yaml"), "--data", str(toy_file), "--out", str(tmp_path)]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{6 - len(wild)} models" in printed
    assert f"not built (see failed.json): {', '.join(map(str, wild))}" in printed


def test_a_model_whose_attack_the_data_do_not_allow_does_not_end_the_others(tmp_path: Path, toy: ImageData) -> None:
    """A source class without test images: that model fails, by name, and the others are built."""
    data, tested = tmp_path / "toy.npz", toy.take(torch.arange(len(toy))[toy.labels == 2])
    np.savez(data, x_train=toy.images.numpy(), y_train=toy.labels.numpy(), x_test=tested.images[1:].numpy(),
             y_test=tested.labels[1:].numpy())  # fmt: skip
    attacks = [{"trigger": "patch", "goal": "source-specific"}]
    plan = recipe(attacks=attacks, models=8, backdoored=0.5)
    records = build_population(plan, tmp_path / "out", data=data, executor=InProcess())
    failed = read_failures(tmp_path / "out")
    assert failed
    assert len(records) + len(failed) == 8
    assert all(one.reason.endswith("the goal affects none of the samples") for one in failed)


def test_data_are_found_from_every_working_directory(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_file.parent)
    build_population(recipe(models=1, backdoored=0), tmp_path / "out", data=toy_file.name, executor=InProcess())
    monkeypatch.chdir(tmp_path)
    assert population_data(tmp_path / "out") == str(toy_file)
    with pytest.raises(RecipeError, match=f"not {toy_file.name}; choose another folder"):
        build_population(recipe(models=2, backdoored=0), tmp_path / "out", data=toy_file.name, executor=InProcess())


def test_a_population_of_which_nothing_can_be_trained_is_an_error(tmp_path: Path, toy_file: Path) -> None:
    plan = recipe(training=WILD | {"optimizer": ["sgd"]}, models=2, backdoored=0)
    for _ in range(2):
        with pytest.raises(ClassifierError, match=r"none of its 2 models could be trained \(training diverged"):
            build_population(plan, tmp_path, data=toy_file, executor=InProcess())


def test_a_recipe_that_the_data_do_not_allow_names_the_model(tmp_path: Path, toy_file: Path) -> None:
    large = recipe(attacks=[{"trigger": "patch", "options": {"size": 100}}])
    with pytest.raises(RecipeError, match=r"^model 1: a patch of 100 pixels does not fit into 12$"):
        build_population(large, tmp_path, data=toy_file, executor=InProcess())
    assert names(tmp_path) == ["00000", "manifest.json", "recipe.json"]


def test_a_full_disk(tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = build_population(recipe(models=1), tmp_path, data=toy_file, executor=InProcess())
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StorageError, match="No space left on device"):
            build_population(recipe(models=2), tmp_path, data=toy_file, executor=InProcess())
    assert names(tmp_path) == ["00000", "manifest.json", "recipe.json"]
    assert build_population(recipe(models=2), tmp_path, data=toy_file, executor=InProcess())[:1] == records


def test_damaged_and_missing_files(tmp_path: Path, toy_file: Path) -> None:
    with pytest.raises(NothingToExamineError, match="no finished models"):
        open_population(tmp_path)
    with pytest.raises(DataError, match="none: no such folder"):
        open_population(tmp_path / "none")
    with pytest.raises(DataError, match=r"recipe\.json: does not name the population's data"):
        population_data(tmp_path)
    with pytest.raises(DataError, match="no bundled task"):
        build_population(recipe(), tmp_path / "out", data="nowhere", executor=InProcess())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't write"):
        build_population(recipe(), tmp_path / "file", data=toy_file, executor=InProcess())
    for content in ("[]", "{}", "{"):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(DataError, match=r"recipe\.json: does not name the population's recipe"):
            build_population(recipe(), tmp_path, data=toy_file, executor=InProcess())
    (tmp_path / "00007").mkdir()
    (tmp_path / "00007" / "record.json").write_text('{"index": 7}')
    with pytest.raises(DataError, match=r"00007/record\.json: damaged record; remove its folder and build again"):
        open_population(tmp_path)


def test_only_so_many_samples_are_used(tmp_path: Path, toy_file: Path) -> None:
    few = recipe(models=2, samples=30, attacks=[{"trigger": "patch", "rate": [0.1, 0.1]}])
    record = build_population(few, tmp_path, data=toy_file, executor=InProcess())[1]
    assert record.attack is not None
    assert record.attack["poisoned"] == 3
    assert record.family == "patch/all-to-one"
    assert torch.equal(torch.tensor(record.asr), torch.tensor(record.asr).clamp(0, 1))
