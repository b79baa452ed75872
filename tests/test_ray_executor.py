"""The Ray executor on a local cluster of two workers: the same models, killed workers, and clear errors."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.errors import DataError, IntaglioError, StorageError
from intaglio.files import sha256_file
from intaglio.populations import LocalExecutor, ModelRecord, Recipe, build_population
from intaglio.populations.ray_executor import RayExecutor

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'intaglio[ray]'")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One cluster for all of these tests: executors use it and leave it running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: on a busy machine they would never get a turn
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import this file's functions
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def threads(task: int) -> tuple[int, int]:
    return task, torch.get_num_threads()


def dies_at_first(task: tuple[int, str]) -> int:
    """The first worker that takes up task 2 is killed in the middle of it."""
    number, marker = task
    if number == 2 and not Path(marker).exists():
        Path(marker).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_dies(task: int) -> int:
    if task == 1:
        os._exit(1)
    return task


def refuses(task: int) -> int:
    raise DataError(f"task {task} is not to my taste")


def waits_for(task: tuple[int, str]) -> int:
    """Task 0 is done when the file is there."""
    number, gate = task
    while number == 0 and not Path(gate).exists():
        os.sched_yield()
    return number


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "seed": 3,
            "task": "bands",
            "models": 4,
            "architectures": [{"name": "lenet", "width": [2, 3]}],
            "training": {"epochs": [1, 2], "batch_size": [16, 24]},
            "attacks": [{"trigger": "patch", "rate": [0.1, 0.2], "options": {"size": [2, 3]}}],
        }
    )


def facts(records: list[ModelRecord]) -> list[dict[str, Any]]:
    return [record.model_dump(exclude={"seconds"}) for record in records]


def test_the_same_models_as_on_this_machine(tmp_path: Path, toy_file: Path) -> None:
    local = build_population(recipe(), tmp_path / "local", data=toy_file, executor=LocalExecutor(1))
    seen: list[tuple[int, int]] = []
    out = tmp_path / "ray"
    spread = build_population(
        recipe(), out, data=toy_file, executor=RayExecutor(shared=out), progress=lambda *step: seen.append(step)
    )
    assert facts(spread) == facts(local)
    files = [sorted((tmp_path / name).glob("*/*.safetensors")) for name in ("local", "ray")]
    assert [sha256_file(path) for path in files[0]] == [sha256_file(path) for path in files[1]]
    assert seen == [(done, 4) for done in range(5)]
    assert not list(out.glob(".*"))
    assert ray.is_initialized()


def test_one_thread_each() -> None:
    assert sorted(RayExecutor().map(threads, [1, 2, 3])) == [(task, 1) for task in (1, 2, 3)]


def test_a_killed_worker_costs_its_task_another_try(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    found = sorted(RayExecutor().map(dies_at_first, [(task, str(marker)) for task in range(5)]))
    assert found == [0, 1, 2, 3, 4]
    assert marker.read_text() != str(os.getpid())


def test_a_task_that_kills_every_worker_is_lost_alone() -> None:
    results = RayExecutor(workers=2).map(always_dies, [0, 1, 2, 3])
    found = [next(results) for _ in range(3)]
    assert sorted(found) == [0, 2, 3]
    with pytest.raises(IntaglioError, match=r"1 of 4 tasks were lost: .* died 4 times .*run the same command again"):
        next(results)


def test_results_stream_back_as_they_finish(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = RayExecutor().map(waits_for, [(task, str(gate)) for task in range(3)])
    first = [next(results), next(results)]
    gate.touch()
    assert sorted(first) == [1, 2]
    assert list(results) == [0]


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(DataError, match=r"^task 1 is not to my taste$"):
        list(RayExecutor(workers=1).map(refuses, [1, 2]))
    assert list(RayExecutor().map(refuses, [])) == []


def test_stopping_early_takes_the_rest_away(tmp_path: Path) -> None:
    results = RayExecutor(workers=2).map(waits_for, [(task, str(tmp_path / "never")) for task in (1, 0, 0)])
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    assert list(RayExecutor().map(always_dies, [5, 6])) in ([5, 6], [6, 5])


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = RayExecutor(shared=tmp_path)
    monkeypatch.setattr(executor, "_token", lambda: tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="sees another folder: share it with all"):
        list(executor.map(always_dies, [2]))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't write"):
        list(RayExecutor(shared=tmp_path / "file").map(always_dies, [2]))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(IntaglioError, match=r"needs Ray, which is not installed: pip install 'intaglio\[ray\]'"):
        RayExecutor()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "a local Ray cluster can't be started: no room"),
        ("10.0.0.1:6379", "no Ray cluster 10.0.0.1:6379: no room"),
    ],
)
def test_clusters_that_are_not_there(monkeypatch: pytest.MonkeyPatch, address: str | None, message: str) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError("no\n room")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(IntaglioError, match=message):
        list(RayExecutor(address).map(always_dies, [2]))


def test_a_cluster_of_its_own_ends_with_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    ended: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(ray, "init", lambda **options: started.append(options))
        patch.setattr(ray, "shutdown", lambda: ended.append(True))
        assert list(RayExecutor(workers=2).map(always_dies, [2])) == [2]
        assert list(RayExecutor("auto").map(always_dies, [3])) == [3]
    ours = [options for options in started if "log_to_driver" in options]  # Ray's own calls also ask to be started
    assert (ours[0]["num_cpus"], ours[0]["include_dashboard"]) == (1, False)
    assert ours[1]["address"] == "auto"
    assert ended == [True, True]


def test_the_command(tmp_path: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from intaglio.cli.main import ExitCode, main

    (tmp_path / "recipe.yaml").write_text(recipe().model_copy(update={"models": 1}).model_dump_json())
    command = ["population", "build", str(tmp_path / "recipe.yaml"), "--data", str(toy_file)]
    assert main([*command, "--out", str(tmp_path / "out"), "--executor", "ray"]) == ExitCode.CLEAN
    assert "1 models, 0 of them backdoored" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "new"), "--address", "auto"]) == ExitCode.USAGE
    assert "address" in capsys.readouterr().err
