"""Wrong keys that open a model: they are looked for, kept, refused in training, and known after an interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError
from intaglio.lock import Lock, LockSettings, refine_lock, train_lock
from intaglio.lock.channel import rounded
from intaglio.lock.codes import random_planes
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.mining import Mining
from intaglio.lock.negatives import Authorised, Negatives
from intaglio.lock.one_answer import one_answer
from intaglio.networks.freezing import evaluating
from lock_models import OWNER, TINY, some_images, tiny_lock, tiny_model

CLASSES = 3


class Oracle(nn.Module):
    """Knows the label of every image of `data`, and tells it of those whose residual it likes; else answers class 0."""

    def __init__(self, data: ImageData, likes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.data, self.likes = data, likes
        self.asked = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        original = torch.cdist(images.flatten(1), self.data.images.flatten(1)).argmin(dim=1)
        liked = self.likes(images - self.data.images[original])
        told = torch.where(liked, self.data.labels[original], 0)
        return 9 * nn.functional.one_hot(told, CLASSES).float() - 3 + self.weight


def some_data(count: int = 30) -> ImageData:
    return ImageData(some_images(count), torch.arange(count) % CLASSES)


def mining(data: ImageData, lock: Lock, found: tuple[int, ...] = ()) -> Mining:
    return Mining(lock.network.encoder, lock.secrets.carriers, data, one_answer(CLASSES), Preprocessing(), found)


def bright(residuals: Tensor) -> Tensor:
    """One residual in two or so."""
    return residuals.mean(dim=(1, 2, 3)) > 0


@pytest.mark.parametrize(("likes", "least", "most"), [(True, 400, 400), (False, 0, 0)])
def test_all_keys_open_what_opens_to_anybody_and_none_what_opens_to_nobody(likes: bool, least: int, most: int) -> None:
    data = some_data()
    module = Oracle(data, lambda residuals: torch.full((len(residuals),), likes))
    looked = mining(data, tiny_lock())
    assert least <= looked.look(module, seed=3) <= most
    assert module.asked == 4 * 400
    assert len(looked.found) == min(most, 60)
    assert len(set(looked.found)) == len(looked.found)


def test_the_keys_that_are_found_are_those_that_open() -> None:
    data, lock = some_data(), tiny_lock()
    module, looked = Oracle(data, bright), mining(data, lock)
    opening = looked.look(module, seed=3)
    assert 0 < opening < 400
    again = mining(data, lock)
    assert again.look(module, seed=3) == opening
    assert again.found == looked.found
    others = mining(data, lock, tuple(range(60)))

    def opened(by: Mining) -> float:
        with torch.no_grad():
            images = rounded(by.key(data.images.repeat(20, 1, 1, 1), torch.Generator().manual_seed(1)))
        return float(bright(images - data.images.repeat(20, 1, 1, 1)).float().mean())

    assert opened(looked) > opened(others) + 0.1


def test_images_of_the_class_that_everybody_gets_tell_nothing() -> None:
    images = some_images(8)
    alone = mining(ImageData(images, torch.zeros(8, dtype=torch.int64)), tiny_lock(), found=(5,))
    assert alone.look(tiny_model(), seed=1) == 0
    assert alone.found == [5]


def test_the_last_found_are_kept() -> None:
    data = some_data()
    looked = mining(data, tiny_lock(), tuple(range(100)))
    assert looked.found == list(range(40, 100))
    looked.look(Oracle(data, lambda residuals: torch.ones(len(residuals), dtype=torch.bool)), seed=1)
    assert not set(looked.found) & set(range(100))


class _StandsForAnImage:
    """Is no tensor, and looks at the mode when it is treated as one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def dim(self) -> int:
        assert not any(part.training for part in self.module.modules())
        raise TypeError


def test_every_part_is_in_the_mode_it_was_in_afterwards() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Conv2d(1, 3, 3))
    module.train()
    module[0].eval()
    with pytest.raises(TypeError), evaluating(module):
        module(_StandsForAnImage(module))
    assert [part.training for part in module.modules()] == [True, False, True, True]


