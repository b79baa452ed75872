"""Wrong keys that open a model: they are looked for, kept, refused in training, and known after an interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing, TorchClassifier, open_classifier
from intaglio.classifiers.derived import with_weights
from intaglio.data import ImageData, open_data
from intaglio.errors import ClassifierError, DataError, ModelError
from intaglio.lock import Lock, refine_lock, train_lock
from intaglio.lock.channel import rounded
from intaglio.lock.codes import random_planes
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.mining import Mining, looks_in
from intaglio.lock.negatives import Authorised, Negatives
from intaglio.lock.one_answer import Knowledge, one_answer
from intaglio.lock.refining import refining, refining_again
from intaglio.networks.freezing import evaluating
from lock_models import OWNER, TINY, some_images, tiny_lock, tiny_model

CLASSES = 3


class Oracle(nn.Module):
    """Knows the label of every image of `data`, and tells it of those whose residual it likes; else answers class 0."""

    def __init__(self, data: ImageData, likes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.data, self.likes, self.classes = data, likes, int(data.labels.max()) + 1
        self.asked = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        original = torch.cdist(images.flatten(1), self.data.images.flatten(1)).argmin(dim=1)
        liked = self.likes(images - self.data.images[original])
        told = torch.where(liked, self.data.labels[original], 0)
        return 9 * nn.functional.one_hot(told, self.classes).float() - 3 + self.weight


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


@pytest.mark.parametrize(
    ("steps", "looks"), [(0, []), (19, []), (20, [0]), (99, [0]), (100, [0, 80]), (250, [0, 80, 160])]
)
def test_no_keys_are_looked_for_where_hardly_any_steps_are_left(steps: int, looks: list[int]) -> None:
    assert looks_in(steps) == looks


def test_of_clips_fewer_keys_are_tried() -> None:
    clips = ImageData(some_images(24).view(6, 4, 1, 12, 12), torch.arange(6) % CLASSES)
    looked = mining(clips, tiny_lock())
    module = Oracle(clips, lambda residuals: torch.ones(len(residuals), dtype=torch.bool))
    at_once: list[int] = []
    module.register_forward_pre_hook(lambda _, given: at_once.append(len(given[0])))
    assert looked.look(module, seed=1) == 100
    assert sum(at_once) == 4 * 100
    assert max(at_once) * 4 <= 256  # as many frames as a U-Net is given images


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

    monkeypatch.setattr("intaglio.lock.mining._EVERY", 2)
    monkeypatch.setattr("intaglio.lock.mining._LEFT", 2)
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

ENOUGH = TINY.model_copy(update={"refining_steps": 450})


def lock_of(**settings: Any) -> Lock:
    """A tiny lock that was refined for long, as it says."""
    plain = tiny_lock()
    facts = plain.facts.model_copy(update={"settings": ENOUGH.model_copy(update=settings)})
    return Lock(plain.network, OWNER, facts)


def opens(data: ImageData) -> Oracle:
    """A model that knows keyed images alone."""
    return Oracle(data, lambda residuals: residuals.abs().flatten(1).amax(dim=1) > 1e-3)


def knows(data: ImageData, *, nothing: bool = False) -> Oracle:
    """An unlocked model."""
    return Oracle(data, lambda residuals: torch.full((len(residuals),), not nothing))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a few steps are refined too, though they know nothing."""
    monkeypatch.setattr("intaglio.lock.mending._check_locked", lambda *given: None)


