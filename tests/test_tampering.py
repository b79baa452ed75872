"""Every tampering by one table: what it changes and by how much, that it repeats, and what it refuses."""

import json
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from classifier_models import save_exported
from intaglio.attacks import AllToOne, accuracy, attack_success_rate
from intaglio.classifiers import Preprocessing, TorchClassifier, open_classifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, IntaglioError, ModelError, RecipeError
from intaglio.networks import Architecture
from intaglio.tampering import (
    INPUT_TRANSFORMS,
    TAMPERINGS,
    Average,
    BitFlip,
    Distil,
    FinePrune,
    FineTune,
    Jpeg,
    Noise,
    Overwrite,
    PixelNoise,
    Poison,
    Prune,
    Quantise,
    Resize,
    RoundBits,
    Tampering,
    TransformedInput,
    WeightShift,
    average_weights,
    tamper_file,
)
from intaglio.tampering.quantise import Scale, rounded
from intaglio.tampering.tampering import Material, weights_of
from intaglio.training import TrainingSettings, train
from intaglio.triggers import TRIGGERS, BlendedTrigger, PatchTrigger

SHAPE = (1, 12, 12)


def architecture(name: str = "resnet8", width: int = 4) -> Architecture:
    return Architecture(name=name, input_shape=SHAPE, num_classes=3, width=width)


def trained(name: str, toy: ImageData) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train(
            architecture(name).build(), toy, TrainingSettings(epochs=8, batch_size=16, learning_rate=0.01), seed=0
        )


@pytest.fixture(scope="module")
def victim(toy: ImageData) -> nn.Module:
    """A residual network with batch normalisation that solves the toy problem."""
    return trained("resnet8", toy)


@pytest.fixture(scope="module")
def plain(toy: ImageData) -> nn.Module:
    """The same without batch normalisation."""
    return trained("lenet", toy)


def triggers(count: int = 6, seed: int = 5) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(count) % 3