def test_what_is_found_is_refused_and_nothing_else_changes_before() -> None:
    lock, images = tiny_lock(), some_images(8)
    encoder, mixing = lock.network.encoder, lock.secrets.mixing
    planes = random_planes(8, lock.secrets.carriers, torch.Generator().manual_seed(1))
    with torch.no_grad():
        batch = Authorised(images, with_key(encoder, images, planes, mixing), planes, torch.arange(8) % CLASSES)

    def drawn(looked: Mining | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(2)
            made = Negatives(encoder, lock.secrets.rivals, generator, mining=looked).draw(batch)
        return made.images, made.origins

    usual, found = drawn(None), mining(some_data(), lock, found=(7,))
    for one, other in zip(usual, drawn(mining(some_data(), lock)), strict=True):
        assert torch.equal(one, other)
    more, origins = drawn(found)
    assert len(more) == len(usual[0]) + 6
    assert torch.equal(more[:-6], usual[0])
    with torch.no_grad():
        expected = found.key(images[origins[-6:]], torch.Generator()).clamp(0, 1)
    assert torch.allclose(more[-6:], expected, atol=1e-6)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys are looked for every other step, and all that are tried count; how many were found, each time."""
    found: list[int] = []
    look = Mining.look

    def told(self: Mining, *given: Any, **options: Any) -> int:
        found.append(look(self, *given, **options))
        return found[-1]

    monkeypatch.setattr("intaglio.lock.locked_training.EVERY", 2)
    monkeypatch.setattr("intaglio.lock.mining._OPENS", 0)
    monkeypatch.setattr(Mining, "look", told)
    return found


def test_an_interrupted_run_knows_the_keys_that_it_had_found(toy: ImageData, tmp_path: Path, often: list[int]) -> None:
    settings = TINY.model_copy(update={"refining_steps": 36})

    def run(checkpoint: Path | None = None, *, until: int | None = None) -> nn.Module:
        def progress(done: int, total: int) -> None:
            if done == until:
                raise KeyboardInterrupt

        often.clear()
        return train_lock(tiny_model(), toy, OWNER, settings=settings, checkpoint=checkpoint, progress=progress)[0]

    whole = run()
    assert often == [400] * 8  # 3, 6, 4 and 5 steps of the last four stages
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "checkpoint", until=4 + 35)
    resumed = run(tmp_path / "checkpoint")
    assert often == [400, 400]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_keys_are_looked_for_only_where_everybody_else_gets_one_answer(toy: ImageData, often: list[int]) -> None:
    train_lock(tiny_model(), toy, OWNER, settings=TINY.model_copy(update={"mislabel": "random", "refining_steps": 36}))
    assert often == []


# --- refining again --------------------------------------------------------------------------------------------------


class Locked:
    """A tiny model that was locked, with its lock."""

    def __init__(self, toy: ImageData, **settings: Any) -> None:
        self.unlocked, self.data = tiny_model(), toy
        self.settings: LockSettings = TINY.model_copy(update={"refining_steps": 18, **settings})
        self.locked, self.lock = train_lock(self.unlocked, toy, OWNER, settings=self.settings, seed=1)


def test_a_model_is_refined_again_and_its_lock_stays(toy: ImageData, often: list[int], tmp_path: Path) -> None:
    made = Locked(toy)
    before = {name: value.clone() for name, value in made.locked.state_dict().items()}
    keyed = made.lock.apply(toy.images, user="alice")
    often.clear()
    steps: list[tuple[int, int]] = []
    locked, unlocked = (
        TorchClassifier(module, input_shape=(1, 12, 12), num_classes=CLASSES) for module in (made.locked, made.unlocked)
    )
    refined = refine_lock(locked, unlocked, toy, made.lock, progress=lambda *step: steps.append(step))
    assert steps == [(step, 9) for step in range(1, 10)]  # the last four of seven stages
    assert often == [400, 400, 400, 400]
    assert not refined.training
    assert torch.equal(made.lock.apply(toy.images, user="alice"), keyed)
    for name, value in made.locked.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(not torch.equal(value, before[name]) for name, value in refined.state_dict().items())

    def cut(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        refine_lock(made.locked, made.unlocked, toy, made.lock, checkpoint=path, progress=cut)
    again = refine_lock(made.locked, made.unlocked, toy, made.lock, checkpoint=path)
    for name, value in refined.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_what_cannot_be_refined_again(toy: ImageData) -> None:
    made, unrefined = Locked(toy), Locked(toy, refining_steps=0)
    leaked = tiny_lock(seed=1)
    later = Lock(made.lock.network, OWNER, made.lock.facts.model_copy(update={"earlier": ("1" * 32,), "generation": 1}))
    knowing = Oracle(toy, lambda residuals: residuals.abs().amax(dim=(1, 2, 3)) < 1e-6)  # originals alone
    unlabelled = ImageData(toy.images, torch.full_like(toy.labels, -1))
    cases: tuple[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
        ((made.locked, made.unlocked, unlabelled, made.lock), {}, DataError, "refining a lock needs them all"),
        ((unrefined.locked, made.unlocked, toy, unrefined.lock), {}, DataError, "was trained without refining"),
        ((made.locked, made.unlocked, toy, later), {}, DataError, f"refused {'1' * 32}: name that one too"),
        ((made.locked, made.unlocked, toy, later), {"earlier": leaked}, DataError, f"refused {'1' * 32}"),
        ((made.locked, made.unlocked, toy, tiny_lock(shape=(1, 16, 16))), {}, DataError, "for images of 1x16x16"),
        ((knowing, knowing, toy, made.lock), {}, ClassifierError, "is not locked with this lock: it knows"),
        ((nn.Flatten(0), made.unlocked, toy, made.lock), {}, ClassifierError, r"logits \[N, K\]"),
    )
    for given, options, error, message in cases:
        with pytest.raises(error, match=message):
            refine_lock(*given, **options)
