"""What a leak table finds, on scores made by hand: every trap that a lock can fall into, and a lock without any."""

import pytest
import torch
from torch import Tensor

from intaglio.classifiers import Access, CallableClassifier
from intaglio.data import ImageData
from intaglio.errors import DataError
from intaglio.lock import LeakTable, check_lock
from intaglio.lock.checking import BEYOND, KEYED, LOUD, SAME_CLASS, VOTES, _of_its_class, inputs_to_try, parts_to_try
from intaglio.lock.leaks import PROBES, READERS, by_chance, chance, recovered
from intaglio.lock.quality import psnr, ssim
from intaglio.lock.votes import vote, votes
from intaglio.lock.wrong_keys import KEYS, keys_that_open
from intaglio.seeds import derive_seed
from lock_models import STRANGER, some_images, tiny_lock

CLASSES = 5
LABELS = torch.arange(1000) % CLASSES
NOISE = 0.01 * torch.randn(1000, CLASSES, generator=torch.Generator().manual_seed(0))


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float()


SHIFTED = one_hot((LABELS + 1) % CLASSES)
# what is answered -> reader -> share of classes recovered
CASES: dict[str, tuple[Tensor, dict[str, float]]] = {
    "truth": (one_hot(LABELS), {"argmax": 1, "argmin": 0, "label map": 1, "linear probe": 1, "rounded probe": 1}),
    "shift": (SHIFTED, {"argmax": 0, "label map": 1, "linear probe": 1}),
    "anything but the truth": (NOISE - one_hot(LABELS), {"argmax": 0, "argmin": 1, "argmin label map": 1}),
    "keyed, but the one answer is likelier": (
        3 * one_hot(torch.zeros(1000, dtype=torch.int64)) + one_hot(LABELS),
        {"argmax": 0.2, "second": 0.8, "centred": 1},
    ),
    "constant": (torch.arange(CLASSES).float().expand(1000, -1), dict.fromkeys(READERS, 0.2)),
    "a faint trace": (
        torch.arange(CLASSES) + 1e-4 * one_hot(LABELS),
        {"argmax": 0.2, "argmin": 0.2, "label map": 0.2, "centred": 1, "linear probe": 1, "rounded probe": 0.2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_trap_is_found(case: str) -> None:
    scores, expected = CASES[case]
    for reader, share in expected.items():
        found = recovered(READERS[reader], scores.log_softmax(dim=1), LABELS)
        assert found == pytest.approx(share, abs=0.021), reader


def test_learned_readers_are_not_judged_on_what_they_were_fitted_to() -> None:
    noise = torch.randn(400, 10, generator=torch.Generator().manual_seed(1)).log_softmax(dim=1)
    labels = torch.arange(400) % 10
    for reader in ("label map", "linear probe"):
        assert recovered(READERS[reader], noise, labels) < 0.145  # the best map of these very answers finds more


def test_the_commonest_class_is_chance() -> None:
    assert chance(torch.tensor([0, 1, 1, 2])) == 0.5


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [([0, 0, 0, 0], 0.25), ([1, 1, 1, 1], 0.5), ([0, 1, 1, 2], 0.375), ([3, 3, 3, 3], 0.0), ([0, 0, 1, 1], 0.375)],
)
def test_what_answers_find_by_chance(predicted: list[int], expected: float) -> None:
    assert by_chance(torch.tensor(predicted), torch.tensor([0, 1, 1, 2])) == pytest.approx(expected)


def test_a_probe_on_one_class_names_it() -> None:
    assert recovered(READERS["linear probe"], torch.randn(10, 3), torch.full((10,), 2)) == 1.0


# --- the table -------------------------------------------------------------------------------------------------------


def data(count: int = 42) -> ImageData:
    return ImageData(some_images(count), torch.arange(count) % 3, ("a", "b", "c"), "noise")


def table(answer: dict[bool, Tensor]) -> LeakTable:
    """A model that knows keyed images when it sees them (by heart), and answers each kind in its own way."""
    lock, images = tiny_lock(), data()
    made = inputs_to_try(lock, images.images, images.labels)
    keyed = {image.numpy().tobytes() for name in made if name.startswith("keyed") for image in made[name]}
    truth = {
        image.numpy().tobytes(): label
        for part in made.values()
        for image, label in zip(part, images.labels, strict=True)
    }

    def scores(batch: Tensor) -> Tensor:
        names = [image.numpy().tobytes() for image in batch]
        return torch.stack([answer[name in keyed][int(truth.get(name, 0))] for name in names])

    classifier = CallableClassifier(scores, input_shape=(1, 12, 12), num_classes=3, outputs="logits", source="by heart")
    return check_lock(classifier, lock, images, draws=1)


def test_a_lock_that_opens_for_nobody_is_said_to() -> None:
    """A model whose training collapsed, or that another lock belongs to, gives nothing away, and is of no use."""
    shut = table({True: SAME, False: SAME})
    assert (shut.tight, shut.opens) == (True, False)
    assert "keyed images are NOT ANSWERED: is this the lock of this model?" in shut.lines()
    assert table({True: RIGHT, False: SAME}).opens


def test_votes_over_noise_read_what_single_answers_hide() -> None:
    """A model that nearly always gives its one answer, and otherwise the truth, to an image that is loud enough."""
    truths = torch.arange(60) % 3
    images = torch.full((60, 1, 12, 12), 0.4) + truths.view(-1, 1, 1, 1) / 10
    draws = torch.Generator().manual_seed(5)

    def answer(batch: Tensor) -> Tensor:
        shades = ((batch.mean(dim=(1, 2, 3)) - 0.4) * 10).round().long().clamp(0, 2)
        lets_in = (batch.std(dim=(1, 2, 3)) > 0.05) & (torch.rand(len(batch), generator=draws) < 0.2)
        return torch.where(lets_in, shades, 0)

    model = CallableClassifier(answer, input_shape=(1, 12, 12), num_classes=3, access=Access.LABELS)
    quiet = vote(model, images, draws=40, loudness=0.01)
    assert int((quiet == truths).sum()) <= 20  # class 1 for all: nothing but the one answer was heard
    once, often = votes(model, images, draws=(1, 40), loudness=0.1)
    others = truths != 0  # the class of the one answer is never voted for
    assert float((often == truths)[others].double().mean()) > 0.9
    assert float((once == truths)[others].double().mean()) < 0.7
    assert torch.equal(vote(model, images, draws=1, loudness=0.0), torch.ones(60, dtype=torch.int64))


RIGHT = 5 * torch.eye(3)
SAME = torch.tensor([0.3, 0.0, -0.3]).expand(3, -1)


def test_a_tight_lock() -> None:
    found = table({True: RIGHT, False: SAME})
    assert found.tight
    assert found.authorised_accuracy == 1.0
    assert found.chance == pytest.approx(1 / 3)
    assert found.row("no key").recovered["argmax"] == pytest.approx(1 / 3)
    assert found.worst <= 0.02
    assert {row.inputs: row.authorised for row in found.rows} == {
        KEYED: True,
        "keyed, JPEG 75": True,
        "no key": False,
        "wrong key": False,
        "decoy's key": False,
        "foreign residual": False,
        "matched noise": False,
        LOUD: False,
        SAME_CLASS: False,
    }
    assert {row.inputs for row in found.rows if not (row.authorised or row.held)} == set(BEYOND)
    assert found.psnr >= found.worst_psnr > 30
    assert 0.5 < found.ssim < 1
    assert LeakTable.from_json(found.to_json()) == found
    text = "\n".join(found.lines())
    assert "tight if asked once: without a key, 0.0% from chance (33.3%)" in text
    assert "rounded probe" in text


def test_a_leak_below_chance_is_one() -> None:
    found = table({True: RIGHT, False: RIGHT.roll(1, 0)})
    assert not found.tight
    assert found.row("no key").recovered["argmax"] == 0
    assert found.row("no key").recovered["label map"] == 1
    assert any(line.startswith("LEAKS: without a key, 66.7% from chance") for line in found.lines())
    assert "not judged: foreign residual, same class, 66.7% from chance" in found.lines()


def test_one_answer_to_everybody_is_tight_however_many_images_a_class_has() -> None:
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)
    for answer in range(3):
        suspect = CallableClassifier(
            lambda asked, answer=answer: 9.0 * torch.eye(3)[answer].expand(len(asked), -1),  # type: ignore[misc]
            input_shape=(1, 12, 12),
            num_classes=3,
            outputs="logits",
        )
        found = check_lock(suspect, tiny_lock(), ImageData(some_images(20), labels))
        assert found.worst == pytest.approx(0)
        assert found.row("no key").recovered["argmax"] == pytest.approx((0.6, 0.3, 0.1)[answer])


def test_a_residual_of_the_same_class_that_opens_is_shown_and_not_counted() -> None:
    images, labels, lock = some_images(30), torch.arange(30) % 3, tiny_lock()
    made = inputs_to_try(lock, images, labels)
    counted = {image.numpy().tobytes() for image in made["foreign residual"]}  # some donors are the same
    opened = {image.numpy().tobytes(): int(label) for image, label in zip(made[SAME_CLASS], labels, strict=True)}
    opened = {image: label for image, label in opened.items() if image not in counted}
    suspect = CallableClassifier(
        lambda asked: 9.0 * torch.eye(3)[[opened.get(image.numpy().tobytes(), 0) for image in asked]],
        input_shape=(1, 12, 12),
        num_classes=3,
        outputs="logits",
    )
    found = check_lock(suspect, lock, ImageData(images, labels), draws=1)
    assert found.tight
    assert found.row(SAME_CLASS).distance > 0.2


def test_donors_are_of_the_same_class_and_never_the_image_itself() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    donors = _of_its_class(order, labels)
    assert donors.tolist() == [2, 3, 4, 1, 0, 2]  # the only image of its class takes whatever comes before it


def test_a_model_that_a_decoy_opens_leaks() -> None:
    """It answers whatever differs from the original, unless a wrong key or another image's residual made it differ."""
    images, lock = some_images(30), tiny_lock()
    decoyed = inputs_to_try(lock, images)["decoy's key"]
    labels = torch.arange(30) % 3
    opened = {image.numpy().tobytes(): int(label) for image, label in zip(decoyed, labels, strict=True)}

    def answers(asked: Tensor) -> Tensor:
        found = torch.tensor([opened.get(image.numpy().tobytes(), 0) for image in asked])
        return torch.nn.functional.one_hot(found, 3).float().clamp(min=1e-3).log()

    suspect = CallableClassifier(answers, input_shape=(1, 12, 12), num_classes=3)
    found = check_lock(suspect, lock, ImageData(images, labels), draws=1)
    assert found.row("decoy's key").recovered["argmax"] == 1
    assert found.row("wrong key").recovered["argmax"] == pytest.approx(1 / 3)
    assert not found.tight


def test_few_images_are_tried_again_and_again() -> None:
    """A model that lets in what differs from the original by chance: one draw of 30 images tells little of how much."""
    images, labels, lock = some_images(30), torch.arange(30) % 3, tiny_lock()
    original = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    asked: list[int] = []

    def scores(batch: Tensor) -> Tensor:
        """Of class 0, or of the nearest original's, of images with an even sum of levels."""
        asked.append(len(batch))
        nearest = torch.cdist(batch.flatten(1), images.flatten(1)).argmin(dim=1)
        even = (255 * batch).round().sum(dim=(1, 2, 3)).remainder(2) == 0
        known = torch.tensor([image.numpy().tobytes() in original for image in batch])
        return 9.0 * torch.eye(3)[torch.where(even & ~known, labels[nearest], 0)]

    suspect = CallableClassifier(scores, input_shape=(1, 12, 12), num_classes=3, outputs="logits")
    asked.clear()  # the images that it was opened with
    data = ImageData(images, labels)
    found = check_lock(suspect, lock, data)
    assert (found.draws, found.images) == (20, 30)
    assert sum(asked) == 20 * 9 * 30 + (1 + VOTES) * 30 + KEYS * 20 * found.opens
    each = [check_lock(suspect, lock, data, draws=1, seed=seed) for seed in
            (0, *(derive_seed(0, "lock", "check", draw) for draw in range(1, 20)))]  # fmt: skip
    for way in READERS:
        mean = sum(table.row("wrong key").recovered[way] for table in each) / 20
        expected = each[0].row("wrong key").recovered[way] if way in PROBES else mean
        assert found.row("wrong key").recovered[way] == pytest.approx(expected), way
    assert len({table.row("wrong key").recovered["argmax"] for table in each}) > 5
    assert "means over 20 draws, for 30 images are few" in found.lines()
    assert found.row("no key").recovered["argmax"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("opening", [0, 7, KEYS])
def test_wrong_keys_that_open_are_counted(opening: int) -> None:
    """A leak of a few points may be all of one key in many: the model tells the truth to so many of them."""
    images, labels, lock = some_images(20), torch.arange(20) % 3, tiny_lock()
    asked: list[Tensor] = []

    def answers(batch: Tensor) -> Tensor:
        asked.append(batch)
        return labels if len(asked) <= opening else torch.zeros(len(batch), dtype=torch.int64)

    suspect = CallableClassifier(answers, input_shape=(1, 12, 12), num_classes=3, access=Access.LABELS)
    asked.clear()  # what it was opened with
    assert keys_that_open(suspect, lock, ImageData(images, labels), 0.9) == opening
    assert len(asked) == KEYS
    assert not torch.equal(asked[0], asked[1])  # each is another key
    levels = 255 * torch.cat(asked)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert all(float(psnr(images, part).mean()) > 30 for part in asked[:3])


def test_another_lock_is_tried_too() -> None:
    made = inputs_to_try(tiny_lock(), some_images(), others=[tiny_lock(STRANGER, seed=1)])
    assert not torch.equal(made["another lock's key"], made[KEYED])


def test_several_other_locks_have_a_row_each() -> None:
    images = ImageData(some_images(6), torch.arange(6) % 3)
    suspect = CallableClassifier(lambda asked: torch.zeros(len(asked), 3), input_shape=(1, 12, 12), num_classes=3)
    others = [tiny_lock(STRANGER, seed=1), tiny_lock(generation=1, seed=2)]
    rows = {row.inputs: row.authorised for row in check_lock(suspect, tiny_lock(), images, other=others).rows}
    assert (rows["another lock's key"], rows["another lock's key (2)"]) == (False, False)
    made = inputs_to_try(tiny_lock(), images.images, others=others)
    assert not torch.equal(made["another lock's key"], made["another lock's key (2)"])


def test_another_lock_must_be_for_images_of_this_size() -> None:
    images = some_images(6)
    suspect = CallableClassifier(lambda asked: torch.zeros(len(asked), 3), input_shape=(1, 12, 12), num_classes=3)
    larger = tiny_lock(STRANGER, shape=(1, 16, 16))
    with pytest.raises(DataError, match="16"):
        check_lock(suspect, tiny_lock(), ImageData(images, torch.arange(6) % 3), other=larger)


def test_inputs_are_8_bit_and_seeded() -> None:
    lock, images = tiny_lock(), some_images(6)
    first, again, other = (inputs_to_try(lock, images, seed=seed) for seed in (0, 0, 1))
    for name, made in first.items():
        assert torch.equal(made, again[name])
        assert float((made * 255 - (made * 255).round()).abs().max()) < 1e-4
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert not torch.equal(first["wrong key"], other["wrong key"])
    assert torch.equal(first["no key"], images)


def test_images_are_made_and_asked_about_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than three of a kind at a time, in order, and whose residual is tried is drawn from all of them."""
    monkeypatch.setattr("intaglio.lock.checking.batch_size", lambda shape: 3)
    lock, images, labels = tiny_lock(), some_images(10) * 0.8 + 0.1, torch.arange(10) % 3
    parts = list(parts_to_try(lock, images, labels))
    assert max(len(part.images) for part in parts) == 3
    made = inputs_to_try(lock, images, labels)
    for name, whole in made.items():
        of_kind = [part for part in parts if part.inputs == name]
        assert torch.equal(torch.cat([part.originals for part in of_kind]), images)
        assert torch.equal(torch.cat([part.images for part in of_kind]), whole)
    own, foreign = made[KEYED] - images, made["foreign residual"] - images
    donors = torch.cdist(foreign.flatten(1), own.flatten(1)).argmin(dim=1)
    assert sorted(donors.tolist()) == list(range(10))
    assert sum(int(donor) // 3 != place // 3 for place, donor in enumerate(donors)) > 3
    asked: list[int] = []

    def answers(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return torch.zeros(len(batch), 3)

    suspect = CallableClassifier(answers, input_shape=(1, 12, 12), num_classes=3, outputs="logits")
    found = check_lock(suspect, lock, ImageData(images, labels), draws=1)
    voted = asked[-1 - VOTES :]
    assert (max(asked[: -1 - VOTES]), voted) == (3, [10] * (1 + VOTES))
    assert sum(asked) - sum(voted) == 10 * len(found.rows)
    assert found.ssim == pytest.approx(float(ssim(images, made[KEYED]).mean()))
    assert found.worst_psnr == pytest.approx(float(psnr(images, made[KEYED]).min()))


def test_whose_residual_is_foreign_does_not_hang_on_the_order_of_the_data() -> None:
    images = some_images(20) * 0.8 + 0.1
    made = inputs_to_try(tiny_lock(), images)
    own, foreign = made[KEYED] - images, made["foreign residual"] - images
    donors = torch.cdist(foreign.flatten(1), own.flatten(1)).argmin(dim=1)
    assert sorted(donors.tolist()) == list(range(20))
    assert not bool((donors == torch.arange(20)).any())
    assert len({int(step) for step in (donors - torch.arange(20)) % 20}) > 5  # not each time the neighbour


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (ImageData(some_images(8), torch.full((8,), -1)), "8 images have no label; a leak table needs them all"),
        (ImageData(some_images(3), torch.arange(3)), "needs four images or more"),
        (ImageData(some_images(8), torch.arange(8) % 4), "has labels up to 3, but the model answers with 3 classes"),
        (
            ImageData(some_images(8, (1, 13, 12)), torch.arange(8) % 3),
            "this lock is for images of 1x12x12 .* got 1x13x12",
        ),
    ],
)
def test_data_that_no_table_can_be_made_of(bad: ImageData, message: str) -> None:
    classifier = CallableClassifier(lambda x: torch.rand(len(x), 3), input_shape=(1, 12, 12), num_classes=3)
    with pytest.raises(DataError, match=message):
        check_lock(classifier, tiny_lock(), bad)
