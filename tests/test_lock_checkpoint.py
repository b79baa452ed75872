"""Locking that is interrupted: it goes on to the same bytes, with what it was begun with; nothing lies open."""

from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.data import ImageData
from intaglio.errors import ModelError, StorageError
from intaglio.lock import Lock, train_lock
from intaglio.lock.container import read_container, write_container
from intaglio.lock.refining import refining
from intaglio.tensors import pack, unpack
from lock_models import OWNER, STRANGER, TINY, tiny_lock, tiny_model


def test_an_interrupted_run_goes_on_to_the_same_bytes(toy: ImageData, tmp_path: Path) -> None:
    settings, path = TINY.model_copy(update={"steps": 15}), tmp_path / "checkpoint"

    def interrupt(done: int, total: int) -> None:
        if done == 10:  # in the second of three passes
            raise KeyboardInterrupt

    whole, lock = train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1, checkpoint=path, progress=interrupt)
    steps: list[int] = []
    resumed, same = train_lock(
        tiny_model(),
        toy,
        OWNER,
        settings=settings,
        seed=1,
        checkpoint=path,
        progress=lambda done, _: steps.append(done),
    )
    assert steps == list(range(7, 18))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert torch.equal(lock.apply(toy.images, user="alice"), same.apply(toy.images, user="alice"))


@pytest.mark.parametrize("stopped", [9, 14, 40])  # in the first, second and last stage of refining
def test_an_interrupted_refining_goes_on_from_its_last_stage(toy: ImageData, tmp_path: Path, stopped: int) -> None:
    settings, path = TINY.model_copy(update={"steps": 6, "refining_steps": 36}), tmp_path / "checkpoint"

    def interrupt(done: int, total: int) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    whole, lock = train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1, checkpoint=path, progress=interrupt)
    steps: list[int] = []

    def go_on() -> tuple[nn.Module, Lock]:
        steps.clear()
        return train_lock(
            tiny_model(),
            toy,
            OWNER,
            settings=settings,
            seed=1,
            checkpoint=path,
            progress=lambda done, _: steps.append(done),
        )

    resumed, same = go_on()
    ends = [6 + sum(stage.steps for stage in refining(settings)[:count]) for count in range(8)]
    assert steps == list(range(1 + max(end for end in ends if end < stopped), 43))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert torch.equal(lock.apply(toy.images, user="alice"), same.apply(toy.images, user="alice"))
    again, _ = go_on()
    assert steps == []
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_of_a_lock_is_encrypted_and_private(toy: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    seen: list[bytes] = []

    def look(done: int, total: int) -> None:
        if path.exists():
            seen.append(path.read_bytes())

    train_lock(tiny_model(), toy, OWNER, settings=TINY.model_copy(update={"steps": 15}), checkpoint=path, progress=look)
    assert seen
    assert all(content.startswith(b"INTAGLIO-SEALED") for content in [*seen, path.read_bytes()])
    assert not any(b"weight" in content for content in [*seen, path.read_bytes()])  # as safetensors would name them
    assert path.stat().st_mode & 0o077 == 0


def test_a_state_too_large_to_be_kept_is_said_once(
    toy: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intaglio.lock.container.LARGEST", 1000)
    path = tmp_path / "checkpoint"
    with pytest.warns(UserWarning, match="too large to be kept") as told:
        train_lock(tiny_model(), toy, OWNER, settings=TINY.model_copy(update={"steps": 15}), checkpoint=path)
    assert len(told) == 1
    assert not path.exists()
    with pytest.raises(StorageError, match="more than AES-GCM encrypts"):
        write_container(path, bytes(1001), OWNER)


@pytest.mark.parametrize("damage", ["cut short", "a part less", "another part"])
def test_a_damaged_state_of_refining_is_no_state(toy: ImageData, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    train_lock(tiny_model(), toy, OWNER, settings=TINY, checkpoint=path)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        tensors, metadata = unpack(read_container(path, OWNER))
        tensors.pop(next(name for name in tensors if name.startswith("module/")))
        if damage == "another part":
            tensors["more/weight"] = torch.zeros(1)
        write_container(path, pack(tensors, metadata), OWNER)
    with pytest.raises(ModelError, match="not a checkpoint of this training run"):
        train_lock(tiny_model(), toy, OWNER, settings=TINY, checkpoint=path)


def test_a_run_goes_on_only_with_what_it_was_begun_with(toy: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    train_lock(tiny_model(), toy, OWNER, settings=TINY, checkpoint=path)
    other, fewer = tiny_model(), ImageData(toy.images[:-1], toy.labels[:-1])
    other.load_state_dict({name: value + 1 for name, value in other.state_dict().items()})
    begun_otherwise = "begun with other settings, seed, key, model or data; remove it to begin anew"
    for model, data, key, options, message in (
        (tiny_model(), toy, OWNER, {"earlier": tiny_lock(seed=1)}, begun_otherwise),
        (tiny_model(), toy, OWNER, {"generation": 1}, begun_otherwise),
        (tiny_model(), toy, OWNER, {"seed": 1}, begun_otherwise),
        (other, toy, OWNER, {}, begun_otherwise),
        (tiny_model(), fewer, OWNER, {}, begun_otherwise),
        (tiny_model(), toy, STRANGER, {}, "begun with another key, or damaged; remove it to begin anew"),
    ):
        with pytest.raises(ModelError, match=message):
            train_lock(model, data, key, settings=TINY, checkpoint=path, **options)