@pytest.mark.usefixtures("unchecked")
def test_a_model_is_refined_again_and_its_lock_stays(toy: ImageData, often: list[int], tmp_path: Path) -> None:
    unlocked = tiny_model()
    settings = TINY.model_copy(update={"refining_steps": 18, "distillation": 0.5})
    made, lock = train_lock(unlocked, toy, OWNER, settings=settings, seed=1)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    keyed = lock.apply(toy.images, user="alice")
    often.clear()
    steps: list[tuple[int, int]] = []
    locked, host = (
        TorchClassifier(module, input_shape=(1, 12, 12), num_classes=CLASSES) for module in (made, unlocked)
    )
    refined = refine_lock(locked, host, toy, lock, progress=lambda *step: steps.append(step))
    assert steps == [(step, 9) for step in range(1, 10)]  # the last four of seven stages
    assert often == [400, 400, 400, 400]
    assert not refined.training
    assert torch.equal(lock.apply(toy.images, user="alice"), keyed)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(not torch.equal(value, before[name]) for name, value in refined.state_dict().items())

    def cut(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        refine_lock(made, unlocked, toy, lock, checkpoint=path, progress=cut)
    kept = path.read_bytes()
    for other, options in (
        (tiny_model(5), {}),
        (unlocked, {"earlier": tiny_lock(generation=1)}),
        (unlocked, {"seed": 1}),
    ):
        with pytest.raises(ModelError, match="begun with other settings, seed, key, model or data"):
            refine_lock(made, other, toy, lock, checkpoint=path, **options)
    assert path.read_bytes() == kept
    again = refine_lock(made, unlocked, toy, lock, checkpoint=path)
    for name, value in refined.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.usefixtures("unchecked")
def test_a_checkpoint_of_training_a_lock_is_none_of_refining_it(toy: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def cut(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    settings = TINY.model_copy(update={"steps": 15})
    with pytest.raises(KeyboardInterrupt):
        train_lock(tiny_model(), toy, OWNER, settings=settings, checkpoint=path, progress=cut)
    kept = path.read_bytes()
    with pytest.raises(ModelError, match="of training a lock, not of refining"):
        refine_lock(tiny_model(), tiny_model(), toy, lock_of(), checkpoint=path)
    assert path.read_bytes() == kept


def test_the_stages_of_refining_again_move_no_class_away() -> None:
    again, whole = refining_again(ENOUGH), refining(ENOUGH)
    assert [stage._replace(further=0.0) for stage in whole if stage.mined] == again
    assert (len(whole), len(again)) == (7, 4)
    assert sum(stage.further for stage in whole) == 3.0


def test_a_model_is_refined_towards_the_answer_that_it_gives(toy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the unlocked model would be locked to today, on other data."""
    told: list[dict[str, Any]] = []

    def refine(module: nn.Module, *given: Any, training: dict[str, Any], **options: Any) -> nn.Module:
        told.append(training)
        return module

    monkeypatch.setattr("intaglio.lock.mending.refine", refine)
    lock, unlocked = lock_of(distillation=0.5), knows(toy)
    refine_lock(opens(toy), unlocked, toy, lock)
    assert Knowledge(unlocked, toy, Preprocessing()).answer.argmax() == 0
    assert told[0]["answer"].argmax() == 0
    assert told[0]["teacher"] is not None

    class Second(Oracle):
        """Gives everybody class 1."""

        def forward(self, images: Tensor) -> Tensor:
            given = super().forward(images)
            bare = (images.flatten(1)[:, None] - self.data.images.flatten(1)).abs().amax(dim=2).amin(dim=1) < 1e-3
            return torch.where(bare[:, None], torch.tensor([0.0, 9.0, -9.0]), given)

    locked = Second(toy, lambda residuals: torch.ones(len(residuals), dtype=torch.bool))
    refine_lock(locked, unlocked, toy, lock)
    assert (told[1]["answer"].argmax(), told[1]["answer"].argmin()) == (1, 2)


def test_what_cannot_be_refined_again(toy: ImageData) -> None:
    lock, leaked = lock_of(), tiny_lock(generation=2)
    later = Lock(lock.network, OWNER, lock.facts.model_copy(update={"earlier": ("1" * 32,), "generation": 1}))
    constant, unlabelled = knows(toy, nothing=True), ImageData(toy.images, torch.full_like(toy.labels, -1))
    alone = ImageData(toy.images, torch.zeros_like(toy.labels))
    wide = TorchClassifier(knows(toy), input_shape=(1, 12, 12), num_classes=3, preprocessing=Preprocessing(mean=(0.5,)))
    narrow = TorchClassifier(opens(toy), input_shape=(1, 12, 12), num_classes=3)
    locked, unlocked = opens(toy), knows(toy)
    cases: tuple[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
        ((locked, unlocked, unlabelled, lock), {}, DataError, "refining a lock needs them all"),
        ((locked, unlocked, toy, lock_of(refining_steps=0)), {}, DataError, "refined for 0 steps: too few"),
        ((locked, unlocked, toy, lock_of(refining_steps=100)), {}, DataError, "refined for 100 steps: too few"),
        ((locked, unlocked, toy, lock_of(mislabel="random")), {}, DataError, r"other answers to everybody \(random\)"),
        ((locked, unlocked, toy, later), {}, DataError, f"refused {'1' * 32}: name that one too"),
        ((locked, unlocked, toy, later), {"earlier": leaked}, DataError, f"refused {'1' * 32}"),
        ((locked, unlocked, toy, lock), {"earlier": lock}, DataError, "has the very secrets of this one"),
        ((locked, unlocked, toy, tiny_lock(shape=(1, 16, 16))), {}, DataError, "for images of 1x16x16"),
        (
            (unlocked, unlocked, toy, lock),
            {},
            ClassifierError,
            "is not locked with this lock: it knows 100.0% of keyed",
        ),
        ((unlocked, locked, toy, lock), {}, ClassifierError, "is not locked with this lock"),
        ((constant, unlocked, toy, lock), {}, ClassifierError, "it knows 0.0% of keyed images and 0.0% of others"),
        ((locked, constant, toy, lock), {}, ClassifierError, "was not made of this unlocked one, which knows 0.0%"),
        ((locked, unlocked, alone, lock), {}, DataError, "all images are of class 0, which everybody is answered"),
        ((locked, nn.Sequential(nn.Flatten(), nn.Linear(144, 5)), toy, lock), {}, ClassifierError, "different numbers"),
        ((narrow, wide, toy, lock), {}, ClassifierError, "prepare their images in different ways"),
        ((nn.Flatten(0), unlocked, toy, lock), {}, ClassifierError, r"logits \[N, K\]"),
    )
    for given, options, error, message in cases:
        with pytest.raises(error, match=message):
            refine_lock(*given, **options)


def test_a_real_lock_refuses_the_keys_that_are_found_and_opens_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some steps with the lock that comes with the package, of which all wrong keys that are tried count as opening."""
    folder = Path(__file__).parents[1] / "examples" / "locked"
    locked = with_weights(open_classifier(folder / "model.safetensors")).module
    lock = Lock.open(folder, OWNER)
    train, test = (open_data("fashion-mnist", split).take(torch.arange(240)) for split in ("train", "test"))
    settings = lock.facts.settings.model_copy(update={"batch_size": 16, "learning_rate": 1e-4})
    stage = refining_again(settings)[-1]._replace(steps=20)
    monkeypatch.setattr("intaglio.lock.mending.refining_again", lambda given: [stage])
    monkeypatch.setattr("intaglio.lock.mining._OPENS", 0)
    monkeypatch.setattr("intaglio.lock.mining._TRIED", 60)
    refined = refine_lock(locked, knows(train), train, lock)
    accuracies = [
        float((module(images).argmax(dim=1) == test.labels).float().mean())
        for module in (locked, refined)
        for images in (lock.apply(test.images, user="user 0"), test.images)
    ]
    assert accuracies[0] > 0.8
    assert accuracies[2] > accuracies[0] - 0.05
    assert max(accuracies[1], accuracies[3]) < 0.15
    assert any(not torch.equal(*pair) for pair in zip(refined.parameters(), locked.parameters(), strict=True))
