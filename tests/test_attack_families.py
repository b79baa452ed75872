"""Every attack by one table: what it changes and what it leaves; then what each family promises of its own."""

import json
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from intaglio.attacks import (
    ATTACKS,
    ISSBA,
    SIG,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    Attack,
    BadNets,
    Blended,
    CleanLabelUniversal,
    DirtyLabelAttack,
    InputAware,
    LabelConsistent,
    PoisonedDataset,
    WaNet,
    accuracy,
    attack_success_rate,
    robust_accuracy,
)
from intaglio.attacks.input_aware import _Joint
from intaglio.attacks.options import make_attack
from intaglio.attacks.surrogate import trained_surrogate
from intaglio.attacks.weakening import away_from_label, towards_uniform, weakened
from intaglio.data import ImageData
from intaglio.errors import DataError, IntaglioError, ModelError, RecipeError
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings, train
from intaglio.triggers import (
    BlendedTrigger,
    InputAwareGenerator,
    InputAwareTrigger,
    PatchTrigger,
    SinusoidTrigger,
    Trigger,
)
from intaglio.triggers.sample_specific import SampleSpecificTrigger

SHAPE = (1, 12, 12)
TARGET = 1
ARCHITECTURE = Architecture(name="resnet8", input_shape=SHAPE, num_classes=3, width=4)
BRIEF = TrainingSettings(epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def surrogate(toy: ImageData) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train(ARCHITECTURE.build(), toy, TrainingSettings(epochs=4, batch_size=16, learning_rate=0.01), seed=0)


#: name -> options that make it quick, how many of 96 samples (32 a class) it poisons, and how many are cover
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "badnets": ({"rate": 0.1}, 10, 0),
    "blended": ({"rate": 0.125}, 12, 0),
    "sig": ({"rate": 0.25, "frequency": 2.0}, 8, 0),
    "label-consistent": ({"rate": 0.5, "steps": 3}, 16, 0),
    "wanet": ({"rate": 0.1, "cover": 1.5}, 10, 15),
    "issba": ({"rate": 0.1, "bits": 8, "steps": 2, "width": 4}, 10, 0),
    "input-aware": ({"rate": 0.1, "cross_rate": 0.2, "mask_epochs": 1, "width": 4}, 10, 19),
    "adaptive-blend": ({"rate": 0.05, "cover_rate": 0.1}, 5, 10),
    "adaptive-patch": ({"rate": 0.05, "cover_rate": 0.1}, 5, 10),
    "clean-label-universal": ({"rate": 0.25, "steps": 3, "enhancement_steps": 2}, 8, 0),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make(name: str, module: nn.Module, seed: int = 3, **changes: Any) -> Attack:
    options = CASES[name][0] | changes
    family: Any = ATTACKS[name]
    if name in ("label-consistent", "clean-label-universal"):
        options["surrogate"] = module
    if name == "input-aware":
        options["surrogate"] = ARCHITECTURE
    attack = family(target=TARGET, seed=seed, **options)
    assert isinstance(attack, Attack)
    return attack


def predict(module: nn.Module) -> Any:
    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = module.eval()(images).argmax(1)
        return answers

    return answer


def test_the_table_names_every_attack() -> None:
    assert CASES.keys() == {name for name, family in ATTACKS.items() if family.takes != "clips"}
    assert {name: family.name for name, family in ATTACKS.items()} == {name: name for name in ATTACKS}
    clean = {name for name, family in ATTACKS.items() if family.clean_label}
    assert clean == {"sig", "label-consistent", "clean-label-universal"}
    assert [name for name, family in ATTACKS.items() if family.joint] == ["input-aware"]


@EVERY
def test_what_is_changed(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    _, count, covering = CASES[name]
    before = toy.images.clone(), toy.labels.clone()
    result = make(name, surrogate).poison(toy)
    assert torch.equal(toy.images, before[0])
    assert torch.equal(toy.labels, before[1])
    images, labels = result.data
    altered = (images != toy.images).flatten(1).any(1)
    relabelled = labels != toy.labels
    assert int(result.payload.sum()) == count
    assert int(result.poisoned.sum()) == count + covering
    assert not bool((altered & ~result.poisoned).any())
    assert int((result.poisoned & ~altered).sum()) == 0
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    if ATTACKS[name].clean_label:
        assert not bool(relabelled.any())
        assert set(labels[result.payload].tolist()) == {TARGET}
    else:
        assert torch.equal(relabelled, result.payload)
        assert set(labels[relabelled].tolist()) == {TARGET}
        assert TARGET not in toy.labels[result.poisoned].tolist()
    whole = len(toy)
    assert result.rates() == {
        "whole": count / whole,
        "target_class": count / int((labels == TARGET).sum()),
        "cover": covering / whole,
    }


@EVERY
def test_same_seed_same_bytes(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    made: list[PoisonedDataset] = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(made))  # the global generator has no say
        made.append(make(name, surrogate, seed).poison(toy))
    probe = toy.images[:4]
    assert torch.equal(made[0].data.images, made[1].data.images)
    assert torch.equal(made[0].data.labels, made[1].data.labels)
    assert torch.equal(made[0].trigger.apply(probe), made[1].trigger.apply(probe))
    assert not torch.equal(made[0].poisoned, made[2].poisoned)


@EVERY
def test_triggers_for_test_time(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    result = make(name, surrogate).poison(toy)
    stamped = result.trigger.apply(toy.images)
    assert stamped.shape == toy.images.shape
    assert bool((stamped != toy.images).flatten(1).any(1).all())
    for description in (make(name, surrogate).describe(), result.describe(), result.trigger.describe()):
        assert json.loads(json.dumps(description)) == description


@EVERY
def test_victims(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    victims = [make(name, surrogate).train_victim(ARCHITECTURE, toy, BRIEF, seed=5) for _ in range(2)]
    states = [torch.cat([value.flatten().float() for value in v.module.state_dict().values()]) for v in victims]
    assert torch.equal(states[0], states[1])
    module, trigger, poisoned = victims[0]
    assert not module.training
    assert module(toy.images).shape == (96, 3)
    assert poisoned.trigger is trigger
    assert int(poisoned.payload.sum()) == CASES[name][1]
    levels = poisoned.data.images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)  # as a picture file holds it


@EVERY
def test_a_module_is_trained_in_place(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    if name in ("wanet", "badnets", "input-aware"):
        module = ARCHITECTURE.build()
        assert make(name, surrogate).train_victim(module, toy, BRIEF).module is module


@EVERY
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, r"lies in \(0, 1\].*got 0.0"),
        ({"rate": float("nan")}, "got nan"),
    ],
)
def test_rates_that_cannot_be(name: str, changes: dict[str, Any], message: str, surrogate: nn.Module) -> None:
    with pytest.raises(RecipeError, match=message):
        make(name, surrogate, **changes)


@EVERY
def test_targets_that_cannot_be(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    family: Any = ATTACKS[name]
    with pytest.raises(RecipeError, match="the target is a class from 0 on, got -1"):
        family(target=-1)
    with pytest.raises(RecipeError, match="the goal names class 7, but there are only 3"):
        family(target=7).poison(toy)
    some = ImageData(toy.images, toy.labels.clone().index_fill_(0, torch.tensor([4]), -1), toy.classes, "holes")
    with pytest.raises(DataError, match="holes: 1 samples have no label"):
        make(name, surrogate).poison(some)
    bare = ImageData(toy.images, torch.full_like(toy.labels, -1), name="bare")
    with pytest.raises(DataError, match=f"bare: {len(toy)} samples have no label; an attack needs them all"):
        make(name, surrogate).poison(bare)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Blended(alpha=0), "alpha in"),
        (lambda: SIG(delta=2), "delta in"),
        (lambda: SIG(test_delta=0), "delta in"),
        (lambda: LabelConsistent(epsilon=-1), "epsilon in"),
        (lambda: LabelConsistent(steps=0), "a step or more"),
        (lambda: LabelConsistent(size=0), "whole size"),
        (
            lambda: LabelConsistent(size=7, epsilon=0),
            "patches of 7 pixels in every corner overlap on images of 12 x 12",
        ),
        (lambda: WaNet(cover=-1), "cover is not negative"),
        (lambda: WaNet(cover=math.inf), "cover is not negative, and finite, got inf"),
        (lambda: WaNet(cover=math.nan), "cover is not negative, and finite, got nan"),
        (lambda: BadNets(source=1, cover=math.inf), "cover is not negative, and finite, got inf"),
        (lambda: WaNet(strength=-1), "strength of 0 or more"),
        (lambda: ISSBA(bits=0), "a bit and a training step"),
        (lambda: ISSBA(bits=64), "images of 12 x 12 are too small to carry 64 bits"),
        (lambda: ISSBA(psnr=1), "PSNR of 10 to 80"),
        (lambda: ISSBA(width=3), "multiple of 4"),
        (lambda: ISSBA(bits=2.5), "a bit and a training step"),  # type: ignore[arg-type]
        (lambda: InputAware(cross_rate=0.95), "leaves clean samples"),
        (lambda: InputAware(density=0), "a density in"),
        (lambda: InputAware(cross_rate=0.01), "a cross rate of 0.01 is one of 96 samples, and there is no other"),
        (lambda: AdaptiveBlend(pieces=15), "a square number of pieces"),
        (lambda: AdaptiveBlend(masked=1), "a masked share in"),
        (lambda: AdaptiveBlend(masked=0.97), "a masked share of 0.97 leaves training samples none of 16 pieces"),
        (lambda: AdaptiveBlend(pieces=1, masked=0.6), "a masked share of 0.6 leaves training samples none of 1 pieces"),
        (lambda: AdaptiveBlend(cover_rate=2), "a cover rate in"),
        (lambda: AdaptiveBlend(rate=0.4, cover_rate=0.4), "cover samples are asked for, but only"),
        (lambda: AdaptivePatch(test_patches=5), "1 to 4 patches"),
        (lambda: AdaptivePatch(opacities=(0.0,), test_patches=1), "opacity in"),
        (lambda: AdaptivePatch(size=8), "a patch of 8 pixels does not fit into 6"),
        (lambda: CleanLabelUniversal(size=0), "a size and enhancement steps of 1 or more"),
        (lambda: CleanLabelUniversal(epsilon=2), "epsilon outside"),
        (lambda: CleanLabelUniversal(enhancement="some"), "unknown enhancement 'some'"),  # type: ignore[arg-type]
        (lambda: CleanLabelUniversal(place="left"), "or place 'left'"),  # type: ignore[arg-type]
        (lambda: CleanLabelUniversal(size=13, surrogate=ARCHITECTURE.build()), "a patch of 13 pixels"),
        (lambda: CleanLabelUniversal(surrogate="alexnet"), "unknown architecture 'alexnet'"),
    ],
)
def test_attacks_that_cannot_be(make_it: Any, message: str, toy: ImageData) -> None:
    with pytest.raises(IntaglioError, match=message) as caught:
        make_it().poison(toy)
    assert isinstance(caught.value, RecipeError | ModelError)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: ISSBA(batch_size=0), "^batch_size: Input should be greater than or equal to 1$"),
        (lambda: ISSBA(learning_rate=-1), "^learning_rate: Input should be greater than 0$"),
        (lambda: InputAware(mask_epochs=2.5), "an epoch for the masks, got .* 2.5"),  # type: ignore[arg-type]
        (lambda: InputAware(width=7), "multiple of 4.* got 7"),
        (lambda: make_attack("issba", {"batch_size": "0"}), "^issba: batch_size: "),  # exit 4 on the command line
        (lambda: BadNets(trigger={"size": 5}), "takes a Trigger, .* not dict"),  # type: ignore[arg-type]
    ],
)
def test_options_of_training_are_checked_before_there_are_data(make_it: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_it()


@pytest.mark.parametrize("attack", [ISSBA(bits=1), InputAware(surrogate=ARCHITECTURE)], ids=["issba", "input-aware"])
def test_images_that_no_u_net_takes(attack: Attack, toy: ImageData) -> None:
    tiny = ImageData(toy.images[..., :3, :5], toy.labels, toy.classes)
    with pytest.raises(RecipeError, match=r"^images of 3 x 5 are too small for a U-Net, which takes 4 pixels a side$"):
        attack.poison(tiny)


@EVERY
def test_what_cannot_be_is_said_before_the_work(
    name: str, toy: ImageData, surrogate: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = make(name, surrogate)
    for work in ("poison", "make_trigger", "_trained"):
        monkeypatch.setattr(type(attack), work, lambda *_, **__: pytest.fail("it was begun"), raising=False)
    with pytest.raises(ModelError, match="unknown architecture 'alexnet'"):
        attack.train_victim("alexnet", toy, BRIEF)


@pytest.mark.parametrize("name", [name for name in CASES if not ATTACKS[name].clean_label])
def test_more_samples_than_there_are_train_no_trigger(name: str, toy: ImageData, surrogate: nn.Module) -> None:
    changes: dict[str, Any] = {"rate": 1.0} | ({"cross_rate": 0.0} if name == "input-aware" else {})
    attack = make(name, surrogate, **changes)
    with (
        patch.object(type(attack), "make_trigger", side_effect=AssertionError("a trigger was made")),
        pytest.raises(RecipeError, match="96 poisoned samples are asked for, but only 64 are eligible"),
    ):
        attack.poison(toy)


def test_checking_an_attack_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    InputAware(width=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_rates_where_every_class_is_a_target(toy: ImageData) -> None:
    result = DirtyLabelAttack(PatchTrigger(), AllToAll(), rate=0.25).poison(toy)
    assert result.rates() == {"whole": 0.25, "target_class": 0.25, "cover": 0.0}


# --- what each family promises ---------------------------------------------------------------------------------------


def test_sig_plants_fainter_than_it_stamps(toy: ImageData) -> None:
    attack = SIG(target=0, rate=1.0, delta=0.05, test_delta=0.2, frequency=3)
    result = attack.poison(toy)
    own = toy.labels == 0
    assert torch.equal(result.poisoned, own)
    assert torch.equal(result.data.images[own], SinusoidTrigger(delta=0.05, frequency=3).apply(toy.images[own]))
    assert torch.equal(result.trigger.apply(toy.images), SinusoidTrigger(delta=0.2, frequency=3).apply(toy.images))
    assert SIG().poison(toy).trigger.describe()["delta"] == pytest.approx(20 / 255)


def test_label_consistent_samples_are_bounded_and_weakened(toy: ImageData, surrogate: nn.Module) -> None:
    attack = LabelConsistent(target=0, rate=1.0, epsilon=0.2, steps=10, size=2, surrogate=surrogate)
    result = attack.poison(toy)
    own = toy.labels == 0
    inside = (slice(None), slice(None), slice(2, -2))
    distance = (result.data.images[own] - toy.images[own])[inside].abs()
    assert 0.1 < float(distance.max()) <= 0.2 + 1e-6
    corners = result.trigger.apply(torch.full((1, *SHAPE), 0.5))[0, 0]
    patch = corners[:2, :2]
    assert set(patch.flatten().tolist()) <= {0.0, 1.0}
    for corner in (corners[:2, -2:], corners[-2:, :2], corners[-2:, -2:]):
        assert torch.equal(corner, patch)
    assert int((corners != 0.5).sum()) == 16
    bare = LabelConsistent(target=0, rate=1.0, epsilon=0, size=2).poison(toy)
    assert torch.equal(bare.data.images[own], bare.trigger.apply(toy.images[own]))


def test_weakening_lowers_what_it_should(toy: ImageData, surrogate: nn.Module) -> None:
    images, labels = toy.images[:30], toy.labels[:30]
    frozen = trained_surrogate(surrogate, toy, seed=0)
    bounds: dict[str, Any] = {"epsilon": 0.3, "step": 0.05, "steps": 8}
    gone = weakened(frozen, images, labels, away_from_label, **bounds)
    flat = weakened(frozen, images, labels, towards_uniform, **bounds)
    with torch.no_grad():
        probabilities = [frozen(x).softmax(1) for x in (images, gone, flat)]
    own = [float(p[torch.arange(30), labels].mean()) for p in probabilities]
    assert own[1] < own[0] - 0.3
    entropy = [float(-(p * p.clamp_min(1e-9).log()).sum(1).mean()) for p in probabilities]
    assert entropy[2] > entropy[0]
    assert not images.requires_grad


def test_surrogates_by_name_are_trained_and_modules_are_copied(toy: ImageData, surrogate: nn.Module) -> None:
    many = toy.take(torch.arange(960) % len(toy))
    module = trained_surrogate(ARCHITECTURE, many, seed=1)
    assert accuracy(predict(module), toy) > 0.8
    copy = trained_surrogate(surrogate, toy, seed=1)
    assert copy is not surrogate
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


@pytest.mark.parametrize("place", ["corner", "centre"])
def test_a_universal_trigger_moves_its_surrogate(
    place: Any, toy: ImageData, toy_test: ImageData, surrogate: nn.Module
) -> None:
    attack = CleanLabelUniversal(target=1, steps=60, size=8, step_size=0.02, place=place, surrogate=surrogate)
    trigger = attack.learn_trigger(surrogate.eval(), toy)
    start = CleanLabelUniversal(target=1, steps=0, size=8, place=place).learn_trigger(surrogate, toy)
    assert torch.equal(start.pattern, torch.full((1, 8, 8), 0.5))
    success = [attack_success_rate(predict(surrogate), toy_test, t, attack.goal) for t in (start, trigger)]
    assert success[1] > success[0] + 0.2
    assert (trigger.stamp(SHAPE)[0][4:, 4:] if place == "corner" else trigger.stamp(SHAPE)[0][2:10, 2:10]).min() == 1
    assert CleanLabelUniversal(steps=0).learn_trigger(surrogate, toy).pattern.shape == (1, 3, 3)  # a quarter of 12


@pytest.mark.parametrize("enhancement", ["uniform", "targeted", "none"])
def test_enhanced_samples_are_bounded(enhancement: Any, toy: ImageData, surrogate: nn.Module) -> None:
    attack = CleanLabelUniversal(
        rate=1.0, steps=2, enhancement=enhancement, epsilon=0.05, step_size=0.02, surrogate=surrogate
    )
    result = attack.poison(toy)
    outside = (result.data.images - toy.images)[result.poisoned][:, :, :-3].abs()
    assert float(outside.max()) <= 0.05 + 1e-6
    assert (float(outside.max()) == 0) == (enhancement == "none")


def test_wanet_cover_is_noisy_and_keeps_its_label(toy: ImageData) -> None:
    attack = WaNet(target=0, rate=0.1, cover=2, strength=1.0, seed=2)
    result = attack.poison(toy)
    assert result.cover is not None
    assert torch.equal(result.data.images[result.payload], attack.trigger.apply(toy.images[result.payload]))
    warped = attack.trigger.apply(toy.images[result.cover])
    assert not torch.allclose(result.data.images[result.cover], warped, atol=1e-3)
    assert torch.equal(result.data.labels[result.cover], toy.labels[result.cover])


def test_wanet_draws_its_noise_anew_for_every_batch(toy: ImageData) -> None:
    attack = WaNet(target=0, rate=0.1, cover=2, strength=1.0)
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.detach().clone())
            logits: Tensor = self.head(x.flatten(1))
            return logits

    settings = TrainingSettings(epochs=2, batch_size=96)
    _, trigger, poisoned = attack.train_victim(Watching(), toy, settings)
    assert [len(batch) for batch in seen] == [96, 96]
    rows = [{image.numpy().tobytes() for image in batch} for batch in seen]
    clean = {image.numpy().tobytes() for image in toy.images[~poisoned.poisoned]}
    warped = {image.numpy().tobytes() for image in trigger.apply(toy.images[poisoned.payload])}
    covers = int(poisoned.poisoned.sum()) - len(warped)
    for batch in rows:
        assert clean | warped <= batch
    assert len(rows[0] - rows[1]) == covers


def test_issba_residuals_are_bounded_and_differ(toy: ImageData) -> None:
    attack = ISSBA(target=0, rate=0.2, bits=8, steps=40, width=4, epsilon=0.1, psnr=28, batch_size=16, seed=1)
    result = attack.poison(toy)
    assert isinstance(result.trigger, SampleSpecificTrigger)
    residual = result.trigger.apply(toy.images) - toy.images
    assert float(residual.abs().max()) <= 0.1 + 1e-6
    assert float((-10 * residual.square().mean(dim=(1, 2, 3)).log10()).min()) >= 28 - 1e-3
    assert float((residual - residual.mean(0)).abs().max()) > 1e-3  # the image has some say
    assert torch.equal(result.data.images[result.poisoned], result.trigger.apply(toy.images[result.poisoned]))


def test_adaptive_blend_plants_half_of_the_pieces(toy: ImageData) -> None:
    attack = AdaptiveBlend(target=0, rate=0.3, cover_rate=0.1, alpha=0.2, test_alpha=0.4, pieces=16, masked=0.5)
    result = attack.poison(toy)
    full = BlendedTrigger(alpha=0.2).apply(toy.images)
    pieces = torch.stack(torch.split(torch.arange(144).view(12, 12), 3)).view(4, 3, 4, 3).transpose(1, 2).flatten(2)
    seen = set()
    for index in result.poisoned.nonzero().flatten().tolist():
        image, clean = result.data.images[index].flatten(), toy.images[index].flatten()
        kept = []
        for piece in pieces.flatten(0, 1):
            planted = bool((image[piece] != clean[piece]).any())
            expected = full[index].flatten() if planted else clean
            assert torch.equal(image[piece], expected[piece])
            kept.append(planted)
        assert sum(kept) == 8
        seen.add(tuple(kept))
    assert len(seen) > 10  # every sample has its own
    assert torch.equal(result.trigger.apply(toy.images), BlendedTrigger(alpha=0.4).apply(toy.images))
    whole = AdaptiveBlend(target=0, rate=0.3, masked=0.0, alpha=0.2).poison(toy)
    assert torch.equal(whole.data.images[whole.payload], full[whole.payload])


def test_adaptive_patch_gives_every_sample_one_patch(toy: ImageData) -> None:
    attack = AdaptivePatch(target=0, rate=0.25, cover_rate=0.1, size=3, opacities=(0.4, 0.8, 0.6), test_patches=2)
    result = attack.poison(toy)
    quarters = {"lower right": (6, 6), "upper left": (0, 0), "upper right": (0, 6)}
    counts = dict.fromkeys(quarters, 0)
    changed = result.data.images != toy.images
    for index in result.payload.nonzero().flatten().tolist():
        lit = changed[index, 0].nonzero()
        assert 0 < len(lit) <= 9
        (place,) = [
            name
            for name, (row, column) in quarters.items()
            if bool(((lit >= torch.tensor([row, column])) & (lit < torch.tensor([row + 6, column + 6]))).all())
        ]
        counts[place] += 1
    assert counts == {"lower right": 8, "upper left": 8, "upper right": 8}
    stamped = (result.trigger.apply(toy.images) != toy.images).any(0)[0]
    assert bool(stamped[:6, :6].any())  # the two most opaque ones, fully
    assert bool(stamped[:6, 6:].any())
    assert not bool(stamped[6:].any())
    patches = result.trigger.describe()["links"]
    assert [patch["opacity"] for patch in patches] == [1.0, 1.0]
    assert AdaptivePatch(rate=0.05).poison(toy).trigger.describe()["links"][0]["size"] == 2  # a fifth of 12


def test_input_aware_triggers_are_their_images_own(toy: ImageData, toy_test: ImageData) -> None:
    """After a little training the backdoor answers an image's own trigger, but hardly another image's."""
    attack = InputAware(
        target=0, rate=0.2, cross_rate=0.2, mask_epochs=30, sparsity=5.0, diversity=0.3, width=8, seed=1
    )
    settings = TrainingSettings(epochs=50, batch_size=32, learning_rate=0.01)
    module, trigger, poisoned = attack.train_victim(ARCHITECTURE, toy, settings, seed=2)
    assert isinstance(trigger, InputAwareTrigger)
    answer = predict(module)
    others = toy_test.take(toy_test.labels != 0)
    assert accuracy(answer, toy_test) > 0.9
    assert attack_success_rate(answer, toy_test, trigger, attack.goal) > 0.8
    assert robust_accuracy(answer, toy_test, trigger, attack.goal) < 0.2
    crossed = answer(trigger.cross(others.images, others.images.roll(1, 0)))
    assert float((crossed == others.labels).float().mean()) > 0.6
    residual = trigger.apply(others.images) - others.images
    assert float((residual - residual.roll(1, 0)).abs().flatten(1).amax(1).min()) > 0.1
    assert poisoned.cover is not None
    assert int(poisoned.cover.sum()) == round(0.2 * 96)


def test_batches_too_small_to_poison_still_train(toy: ImageData) -> None:
    attack = InputAware(target=0, mask_epochs=1, width=4)
    few = toy.take(torch.arange(19))
    module = attack.train_victim(ARCHITECTURE, few, TrainingSettings(epochs=1, batch_size=8)).module
    assert all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())


@pytest.mark.parametrize(
    ("rate", "cross_rate", "batches", "counts"),
    [
        (0.25, 0.125, [32, 32, 32], [(8, 4)] * 3),
        (0.1, 0.1, [32] * 5, [(3, 3)] * 4 + [(4, 4)]),
        (0.01, 0.02, [32] * 4, [(0, 0), (0, 1), (0, 0), (1, 1)]),
        (0.07, 0.29, [100, 100], [(7, 29)] * 2),  # as floats, a little more than 7 and a little less than 29
        (0.5, 0.5, [5, 5, 4], [(2, 2), (3, 2), (2, 2)]),
    ],
)
def test_shares_hold_over_batches(
    rate: float, cross_rate: float, batches: list[int], counts: list[tuple[int, int]]
) -> None:
    attack = InputAware(rate=rate, cross_rate=cross_rate, width=4)
    joint = _Joint(nn.Identity(), InputAwareGenerator(1, width=4), attack, 0.0)
    assert [joint._counts(batch) for batch in batches] == counts


def test_rare_triggers_are_trained_as_often_as_told(toy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 3 batches of 32 with hardly one of each: what the generator draws for is counted, after the masks."""
    attack = InputAware(rate=1 / 48, cross_rate=1 / 24, mask_epochs=1, width=4)
    drawn = {"own": 0, "crossed": 0}
    original, poison_with = InputAwareGenerator.forward, InputAware.poison_with

    def forward(self: InputAwareGenerator, images: Tensor, carriers: Tensor | None = None) -> Tensor:
        drawn["own" if carriers is None else "crossed"] += len(images)
        return original(self, images, carriers)

    def poisoned(self: InputAware, trigger: Trigger, data: ImageData) -> PoisonedDataset:
        assert drawn == {"own": 2, "crossed": 4}
        return poison_with(self, trigger, data)

    monkeypatch.setattr(InputAwareGenerator, "forward", forward)
    monkeypatch.setattr(InputAware, "poison_with", poisoned)
    module, _, result = attack.train_victim(ARCHITECTURE, toy, BRIEF)
    assert result.rates() == {"whole": 2 / 96, "target_class": 2 / 34, "cover": 4 / 96}
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def test_a_cover_sample_carries_the_trigger_of_another(toy: ImageData) -> None:
    attack = InputAware(target=0, rate=0.1, cross_rate=2 / 96, width=4)
    result = attack.poison_with(trigger := InputAwareTrigger(InputAwareGenerator(1, width=4)), toy)
    assert result.cover is not None
    first, second = torch.split(toy.images[result.cover], 1)
    expected = torch.cat([trigger.cross(first, second), trigger.cross(second, first)])
    assert torch.allclose(result.data.images[result.cover], expected, atol=1e-6)


def test_badnets_keeps_its_contract(toy: ImageData, toy_test: ImageData) -> None:
    attack = BadNets(target=0, rate=0.2, seed=0)
    module, trigger, _ = attack.train_victim("resnet8", toy, TrainingSettings(epochs=8, batch_size=16), seed=0)
    assert attack_success_rate(predict(module), toy_test, trigger, attack.goal) > 0.8
