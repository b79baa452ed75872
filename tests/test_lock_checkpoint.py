"""Locking that is interrupted: it goes on to the same bytes, with what it was begun with; nothing lies open."""

from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.data import ImageData
from intaglio.errors import ModelError, StorageError
from intaglio.lock import Lock, train_lock
from intaglio.lock.container import read_container, write_container
from intaglio.tensors import pack, unpack
from lock_models import OWNER, STRANGER, TINY, tiny_lock, tiny_model


@pytest.mark.parametrize(
    ("steps", "refining_steps", "stopped", "first"),
    [
        (15, 2, 10, 7),  # in the second of three passes
        (6, 36, 9, 7),  # in the first, the second and the last stage of refining
        (6, 36, 14, 13),
        (6, 36, 40, 38),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    steps: int, refining_steps: int, stopped: int, first: int, toy: ImageData, tmp_path: Path
) -> None:
    settings = TINY.model_copy(update={"steps": steps, "refining_steps": refining_steps})
    seen: list[int] = []

    def run(checkpoint: Path | None = None, *, until: int | None = None) -> tuple[nn.Module, Lock]:
        def progress(done: int, total: int) -> None:
            seen.append(done)
            if done == until:
                raise KeyboardInterrupt

        seen.clear()
        return train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1, checkpoint=checkpoint, progress=progress)

    path = tmp_path / "checkpoint"
    whole, lock = run()
    with pytest.raises(KeyboardInterrupt):
        run(path, until=stopped)
    for expected in (list(range(first, steps + refining_steps + 1)), []):  # the second time nothing is left to do
        resumed, same = run(path)
        assert seen == expected
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name])
        assert torch.equal(lock.apply(toy.images, user="alice"), same.apply(toy.images, user="alice"))


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
