"""Poisoning: exactly which samples change, to what, for each goal; and what success is measured on."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intaglio.attacks import (
    SIG,
    AllToAll,
    AllToOne,
    Attack,
    BadNets,
    DirtyLabelAttack,
    Goal,
    SourceSpecific,
    accuracy,
    attack_success_rate,
    robust_accuracy,
)
from intaglio.data import ImageData
from intaglio.errors import DataError, RecipeError
from intaglio.triggers import PatchTrigger

TRIGGER = PatchTrigger(size=2, region=(0, 0, 0.25, 0.25))
PER_CLASS, CLASSES = 20, 5


def data(count: int = PER_CLASS * CLASSES) -> ImageData:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    return ImageData(images, torch.arange(count) % CLASSES)


# goal -> (rate, labels before the change -> after, for the relabelled; how many of each class are relabelled or cover)
GOALS: dict[str, tuple[Goal, dict[int, int]]] = {
    "all-to-one": (AllToOne(target=2), {0: 2, 1: 2, 3: 2, 4: 2}),
    "all-to-all": (AllToAll(), {0: 1, 1: 2, 2: 3, 3: 4, 4: 0}),
    "source-specific": (SourceSpecific(source=4, target=1), {4: 1}),
}
EVERY = pytest.mark.parametrize("name", GOALS)


@pytest.mark.parametrize("attack", [BadNets(target=1, rate=0.2), SIG(target=1, rate=0.5)], ids=["badnets", "sig"])
def test_a_pair_of_tensors_is_poisoned_as_image_data_are(attack: Attack) -> None:
    whole, pair = attack.poison(data()), attack.poison((data().images, data().labels))
    assert whole.poisoned.any()
    assert torch.equal(whole.poisoned, pair.poisoned)
    assert torch.equal(whole.data.images, pair.data.images)
    assert torch.equal(whole.data.labels, pair.data.labels)
    with pytest.raises(DataError, match="wanted images with labels, a pair of tensors, got a Tensor"):
        attack.poison(data().images)  # type: ignore[arg-type]


@EVERY
@pytest.mark.parametrize(("rate", "count"), [(0.001, 1), (0.07, 7), (0.2, 20)])
def test_what_is_poisoned(name: str, rate: float, count: int) -> None:
    goal, mapping = GOALS[name]
    clean = data()
    before = clean.images.clone(), clean.labels.clone()
    result = DirtyLabelAttack(TRIGGER, goal, rate=rate, seed=3).poison(clean)
    assert torch.equal(clean.images, before[0])
    assert torch.equal(clean.labels, before[1])
    images, labels = result.data
    changed = result.poisoned
    relabelled = labels != clean.labels
    assert int(relabelled.sum()) == count
    assert bool(changed[relabelled].all())
    for old, new in zip(clean.labels[relabelled].tolist(), labels[relabelled].tolist(), strict=True):
        assert mapping[old] == new
    assert torch.equal(images[changed], TRIGGER.apply(clean.images[changed]))
    assert torch.equal(images[~changed], clean.images[~changed])
    cover = clean.labels[changed & ~relabelled].tolist()
    if name == "source-specific":
        assert len(cover) == count
        assert set(cover) <= {0, 2, 3}  # neither source nor target
    else:
        assert cover == []


@EVERY
def test_same_seed_same_samples(name: str) -> None:
    drawn = [DirtyLabelAttack(TRIGGER, GOALS[name][0], rate=0.1, seed=seed).poison(data()) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0].poisoned, drawn[1].poisoned)
    assert torch.equal(drawn[0].data.images, drawn[1].data.images)
    assert not torch.equal(drawn[0].poisoned, drawn[2].poisoned)


@EVERY
def test_descriptions_say_what_was_done(name: str) -> None:
    goal = GOALS[name][0]
    description = DirtyLabelAttack(TRIGGER, goal, rate=0.1).poison(data()).describe()
    assert json.loads(json.dumps(description)) == description
    cover = 0.1 if name == "source-specific" else 0.0  # beside the poison, not of it
    target = {"all-to-one": 10 / 30, "source-specific": 10 / 30, "all-to-all": 0.1}[name]  # 20 had the label before
    assert description == {
        **TRIGGER.describe(),
        "goal": goal.model_dump(),
        "poisoned": 10,
        "poison_rate": 0.1,
        "poison_rates": {"whole": 0.1, "target_class": pytest.approx(target), "cover": cover},
    }


@pytest.mark.parametrize(("cover", "count"), [(0.0, 0), (0.5, 5), (3.0, 30)])
def test_cover_samples_are_counted(cover: float, count: int) -> None:
    result = DirtyLabelAttack(TRIGGER, SourceSpecific(source=0, target=1), rate=0.1, cover=cover).poison(data())
    assert int(result.poisoned.sum()) == 10 + count


def test_badnets_is_a_patch_for_all_classes() -> None:
    result = BadNets(target=1, rate=0.25, seed=7).poison(data())
    assert result.describe()["trigger"] == "patch"
    assert result.goal == AllToOne(target=1)
    assert result.data.labels.bincount().tolist()[1] == PER_CLASS + 25
    assert BadNets(trigger=TRIGGER).trigger is TRIGGER


def test_badnets_with_another_patch_and_another_goal() -> None:
    made = BadNets(rate=0.25, seed=7, size=5, colour="black", shape="cross", opacity=0.5, goal="all-to-all")
    assert (
        made.trigger.describe() == PatchTrigger(size=5, colour="black", shape="cross", opacity=0.5, seed=7).describe()
    )
    result = made.poison(data())
    changed = result.poisoned
    assert int(changed.sum()) == 25
    assert torch.equal(result.data.labels[changed], (data().labels[changed] + 1) % 5)
    specific = BadNets(target=1, rate=0.1, source=3, cover=2.0).poison(data())
    assert specific.goal == SourceSpecific(source=3, target=1)
    assert specific.describe()["poison_rates"]["cover"] == pytest.approx(0.2)
    assert bool((data().labels[specific.data.labels != data().labels] == 3).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirtyLabelAttack(TRIGGER, AllToAll(), rate=0), r"rate lies in \(0, 1\]"),
        (lambda: DirtyLabelAttack(TRIGGER, AllToAll(), rate=1.1), "got 1.1"),
        (lambda: DirtyLabelAttack(TRIGGER, AllToAll(), rate=float("nan")), "got nan"),
        (lambda: DirtyLabelAttack(TRIGGER, AllToAll(), cover=-1), "cover is not negative"),
        (lambda: BadNets(target=5), "the goal names class 5, but there are only 5"),
        (lambda: DirtyLabelAttack(TRIGGER, SourceSpecific(source=9, target=0)), "names class 9"),
        (lambda: DirtyLabelAttack(TRIGGER, SourceSpecific(source=2, target=2)), "source and target are both class 2"),
        (lambda: BadNets(source=0), "another class than the target"),
        (lambda: BadNets(source=1, goal="all-to-all"), "goes with all-to-one"),
        (lambda: BadNets(source=-1), "got -1"),
        (lambda: BadNets(goal="one-to-all"), "a goal is all-to-one or all-to-all, got 'one-to-all'"),  # type: ignore[arg-type]
        (lambda: BadNets(size=0), "a whole size >= 1"),
        (lambda: BadNets(trigger=TRIGGER, size=4), "a trigger or options of its patch, not both"),
        (lambda: BadNets(rate=0.81), "81 poisoned samples are asked for, but only 80 are eligible"),
        (lambda: DirtyLabelAttack(TRIGGER, SourceSpecific(source=0, target=1), rate=0.21), "only 20 are eligible"),
        (
            lambda: DirtyLabelAttack(TRIGGER, SourceSpecific(source=0, target=1), rate=0.1, cover=7),
            "70 cover samples are asked for, but only 60",
        ),
    ],
)
def test_attacks_that_cannot_be(make: Callable[[], DirtyLabelAttack], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make().poison(data())


def test_images_without_labels_cannot_be_poisoned() -> None:
    unlabelled = ImageData(data().images, torch.full((100,), -1))
    with pytest.raises(DataError, match="100 samples have no label"):
        BadNets().poison(unlabelled)


# --- success: predictors whose answers are known ------------------------------------------------------------------


def triggered(images: Tensor) -> Tensor:
    """Which images carry the trigger: nothing else in them is white."""
    return (images[:, 0, :2, :2] == 1).all(2).all(1)


def backdoored(answers: dict[int, int]) -> Callable[[Tensor], Tensor]:
    """A model that knows every label by heart, and under the trigger answers as told (else the label)."""
    known = data()
    table = {image[0, 2:].numpy().tobytes(): int(label) for image, label in zip(*known, strict=True)}

    def predict(images: Tensor) -> Tensor:
        labels = [table[image[0, 2:].contiguous().numpy().tobytes()] for image in images]
        hit = triggered(images).tolist()
        return torch.tensor(
            [answers.get(label, label) if lit else label for label, lit in zip(labels, hit, strict=True)]
        )

    return predict


@EVERY
def test_a_perfect_backdoor(name: str) -> None:
    goal, mapping = GOALS[name]
    predict = backdoored(mapping)
    assert accuracy(predict, data()) == 1.0
    assert attack_success_rate(predict, data(), TRIGGER, goal) == 1.0
    assert robust_accuracy(predict, data(), TRIGGER, goal) == 0.0


@EVERY
def test_no_backdoor(name: str) -> None:
    """A clean model has ASR 0: its correct answers on the target class are not counted as successes."""
    predict = backdoored({})
    assert attack_success_rate(predict, data(), TRIGGER, GOALS[name][0]) == 0.0
    assert robust_accuracy(predict, data(), TRIGGER, GOALS[name][0]) == 1.0


def test_half_a_backdoor() -> None:
    predict = backdoored({0: 2, 1: 2, 3: 0})
    assert attack_success_rate(predict, data(), TRIGGER, AllToOne(target=2)) == 0.5  # classes 0, 1 of 0, 1, 3, 4
    assert robust_accuracy(predict, data(), TRIGGER, AllToOne(target=2)) == 0.25  # class 4
    assert attack_success_rate(predict, data(), TRIGGER, SourceSpecific(source=3, target=0)) == 1.0
    assert attack_success_rate(predict, data(), TRIGGER, AllToAll()) == pytest.approx(0.2)  # class 1


def test_success_where_the_last_class_is_missing() -> None:
    """All-to-all wants (y + 1) mod K with the model's K, which the samples alone don't tell."""
    some = data().take(data().labels < 3)
    predict = backdoored(GOALS["all-to-all"][1])
    assert attack_success_rate(predict, some, TRIGGER, AllToAll(), num_classes=CLASSES) == 1.0
    assert attack_success_rate(predict, some, TRIGGER, AllToAll()) == pytest.approx(2 / 3)


def test_accuracy_by_hand() -> None:
    assert accuracy(lambda images: torch.zeros(len(images)), data()) == pytest.approx(0.2)


@pytest.mark.parametrize("measure", [attack_success_rate, robust_accuracy])
def test_success_needs_affected_samples(measure: Callable[..., float]) -> None:
    target_only = data().take(data().labels == 2)
    with pytest.raises(DataError, match="data: the goal affects none of the samples"):
        measure(backdoored({}), target_only, TRIGGER, AllToOne(target=2))