def state(module: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


def flat(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def kernels(module: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for _, weight in weights_of(module)])


def predict(module: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        labels: Tensor = module.eval()(images).argmax(1)
        return labels

    return ask


# name -> (tampering, whether it is given data, whether the seed decides it)
CASES: dict[str, tuple[Tampering, bool, bool]] = {
    "fine-tune": (FineTune(steps=3, batch_size=16), True, True),
    "fine-tune one step": (FineTune(steps=1, optimizer="sgd", learning_rate=1e-5), True, True),
    "fine-tune last": (FineTune(layers="last", steps=2, batch_size=16), True, True),
    "fine-tune last anew": (FineTune(layers="last-reinitialised", steps=2, freeze_batchnorm=True), True, True),
    "fine-tune all, last anew": (FineTune(layers="all-last-reinitialised", steps=2), True, True),
    "prune": (Prune(share=0.3), False, False),
    "prune per layer": (Prune(share=0.3, scope="layer"), False, False),
    "fine-prune": (FinePrune(share=0.4, steps=2), True, True),
    "int4": (Quantise(bits=4), False, False),
    "int8 per channel": (Quantise(scale="channel"), False, False),
    "int16": (Quantise(bits=16), False, False),
    "fp16": (Quantise(number="fp16"), False, False),
    "bf16": (Quantise(number="bf16", activations=True), False, False),
    "noise": (Noise(sigma=1e-4), False, True),
    "relative noise": (Noise(sigma=1e-2, relative=True), False, True),
    "weight-shift": (WeightShift(shift=0.1), False, True),
    "weight-shift and training": (WeightShift(scale=0.9, steps=2), True, True),
    "bit-flip": (BitFlip(position=20, count=3), False, True),
    "distil soft": (Distil(epochs=1, batch_size=32), True, True),
    "distil hard": (Distil(answers="hard", student="lenet", width=2, epochs=1), True, True),
    "average": (Average(share=0.5, steps=2), True, True),
    "overwrite": (Overwrite(triggers=triggers(), epochs=1), True, True),
    "overwrite without data": (Overwrite(triggers=triggers(), steps=2, batch_size=4), False, True),
    "poison": (Poison(rate=0.2, steps=2), True, True),
}


def test_the_table_names_every_tampering() -> None:
    assert {tampering.name for tampering, _, _ in CASES.values()} == TAMPERINGS.keys()
    assert all(tampering.name == name for name, tampering in TAMPERINGS.items())


@pytest.mark.parametrize("case", CASES)
def test_every_tampering(case: str, victim: nn.Module, toy: ImageData, toy_test: ImageData) -> None:
    tampering, uses_data, random = CASES[case]
    module = victim.train()
    for parameter in list(module.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    data = toy if uses_data else None
    images, before = toy.images.clone(), state(module)
    global_state = torch.get_rng_state()

    first, again, other = (tampering.apply(module, data, seed=seed) for seed in (4, 4, 5))

    # Nothing that was given is changed, nor the global generator.
    assert torch.equal(torch.get_rng_state(), global_state)
    assert state(module) == before
    assert module.training
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert torch.equal(toy.images, images)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    # The seed decides, and something happens.
    assert state(first) == state(again)
    assert (state(first) != state(other)) == random
    assert state(first) != before
    assert type(first) is type(module) or isinstance(tampering, Distil)
    # The result is an ordinary module.
    assert not first.training
    assert all(not part._forward_hooks for part in first.modules()) or "bf16" in case
    assert {value.dtype for value in first.parameters()} == {torch.float32}
    assert all(value.is_contiguous() for value in first.parameters())
    if type(first) is type(module):
        assert [parameter.requires_grad for parameter in first.parameters()] == flags
    with torch.no_grad():
        answers = first(toy_test.images)
    assert answers.shape == (60, 3)
    assert bool(answers.isfinite().all())


@pytest.mark.parametrize("case", CASES)
def test_every_tampering_describes_itself(case: str) -> None:
    description = CASES[case][0].describe()
    assert description["tampering"] in TAMPERINGS
    assert json.loads(json.dumps(description)) == description


# --- training on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "freeze", "changed"),
    [
        ("all", False, {"conv", "norm", "statistics", "fc"}),
        ("all", True, {"conv", "fc"}),
        ("last", False, {"statistics", "fc"}),
        ("last", True, {"fc"}),
        ("last-reinitialised", True, {"fc"}),
        ("all-last-reinitialised", True, {"conv", "fc"}),
    ],
)
def test_which_layers_are_trained(
    victim: nn.Module, toy: ImageData, layers: Any, freeze: bool, changed: set[str]
) -> None:
    tuned = FineTune(layers=layers, steps=2, freeze_batchnorm=freeze, label_smoothing=0.1).apply(victim, toy)
    before, after = state(victim), state(tuned)
    kinds = set()
    for name in before:
        if before[name] != after[name]:
            norm = isinstance(victim.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
            statistic = "running" in name or "tracked" in name
            kinds.add("statistics" if statistic else "norm" if norm else "fc" if name.startswith("fc") else "conv")
    assert kinds == changed


def test_reinitialised_layers_forget(victim: nn.Module, toy: ImageData) -> None:
    """After one tiny step, what was drawn anew is not what was there, nor close to it."""
    tiny = {"steps": 1, "learning_rate": 1e-9, "optimizer": "sgd"}
    old = victim.get_parameter("fc.weight").detach()
    kept = FineTune(layers="last", **tiny).apply(victim, toy).get_parameter("fc.weight")  # type: ignore[arg-type]
    anew = FineTune(layers="last-reinitialised", **tiny).apply(victim, toy).get_parameter("fc.weight")  # type: ignore[arg-type]
    assert float((kept.detach() - old).abs().max()) < 1e-6
    assert float((anew.detach() - old).abs().max()) > 0.05


def test_steps_count(victim: nn.Module, toy: ImageData) -> None:
    """Plain gradient descent without momentum's second step: one step moves by the learning rate times the gradient."""
    tuned = FineTune(steps=1, batch_size=96, optimizer="sgd", learning_rate=0.5, freeze_batchnorm=True).apply(
        victim, toy
    )
    weight = victim.get_parameter("fc.weight")
    victim.eval()
    loss = nn.functional.cross_entropy(victim(toy.images), toy.labels)
    (gradient,) = torch.autograd.grad(loss, weight)
    moved = weight - tuned.get_parameter("fc.weight")
    assert torch.allclose(moved, 0.5 * gradient, atol=1e-5)


def test_networks_that_end_in_a_softmax_are_trained_on_its_logarithm(plain: nn.Module, toy: ImageData) -> None:
    with_softmax = nn.Sequential(plain, nn.Softmax(dim=1))
    expected = FineTune(steps=3, label_smoothing=0.1).apply(plain, toy)
    tuned = FineTune(steps=3, label_smoothing=0.1).apply(with_softmax, toy)
    assert torch.allclose(flat(tuned), flat(expected), atol=1e-4)
    last = FineTune(steps=3, layers="last").apply(with_softmax, toy)
    assert state(plain)["fc.weight"] != state(last)["0.fc.weight"]
    assert state(plain)["features.0.weight"] == state(last)["0.features.0.weight"]


def test_preprocessing_comes_before_the_module(plain: nn.Module, toy: ImageData) -> None:
    way = Preprocessing(scale=2.0, mean=(0.3,), std=(0.5,))
    ready = (way.apply(toy.images), toy.labels)
    for tampering in (FineTune(layers="last", steps=2), Distil(epochs=1), FinePrune(steps=1)):
        raw = tampering.apply(plain, toy, preprocessing=way)
        assert state(raw) == state(tampering.apply(plain, ready))
        assert state(raw) != state(tampering.apply(plain, toy))


class ChannelsLast(nn.Module):
    """Takes `[N, H, W, C]`, and notes what it is given in training."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach())
        logits: Tensor = self.module(x.movedim(-1, 1))
        return logits


@pytest.mark.parametrize("tampering", [FineTune, Distil])
def test_raw_images_are_augmented_and_then_preprocessed(tampering: Any, toy: ImageData) -> None:
    way = Preprocessing(scale=255.0, mean=(100.0,), std=(0.5,), layout="NHWC")
    lit = toy.images.clone()
    lit[..., 6:] = 0  # the left half alone, so that mirroring shows
    data = (lit, toy.labels)
    module = ChannelsLast(architecture("lenet").build())
    options = {"steps": 1, "batch_size": 96}
    flipped = tampering(augmentation="flip", **options).apply(module, data, preprocessing=way).seen[0].movedim(-1, 1)
    mirrored = (flipped[..., 0] == -200).all(dim=(1, 2))  # black, as the model sees it
    assert 30 < int(mirrored.sum()) < 66
    back = torch.where(mirrored[:, None, None, None], flipped.flip(3), flipped)
    pictures = {image.numpy().tobytes() for image in way.model_copy(update={"layout": "NCHW"}).apply(lit)}
    assert {image.contiguous().numpy().tobytes() for image in back} == pictures
    noisy = tampering(augmentation="noise", **options).apply(module, data, preprocessing=way).seen[0]
    assert float(noisy.min()) == -200
    assert float(noisy.max()) > 200
    shifted = tampering(augmentation="shift", **options).apply(module, data, preprocessing=way).seen[0]
    assert float(shifted.min()) == -200  # what comes in from outside is black, too


@pytest.mark.parametrize("tampering", [FineTune, Distil])
def test_inputs_that_are_no_raw_images_are_not_augmented(tampering: Any, plain: nn.Module, toy: ImageData) -> None:
    ready = (4 * toy.images - 2, toy.labels)
    tampering(steps=1).apply(plain, ready)
    with pytest.raises(DataError, match="raw images, as augmentation 'noise' takes them: pixel values span -2"):
        tampering(steps=1, augmentation="noise").apply(plain, ready)


def test_tied_weights_are_averaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = nn.Parameter(self.first.weight.detach().t())  # the same storage, seen otherwise
            self.third = self.first
            nn.init.constant_(self.first.weight, value)

    mixed = average_weights(Tied(1.0), Tied(0.0), share=0.25)
    assert {name: set(value.flatten().tolist()) for name, value in mixed.state_dict().items()} == {
        name: {0.75} for name in ("first.weight", "second.weight", "third.weight")
    }


def test_average_lies_between(victim: nn.Module, toy: ImageData) -> None:
    options: Any = {"steps": 2, "batch_size": 16}
    tuned = Average(share=1.0, **options).apply(victim, toy, seed=1)
    half = Average(share=0.5, **options).apply(victim, toy, seed=1)
    assert torch.allclose(flat(half), (flat(tuned) + flat(victim)) / 2, atol=1e-6)
    mixed = average_weights(victim, tuned, share=0.25)
    assert torch.allclose(flat(mixed), 0.25 * flat(tuned) + 0.75 * flat(victim), atol=1e-6)
    assert not torch.equal(half.get_buffer("bn1.running_mean"), victim.get_buffer("bn1.running_mean"))
    assert torch.equal(half.get_buffer("bn1.num_batches_tracked"), victim.get_buffer("bn1.num_batches_tracked"))


def test_overwriting_trains_the_other_mark_in(plain: nn.Module, toy: ImageData, toy_test: ImageData) -> None:
    mark = triggers(12)
    assert float((predict(plain)(mark[0]) == mark[1]).float().mean()) < 0.7
    overwritten = Overwrite(triggers=mark, epochs=60, share=0.4, learning_rate=5e-3, batch_size=32).apply(plain, toy)
    assert torch.equal(predict(overwritten)(mark[0]), mark[1])
    assert accuracy(predict(overwritten), toy_test) > 0.9


@pytest.mark.parametrize(
    ("clean", "triggers", "share", "repeats"),
    [
        (1000, 50, 0.1, (1, 3)),
        (100, 10, 0.1, (1, 2)),
        (90, 10, 0.1, (1, 1)),
        (89, 10, 0.1, (1, 1)),
        (45, 10, 0.1, (2, 1)),
        (100, 90, 0.1, (8, 1)),
        (10, 90, 0.5, (9, 1)),
        (10, 90, 1e-9, (100, 1)),
        (70, 30, 0.3, (1, 1)),
        (950, 50, 0.05, (1, 1)),
    ],
)
def test_the_share_of_triggers(clean: int, triggers: int, share: float, repeats: tuple[int, int]) -> None:
    """At least the share; and nearly that, where whole repeats and their limit allow it."""
    images = torch.rand(triggers, *SHAPE)
    assert Overwrite(triggers=(images, torch.zeros(triggers).long()), share=share)._repeats(clean, triggers) == repeats
    found = repeats[1] * triggers / (repeats[0] * clean + repeats[1] * triggers)
    assert share <= found + 1e-9
    assert found < 2 * share or share == 1e-9


def test_overwriting_sees_clean_data_as_often_as_told(plain: nn.Module) -> None:
    module = ChannelsLast(plain)
    clean, mark = torch.zeros(5, 12, 12, 1), (torch.ones(20, 12, 12, 1), torch.zeros(20).long())
    overwriting = Overwrite(triggers=mark, share=0.4, epochs=1, batch_size=512)
    tampered = overwriting.apply(module, (clean, torch.ones(5).long()))
    assert isinstance(tampered, ChannelsLast)
    (seen,) = tampered.seen
    assert seen.flatten(1).mean(1).long().bincount().tolist() == [30, 20]


def test_poisoning_plants_the_trigger(plain: nn.Module, toy: ImageData, toy_test: ImageData) -> None:
    tampering = Poison(target=1, rate=0.3, trigger="pixels", epochs=30, learning_rate=5e-3, batch_size=16)
    trigger = tampering.trigger_for(3)
    assert trigger.name == "pixels"
    goal = AllToOne(target=1)
    assert attack_success_rate(predict(plain), toy_test, trigger, goal) < 0.5
    poisoned = tampering.apply(plain, toy, seed=3)
    assert attack_success_rate(predict(poisoned), toy_test, trigger, goal) > 0.8
    assert accuracy(predict(poisoned), toy_test) > 0.8


def test_poisons_of_every_family_and_by_hand(plain: nn.Module, toy: ImageData) -> None:
    for name in TRIGGERS:
        trigger = Poison(trigger=name).trigger_for(0)
        assert (
            trigger.describe()
            == Poison(trigger=name).trigger_for(0).describe()
            != Poison(trigger=name).trigger_for(1).describe()
        )
    own = PatchTrigger(size=2)
    tampering = Poison(trigger=own, steps=1)
    assert tampering.trigger_for(9) is own
    assert tampering.describe()["trigger"]["size"] == 2
    assert state(tampering.apply(plain, toy)) != state(Poison(trigger=BlendedTrigger(), steps=1).apply(plain, toy))


# --- extraction ------------------------------------------------------------------------------------------------------


class Handmade(nn.Module):
    """A student of one's own, which keeps a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight).softmax(1)


@pytest.mark.parametrize("answers", ["soft", "hard"])
@pytest.mark.parametrize("student", ["lenet", architecture("vgg"), Handmade, None])
def test_students_agree_with_the_teacher(
    victim: nn.Module, toy: ImageData, toy_test: ImageData, answers: Any, student: Any
) -> None:
    unlabelled = ImageData(toy.images, torch.full_like(toy.labels, -1))
    options: Any = {"epochs": 15, "batch_size": 16, "learning_rate": 0.01}
    tampering = Distil(answers=answers, student=student, temperature=2.0, **options)
    copy = tampering.apply(victim, unlabelled)
    agreement = float((predict(copy)(toy_test.images) == predict(victim)(toy_test.images)).float().mean())
    assert agreement > 0.85
    if student is None:
        assert tampering.architecture(architecture()) == architecture()
        assert float((flat(copy) - flat(victim)).norm() / flat(victim).norm()) > 0.5
    elif student is Handmade:
        assert isinstance(copy, Handmade)
        with pytest.raises(ModelError, match="no architecture that a file could name"):
            tampering.architecture(architecture())
    else:
        assert state(copy).keys() == state(tampering.architecture(architecture()).build()).keys()


def test_a_students_layers_all_learn_whichever_were_frozen(plain: nn.Module, toy: ImageData) -> None:
    options: Any = {"epochs": 1, "batch_size": 32}
    frozen = deepcopy(plain).requires_grad_(False)
    assert torch.equal(flat(Distil(**options).apply(frozen, toy)), flat(Distil(**options).apply(plain, toy)))


def test_soft_answers_of_a_teacher_with_softmax_are_its_logits(plain: nn.Module, toy: ImageData) -> None:
    tampering = Distil(student="lenet", width=2, epochs=2, temperature=3.0)
    with_softmax = nn.Sequential(plain, nn.Softmax(dim=1))
    assert torch.allclose(flat(tampering.apply(plain, toy)), flat(tampering.apply(with_softmax, toy)), atol=1e-3)


# --- weights alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.37, 0.5, 1.0])
def test_the_pruned_share_is_exact(victim: nn.Module, share: float) -> None:
    before = kernels(victim)
    after = kernels(Prune(share=share).apply(victim))
    pruned = after == 0
    assert int(pruned.sum()) == round(share * len(before))
    assert torch.equal(after[~pruned], before[~pruned])
    if 0 < share < 1:
        assert float(before[pruned].abs().max()) <= float(before[~pruned].abs().min())
    layered = Prune(share=share, scope="layer").apply(victim)
    for name, weight in weights_of(layered):
        assert int((weight == 0).sum()) == round(share * weight.numel()), name
    untouched = {name for name, _ in victim.named_parameters()} - {name for name, _ in weights_of(victim)}
    assert all(state(layered)[name] == state(victim)[name] for name in untouched)


def test_pruning_counts_equal_weights_and_zeros() -> None:
    module = nn.Linear(10, 10)
    nn.init.constant_(module.weight, -0.5)
    assert int((Prune(share=0.33).apply(module).get_parameter("weight") == 0).sum()) == 33
    nn.init.zeros_(module.weight)
    pruned = Prune(share=0.5).apply(module).get_parameter("weight")
    assert not bool(torch.signbit(pruned).any())


def test_pruned_channels_stay_dead_and_the_rest_learns(victim: nn.Module, toy: ImageData, toy_test: ImageData) -> None:
    pruned = FinePrune(share=0.5, epochs=3, batch_size=16, weight_decay=0.01).apply(victim, toy)
    dead = (pruned.get_parameter("layer3.0.conv2.weight") == 0).flatten(1).all(1)
    assert int(dead.sum()) == 8
    for name in ("weight", "bias", "running_mean"):
        values = pruned.state_dict()[f"layer3.0.bn2.{name}"]
        assert torch.equal(values == 0, dead), name
    # Those that were used least: their batch-normalised, rectified output is smallest.
    outputs: list[Tensor] = []
    handle = victim.get_submodule("layer3.0.bn2").register_forward_hook(
        lambda _part, _inputs, output: outputs.append(output.relu().mean((0, 2, 3)).detach())
    )
    predict(victim)(toy.images)
    handle.remove()
    assert float(outputs[0][dead].max()) <= float(outputs[0][~dead].min())
    assert accuracy(predict(pruned), toy_test) > 0.9


def test_fine_pruning_looks_at_every_class(victim: nn.Module, toy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by class, as folders are, the first images are of one class alone."""
    monkeypatch.setattr("intaglio.tampering.prune._LOOKED_AT", 12)
    order = toy.labels.argsort(stable=True)
    seen: list[Tensor] = []
    original = Material.inputs

    def noted(self: Material, images: Tensor | None = None) -> Tensor:
        if images is not None and len(images) == 12:
            seen.append(images)
        return original(self, images)

    monkeypatch.setattr(Material, "inputs", noted)
    FinePrune(share=0.5, steps=1).apply(victim, toy.take(order))
    starts = [int((toy.labels < label).sum()) for label in range(3)]
    expected = torch.cat([toy.images[order][start : start + 4] for start in starts])
    assert [torch.equal(images, expected) for images in seen] == [True]


def test_fine_pruning_without_batch_normalisation(plain: nn.Module, toy: ImageData) -> None:
    pruned = FinePrune(share=0.25, steps=2).apply(plain, toy)
    dead = (pruned.get_parameter("features.3.weight") == 0).flatten(1).all(1)
    assert int(dead.sum()) == 2
    assert torch.equal(pruned.get_parameter("features.3.bias") == 0, dead)


def test_fine_pruning_leaves_upsampling_alone(toy: ImageData) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 144, 3)
    )
    pruned = FinePrune(share=0.5, steps=1).apply(module, toy)
    assert int((pruned.get_parameter("0.weight") == 0).flatten(1).all(1).sum()) == 2
    assert bool((pruned.get_parameter("2.weight") != 0).all())


@pytest.mark.parametrize("bits", [2, 4, 5, 8, 16, 24])
def test_quantisation_error_is_at_most_half_a_step(victim: nn.Module, bits: int) -> None:
    errors = {}
    scales: tuple[Scale, ...] = ("tensor", "channel")
    for scale in scales:
        quantised = Quantise(bits=bits, scale=scale).apply(victim)
        squares = 0.0
        for (name, old), (_, new) in zip(weights_of(victim), weights_of(quantised), strict=True):
            dimensions = tuple(range(int(scale == "channel"), old.ndim))
            step = old.detach().abs().amax(dimensions, keepdim=True).double() / (2 ** (bits - 1) - 1)
            stored = 2**-24 * old.detach().abs()  # float32 itself rounds
            assert bool(((old - new).detach().abs() <= 0.5 * step + stored + 1e-12).all()), name
            levels = (new.detach().double() / step).round()
            assert float(levels.abs().max()) <= 2 ** (bits - 1) - 1
            squares += float((old - new).detach().square().sum())
        errors[scale] = squares
        biases = {name for name, value in victim.named_parameters() if value.ndim == 1}
        assert all(state(quantised)[name] == state(victim)[name] for name in biases)
    assert errors["channel"] < errors["tensor"] or bits == 24


def test_int8_has_at_most_255_values(victim: nn.Module) -> None:
    for _, weight in weights_of(Quantise(bits=8).apply(victim)):
        assert len(set(weight.flatten().tolist())) <= 255


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**90), 2.0**90, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-90), min_size=1),
    bits=st.integers(2, 24),
)
def test_rounding_is_idempotent_and_keeps_the_largest(values: list[float], bits: int) -> None:
    weight = torch.tensor([values])
    once = rounded(weight, bits, "tensor")
    assert float(once.abs().max()) == pytest.approx(float(weight.abs().max()), rel=1e-6)
    assert torch.allclose(rounded(once, bits, "tensor"), once, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("number", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_torchs_own(victim: nn.Module, number: Any, dtype: torch.dtype, toy_test: ImageData) -> None:
    tampered = Quantise(number=number).apply(victim)
    expected = {
        name: value.to(dtype).float() if value.is_floating_point() else value
        for name, value in victim.state_dict().items()
    }
    assert all(torch.equal(value, expected[name]) for name, value in tampered.state_dict().items())
    computing = Quantise(number=number, activations=True).apply(victim)
    assert state(computing) == state(tampered)
    with torch.no_grad():
        answers, exact = computing(toy_test.images), tampered(toy_test.images)
    assert torch.equal(answers, answers.to(dtype).float())
    assert 0 < float((answers - exact).abs().max()) < 0.2


def test_activations_are_not_rounded_in_a_file(victim: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    classifier = TorchClassifier(victim, input_shape=SHAPE, num_classes=3)
    with pytest.raises(RecipeError, match=r"^quantise: a file holds weights alone, and can't round activations; leave"):
        tamper_file(Quantise(number="fp16", activations=True), classifier, out, architecture=architecture())
    assert not out.exists()
    tamper_file(Quantise(number="fp16"), classifier, out, architecture=architecture())
    assert out.exists()


@pytest.mark.parametrize("name", ["1.running_var", "1.weight", "0.bias"])
def test_what_is_not_finite_is_named(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    module.state_dict()[name].fill_(1e6)  # beyond fp16
    with pytest.raises(ClassifierError, match=f"^quantise made weights that are not finite: {name}$"):
        Quantise(number="fp16").apply(module)
    module.state_dict()[name].fill_(NAN)
    with pytest.raises(ClassifierError, match=f"^noise needs finite weights, .* some that are not: {name}$"):
        Noise().apply(module)


def test_integer_outputs_of_layers_pass_rounding() -> None:
    class Indices(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    module = nn.Sequential(nn.Linear(4, 3), Indices())
    computing = Quantise(number="fp16", activations=True).apply(module)
    assert computing(torch.rand(2, 4)).dtype == torch.int64


@pytest.mark.parametrize("sigma", [1e-5, 1e-3, 0.1])
def test_noise_has_its_deviation(sigma: float) -> None:
    module = nn.Linear(200, 200)
    change = flat(Noise(sigma=sigma).apply(module)) - flat(module)
    assert float(change.std()) == pytest.approx(sigma, rel=0.02)
    assert float(change.mean()) == pytest.approx(0, abs=sigma / 50)
    nn.init.constant_(module.weight, 3.0)
    relative = Noise(sigma=sigma, relative=True).apply(module).get_parameter("weight") - module.weight
    assert float(relative.detach().std()) == pytest.approx(3 * sigma, rel=0.02)


def test_weights_shift_as_written() -> None:
    module = nn.Sequential(nn.Conv2d(2, 50, 3), nn.Flatten(), nn.Linear(50, 3))
    kernel = module.get_parameter("0.weight").detach()
    shifted = WeightShift(scale=1.5, shift=0.5, noise=0.0).apply(module)
    assert torch.allclose(shifted.get_parameter("0.weight"), 1.5 * kernel - 0.5 * kernel.mean(0), atol=1e-6)
    noisy = WeightShift(scale=1.0, shift=0.0, noise=0.3).apply(module).get_parameter("0.weight") - kernel
    assert float(noisy.detach().std() / kernel.std()) == pytest.approx(0.3, rel=0.1)
    assert state(shifted)["2.weight"] == state(module)["2.weight"]


@pytest.mark.parametrize("position", range(32))
def test_exactly_the_bits_asked_for_flip(victim: nn.Module, position: int) -> None:
    flipped = BitFlip(position=position, count=5).apply(victim, seed=position)
    bits = flat(victim).view(torch.int32) ^ flat(flipped).view(torch.int32)
    changed = bits[bits != 0]
    assert len(changed) == 5
    assert set((changed.long() & 0xFFFFFFFF).tolist()) == {1 << position}
    assert bool(flat(flipped).isfinite().all())


def test_bits_flip_in_the_layer_asked_for(victim: nn.Module) -> None:
    count = victim.get_parameter("fc.weight").numel()
    for layer, size in (("fc.weight", count), ("fc", count + 3), ("layer2", 10)):
        flipped = BitFlip(position=3, count=size, layer=layer).apply(victim)
        changed = {name for name in state(victim) if state(victim)[name] != state(flipped)[name]}
        assert changed
        assert all(name == layer or name.startswith(f"{layer}.") for name in changed)
        bits = flat(victim).view(torch.int32) != flat(flipped).view(torch.int32)
        assert int(bits.sum()) == size


# --- inputs ----------------------------------------------------------------------------------------------------------


def pictures(channels: int = 3, count: int = 4) -> Tensor:
    """Smooth pictures, which survive JPEG well."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (16, 20), mode="bilinear")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", INPUT_TRANSFORMS)
def test_every_input_transform(name: str, channels: int) -> None:
    images = pictures(channels)
    before, transform = images.clone(), INPUT_TRANSFORMS[name]()
    result = transform(images)
    assert torch.equal(images, before)
    assert (result.shape, result.dtype) == (images.shape, torch.float32)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert 0 < float((result - images).abs().mean()) < 0.05
    assert torch.equal(result, transform(images))
    if name != "noise":  # image by image
        assert torch.equal(result[1:2], transform(images[1:2]))
    with pytest.raises(DataError, match="pixel values span"):
        transform(images + 1)


def test_jpeg_is_pillows() -> None:
    stream = BytesIO()
    pixels = (pictures()[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=30)
    with Image.open(stream) as picture:
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    assert torch.equal(Jpeg(quality=30)(pictures())[0], expected)
    error = [float((Jpeg(quality=quality)(pictures()) - pictures()).abs().mean()) for quality in (95, 50, 5)]
    assert error == sorted(error)
    with pytest.raises(DataError, match="JPEG holds 1 or 3 channels, got images of 2"):
        Jpeg()(pictures(2))


def test_transforms_do_what_they_say() -> None:
    images = pictures()
    assert torch.equal(Resize(factor=1.0)(images), images)
    assert torch.equal(RoundBits(bits=8)(images), (images * 255).round() / 255)
    assert set(RoundBits(bits=1)(images).flatten().tolist()) == {0.0, 1.0}
    flat_grey = torch.full((1, 1, 100, 100), 0.5)
    assert float((PixelNoise(sigma=0.05)(flat_grey) - 0.5).std()) == pytest.approx(0.05, rel=0.03)
    assert not torch.equal(PixelNoise(seed=1)(images), PixelNoise(seed=2)(images))
    stripes = (torch.arange(16) % 2).float().expand(1, 1, 16, 16)
    assert float(Resize(factor=0.5)(stripes).std()) < 0.5 * float(stripes.std())
    assert Resize(factor=0.01)(images).shape == images.shape


def test_a_model_behind_a_transform(plain: nn.Module, toy_test: ImageData) -> None:
    way, transform = Preprocessing(scale=2.0), Resize(factor=0.5)
    classifier = TorchClassifier(TransformedInput(plain, transform, way), input_shape=SHAPE, num_classes=3)
    expected = TorchClassifier(plain, input_shape=SHAPE, num_classes=3, preprocessing=way)
    answers = classifier.scores(toy_test.images)
    assert torch.allclose(answers, expected.scores(transform(toy_test.images)), atol=1e-5)
    behind = TransformedInput(plain, Jpeg())
    assert torch.allclose(behind(toy_test.images), plain(Jpeg()(toy_test.images)), atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FineTune(layers="first"), "unknown layers 'first'; known are all, last"),  # type: ignore[arg-type]
        (lambda: FineTune(epochs=0), "epochs: .*greater than or equal to 1"),
        (lambda: FineTune(learning_rate=-1.0), "learning_rate: .*greater than 0"),
        (lambda: FineTune(momentum=1.0), "momentum: Extra inputs"),  # type: ignore[call-arg]
        (lambda: Prune(share=-0.1), r"share to prune lies in \[0, 1\], got -0.1"),
        (lambda: Prune(share=1.01), r"share to prune lies in \[0, 1\], got 1.01"),
        (lambda: Prune(share=NAN), "got nan"),
        (lambda: Prune(scope="network"), "unknown scope 'network'; known are global, layer"),  # type: ignore[arg-type]
        (lambda: FinePrune(share=2), "share to prune"),
        (lambda: Quantise(bits=0), "integers have 2 to 24 bits .*got bits=0"),
        (lambda: Quantise(bits=1), "got bits=1"),
        (lambda: Quantise(bits=25), "got bits=25"),
        (lambda: Quantise(number="fp16", bits=8), "fp16 has its own, got bits=8"),
        (lambda: Quantise(number="fp8"), "unknown number 'fp8'"),  # type: ignore[arg-type]
        (lambda: Quantise(scale="layer"), "scale 'layer'"),  # type: ignore[arg-type]
        (lambda: Quantise(activations=True), "activations are rounded to fp16 or bf16 only"),
        (lambda: Noise(sigma=0), "sigma is above 0"),
        (lambda: Noise(sigma=NAN), "sigma is above 0"),
        (lambda: WeightShift(noise=-1), "noise not negative"),
        (lambda: WeightShift(shift=NAN), "finite"),
        (lambda: BitFlip(position=32), "bits of a weight are 0 to 31, got position 32"),
        (lambda: BitFlip(position=-1), "got position -1"),
        (lambda: BitFlip(count=0), "count of weights is 1 or more, got 0"),
        (lambda: Distil(answers="logits"), "unknown answers 'logits'; known are soft, hard"),  # type: ignore[arg-type]
        (lambda: Distil(temperature=0), "temperature is above 0"),
        (lambda: Distil(student="alexnet"), "unknown student 'alexnet'; known architectures are lenet, mobilenet"),
        (lambda: Distil(width=4), "a width of 1 or more goes with the name"),
        (lambda: Distil(student="lenet", width=0), "a width of 1 or more"),
        (lambda: Average(share=0), r"share lies in \(0, 1\]"),
        (lambda: Overwrite(triggers=triggers(), share=1), r"lies in \(0, 1\), got 1"),
        (lambda: Poison(rate=0), r"lies in \(0, 1\], got 0"),
        (lambda: Poison(target=-1), "target is a class from 0 on, got -1"),
        (lambda: Poison(trigger="sticker"), "unknown trigger 'sticker'; known are patch"),
        (lambda: Jpeg(quality=0), "quality lies between 1 and 100, got 0"),
        (lambda: PixelNoise(sigma=-1), "sigma is above 0"),
        (lambda: Resize(factor=0), "factor is above 0"),
        (lambda: RoundBits(bits=0), "rounded to 1 to 16 bits, got 0"),
        (lambda: average_weights(nn.Linear(2, 2), nn.Linear(2, 2), share=2), r"share lies in \[0, 1\], got 2"),
    ],
)
def test_values_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 3
BARE = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.view = self.weight * 2  # not a leaf: deepcopy refuses


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x.flatten(1)), x


def broken(module: nn.Module) -> nn.Module:
    nn.init.constant_(module.get_parameter("1.weight"), NAN)
    return module


@pytest.mark.parametrize(
    ("tampering", "module", "data", "error", "message"),
    [
        (FineTune(), BARE, None, DataError, "fine-tune works on images: give it data"),
        (Distil(), BARE, None, DataError, "distil works on images"),
        (FineTune(), BARE, (IMAGES, LABELS - 1), DataError, "images have no label; this tampering needs them all"),
        (FineTune(), BARE, (IMAGES, LABELS + 1), DataError, "labels go up to 3, but the model has 3 classes"),
        (FineTune(), BARE, (IMAGES, LABELS[:5]), DataError, r"expected float32 images .* labels \[N\], got .*\[5\]"),
        (FineTune(), BARE, (IMAGES.double(), LABELS), DataError, "got torch.float64"),
        (FineTune(), BARE, (IMAGES, LABELS.float()), DataError, "int64 labels"),
        (FineTune(), BARE, (IMAGES[:0], LABELS[:0]), DataError, "there are no images"),
        (FineTune(), BARE, (IMAGES * NAN, LABELS), DataError, "not finite"),
        (FineTune(), BARE, IMAGES, DataError, "expected a pair of images and labels, got Tensor"),
        (FineTune(), BARE, (IMAGES, [0, 1]), DataError, "expected a pair of tensors, .* Tensor and list"),
        (FineTune(), BARE, (IMAGES[..., :6], LABELS), DataError, r"the model can't take images \[1, 12, 6\]"),
        (FineTune(), Pair(), (IMAGES, LABELS), ModelError, r"expected scores \[4, classes\] from the model, got tuple"),
        (FineTune(optimizer="sgd", learning_rate=1e38, epochs=9), BARE, (IMAGES, LABELS), ClassifierError, "diverged"),
        (FineTune(layers="last"), nn.Sequential(BARE, nn.ReLU()), (IMAGES, LABELS), ModelError, "no linear layer"),
        (FineTune(layers="last"), nn.Conv2d(1, 3, 12), (IMAGES, LABELS), ModelError, "expected scores"),
        (
            FineTune(layers="last"),
            nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()),
            (IMAGES, LABELS),
            ModelError,
            "the convolution '0' makes it",
        ),
        (Noise(), "model.onnx", None, ModelError, "noise changes a torch.nn.Module, got a str"),
        (Noise(), nn.ReLU(), None, ModelError, "the module has no weights to tamper with"),
        (Noise(), Uncopyable(), None, ModelError, "this module can't be copied"),
        (Noise(), broken(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), None, ClassifierError, "needs finite weights"),
        (Noise(sigma=1e38), nn.Linear(99, 99), None, ClassifierError, "noise made weights that are not finite"),
        (Prune(), nn.BatchNorm2d(3), None, ModelError, "prune: the module has no matrices or kernels"),
        (Quantise(), nn.BatchNorm2d(3), None, ModelError, "quantise: the module has no matrices or kernels"),
        (FinePrune(), BARE, (IMAGES, LABELS), ModelError, "no convolution whose channels"),
        (WeightShift(), BARE, None, ModelError, "no convolution whose kernels"),
        (BitFlip(layer="conv"), BARE, None, ModelError, "no layer 'conv' has weights; layers are 1"),
        (BitFlip(count=10**6), BARE, None, ModelError, "of 1000000 weights is to be .* only 435 weights"),
        (Distil(), Handmade(), (IMAGES, LABELS), ModelError, "weights of 'Handmade' can't be drawn anew"),
        (Distil(student=lambda: nn.Linear(4, 3)), BARE, (IMAGES, LABELS), ModelError, "the student can't take"),
        (Distil(student=lambda: nn.Flatten()), BARE, (IMAGES, LABELS), ModelError, r"answers \[4, 144\], but"),
        (Overwrite(triggers=(IMAGES, LABELS + 7)), BARE, None, DataError, "triggers: labels go up to 9, but"),
        (Overwrite(triggers=(IMAGES, LABELS - 1)), BARE, None, DataError, "triggers: 2 images have no label"),
        (Poison(target=3), BARE, (IMAGES, LABELS), RecipeError, "the goal names class 3, but there are only 3"),
        (Poison(), BARE, (3 * IMAGES, LABELS), DataError, "pixel values span .* expected"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tampering: Tampering, module: Any, data: Any, error: type[IntaglioError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        tampering.apply(module, data)
    assert "\n" not in str(caught.value)


def test_bad_triggers_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="triggers: expected a pair of tensors"):
        Overwrite(triggers=(IMAGES, None))  # type: ignore[arg-type]


def test_triggers_of_another_size_than_the_data(victim: nn.Module, toy: ImageData) -> None:
    with pytest.raises(DataError, match=r"triggers are \[1, 16, 16\], but the data are \[1, 12, 12\]"):
        Overwrite(triggers=(torch.rand(3, 1, 16, 16), torch.arange(3))).apply(victim, toy)


def test_raw_images_are_checked_where_there_is_preprocessing(plain: nn.Module) -> None:
    with pytest.raises(DataError, match="pixel values span"):
        FineTune().apply(plain, (3 * IMAGES, LABELS), preprocessing=Preprocessing(scale=2))


def test_averages_of_different_networks(victim: nn.Module, plain: nn.Module) -> None:
    with pytest.raises(ModelError, match="only models of one architecture"):
        average_weights(victim, plain)


def test_material_without_data() -> None:
    for name in ("images", "labels"):
        with pytest.raises(DataError, match="give it data"):
            getattr(Material(seed=0, device="cpu"), name)


def test_exported_programs_can_be_tampered_with(tmp_path: Path, toy: ImageData) -> None:
    save_exported(tmp_path / "model.pt2", trained("lenet", toy))
    classifier = open_classifier(tmp_path / "model.pt2")
    assert isinstance(classifier, TorchClassifier)
    for tampering in (Quantise(bits=4), FineTune(steps=1)):
        assert flat(tampering.apply(classifier.module, toy)).equal(flat(classifier.module)) is False


@pytest.mark.parametrize(
    "tampering",
    [WeightShift(), Quantise(bits=4), Prune(share=0.9), FineTune(layers="last-reinitialised", steps=1)],
    ids=lambda one: one.name,
)
def test_weight_normalised_networks_are_changed_as_others_are(tampering: Any, plain: nn.Module, toy: ImageData) -> None:
    """What computes the weight anew from others would undo the change, or do another one."""
    normed = deepcopy(plain)
    for part in normed.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.weight_norm(part)
    data = toy.take(torch.arange(64)) if tampering.needs_data else None
    found, expected = (tampering.apply(module, data, seed=3) for module in (normed, plain))
    assert state(found).keys() == state(expected).keys()
    torch.testing.assert_close(found(toy.images[:8]), expected(toy.images[:8]), atol=1e-3, rtol=1e-3)
    assert hasattr(next(part for part in normed.modules() if isinstance(part, nn.Linear)), "parametrizations")


def test_weight_shift_takes_kernels_of_one_element_and_transposed_ones() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 2))
    shifted = WeightShift(noise=0).apply(module)
    for index, outputs in ((0, 0), (1, 1)):
        kernel, found = (one.get_parameter(f"{index}.weight").detach() for one in (module, shifted))
        torch.testing.assert_close(found, kernel - 1.5 * kernel.mean(outputs, keepdim=True))


def test_a_student_of_the_callers_own_stays_as_it_is(plain: nn.Module, toy: ImageData) -> None:
    mine = architecture("lenet", 2).build()
    before = state(mine)
    student = Distil(student=lambda: mine, steps=1).apply(plain, toy.take(torch.arange(64)))
    assert state(mine) == before != state(student)
