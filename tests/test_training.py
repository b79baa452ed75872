"""The training loop: it learns, it resumes byte for byte, it says when it diverges; augmentations by hand."""

import json
import math
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intaglio.attacks import accuracy
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, ModelError
from intaglio.networks import NETWORKS, Architecture
from intaglio.networks.layout import channels_last_is_safe, narrow_shortcuts
from intaglio.training import TrainingSettings, train
from intaglio.training.augmentation import NOISE, SHIFT, augment
from intaglio.training.loop import _fabric, _generators_kept
from intaglio.training.settings import Augmentation, OptimizerName

ONE = TrainingSettings(epochs=1, batch_size=48)
QUICK = TrainingSettings(epochs=3, batch_size=16, learning_rate=0.01)


def network(name: str = "lenet", seed: int = 0, width: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return Architecture(name=name, input_shape=(1, 12, 12), num_classes=3, width=width).build()


def weights(module: nn.Module) -> dict[str, bytes]:
    return {key: value.contiguous().numpy().tobytes() for key, value in module.state_dict().items()}


class Interrupted(Exception):  # noqa: N818 - not an error
    pass


class Progress:
    """Records the steps reported, and stops the run at one of them."""

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop
        self.steps: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self.stop:
            raise Interrupted


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("adamw", 0.01), ("sgd", 0.05)])
def test_it_learns(toy: ImageData, toy_test: ImageData, optimizer: OptimizerName, rate: float) -> None:
    settings = TrainingSettings(epochs=6, batch_size=8, optimizer=optimizer, learning_rate=rate)
    module = train(network(width=4), toy, settings, seed=0)
    assert not module.training
    assert accuracy(lambda images: module(images).argmax(1), toy_test) >= 0.95


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_something(toy: ImageData, name: str) -> None:
    losses: list[float] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(module(images), labels)
        losses.append(value.item())
        return value

    train(network(name), toy, TrainingSettings(epochs=4, batch_size=24, learning_rate=0.01), seed=0, loss=loss)
    assert len(losses) == 4 * 4
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_seed_decides_every_byte(toy: ImageData) -> None:
    settings = QUICK.model_copy(update={"augmentation": "noise", "epochs": 1})
    runs: list[dict[str, bytes]] = []
    for seed in (4, 4, 5):
        module = network()
        torch.manual_seed(len(runs))  # the state of the global generator has no say
        runs.append(weights(train(module, toy, settings, seed=seed)))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("augmentation", get_args(Augmentation))
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("stop", [3, 13])
def test_resumed_is_uninterrupted(
    tmp_path: Path, toy: ImageData, optimizer: OptimizerName, augmentation: Augmentation, stop: int
) -> None:
    settings = QUICK.model_copy(
        update={"optimizer": optimizer, "augmentation": augmentation, "weight_decay": 1e-3, "label_smoothing": 0.1}
    )
    expected = weights(train(network("mobilenet"), toy, settings, seed=2))
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        train(network("mobilenet"), toy, settings, seed=2, checkpoint=checkpoint, progress=Progress(stop))
    assert checkpoint.exists() == (stop > 6)  # 6 steps an epoch
    progress = Progress()
    resumed = train(network("mobilenet", seed=9), toy, settings, seed=2, checkpoint=checkpoint, progress=progress)
    if stop > 6:
        assert progress.steps == [(step, 18) for step in range(13, 19)]
        assert weights(resumed) == expected
    again = train(network("mobilenet"), toy, settings, seed=2, checkpoint=checkpoint, progress=(idle := Progress()))
    assert (idle.steps, weights(again)) == ([], weights(resumed))  # all epochs are done already


def test_a_pair_of_tensors_and_every_batch_is_seen_once_an_epoch(toy: ImageData) -> None:
    seen: list[Tensor] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images.clone())
        assert torch.equal(images[:, 0, 5, 5].gt(0.5), labels == 1)  # images and labels stay together
        logits: Tensor = module(images)
        return logits.square().mean()

    progress = Progress()
    settings = TrainingSettings(epochs=2, batch_size=40)
    train(network(), (toy.images, toy.labels), settings, seed=0, loss=loss, progress=progress)
    assert [len(batch) for batch in seen] == [40, 40, 16] * 2
    assert progress.steps == [(step, 6) for step in range(1, 7)]
    for epoch in (seen[:3], seen[3:]):
        assert torch.equal(torch.cat(epoch).sum((1, 2, 3)).sort().values, toy.images.sum((1, 2, 3)).sort().values)
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))  # each epoch has its own order


def test_a_lone_image_that_cannot_be_normalised_is_one_line(toy: ImageData) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3))
    with pytest.raises(ClassifierError, match="the last batch is a single image"):
        train(module, toy.take(torch.arange(33)), TrainingSettings(epochs=1, batch_size=32), seed=0)


def test_what_has_no_gradient_cannot_be_trained(toy: ImageData) -> None:
    class Ungraded(nn.Sequential):
        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return scores

    with pytest.raises(ClassifierError, match="nothing can be trained"):
        train(Ungraded(nn.Flatten(), nn.Linear(144, 3)), toy, ONE, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_is_an_error(toy: ImageData, value: float) -> None:
    module = network()
    calls: list[int] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        logits: Tensor = module(images)
        return logits.mean() * (value if len(calls) == 8 else 1.0)

    with pytest.raises(ClassifierError, match=f"training diverged: the loss is (-?{value}|nan) in epoch 2"):
        train(module, toy, QUICK, seed=0, loss=loss)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


class Rates:
    """Records the learning rate of every step, through the update that plain gradient descent makes of it."""

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.seen: list[float] = []

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(self.module.weight.item())
        logits: Tensor = module(images)
        return logits.mean()

    def run(self, **settings: Any) -> list[float]:
        nn.init.zeros_(self.module.weight)
        self.seen.clear()
        # Adam's first moments are those of a constant gradient: every step is the learning rate long.
        train(
            self.module,
            (torch.ones(10, 1), torch.zeros(10, dtype=torch.int64)),
            TrainingSettings(batch_size=4, learning_rate=0.5, **settings),
            seed=0,
            loss=self.loss,
        )
        places = [*self.seen, self.module.weight.item()]
        return [before - after for before, after in pairwise(places)]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"epochs": 2}, [0.25 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]),
        ({"epochs": 2, "schedule": "constant"}, [0.5] * 6),
        ({"steps": 1}, [0.5]),
        ({"steps": 3}, [0.5, 0.375, 0.125]),
        ({"steps": 4, "schedule": "constant"}, [0.5] * 4),
        ({"epochs": 9, "steps": 7}, [0.25 * (1 + math.cos(math.pi * step / 7)) for step in range(7)]),
    ],
)
def test_schedules_and_numbers_of_steps(settings: dict[str, Any], rates: list[float]) -> None:
    assert Rates().run(**settings) == pytest.approx(rates, abs=1e-6)


def test_steps_are_the_start_of_the_same_run(toy: ImageData) -> None:
    constant = QUICK.model_copy(update={"schedule": "constant"})
    whole = weights(train(network(), toy, constant.model_copy(update={"epochs": 2}), seed=3))
    steps = weights(train(network(), toy, constant.model_copy(update={"steps": 12}), seed=3))
    fewer = weights(train(network(), toy, constant.model_copy(update={"steps": 11}), seed=3))
    assert whole == steps
    assert whole != fewer


def test_a_run_of_steps_resumes(tmp_path: Path, toy: ImageData) -> None:
    settings = QUICK.model_copy(update={"steps": 8})  # of 6 an epoch
    expected = weights(train(network(), toy, settings, seed=3))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        train(network(), toy, settings, seed=3, checkpoint=path, progress=Progress(7))
    progress = Progress()
    assert weights(train(network(seed=9), toy, settings, seed=3, checkpoint=path, progress=progress)) == expected
    assert progress.steps == [(7, 8), (8, 8)]


@pytest.mark.parametrize(("name", "shape"), [("resnet8", (1, 12, 12)), ("r3d18", (2, 1, 16, 16))])
def test_channels_are_last_while_it_trains_and_weights_are_stored_as_ever(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Architecture(name=name, input_shape=shape, num_classes=3, width=2).build()
    kernels = [weight for weight in module.parameters() if weight.ndim == 1 + len(shape)]
    layout = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
    last: list[bool] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        last.extend(weight.is_contiguous(memory_format=layout) for weight in kernels)
        found: Tensor = module(images).square().sum()
        return found

    train(module, (torch.rand(4, *shape), torch.arange(4) % 3), TrainingSettings(steps=1), seed=0, loss=loss)
    assert len(last) == len(kernels) > 1
    assert all(last)
    assert all(weight.is_contiguous() for weight in module.parameters())


@pytest.mark.parametrize(("name", "shape"), [("resnet8", (3, 64, 64)), ("cnn_lstm", (6, 3, 48, 48))])
def test_narrow_shortcuts_on_larger_images_train(name: str, shape: tuple[int, ...]) -> None:
    """With channels last this corrupted the heap: the weights' gradient of a strided 1 x 1 convolution."""
    torch.manual_seed(0)
    module = Architecture(name=name, input_shape=shape, num_classes=3, width=8).build()
    assert not channels_last_is_safe(module, shape)
    assert channels_last_is_safe(module, (32, 32))
    data = (torch.rand(32, *shape), torch.arange(32) % 3)
    before = weights(module)
    trained = train(module, data, TrainingSettings(steps=3, batch_size=16), seed=0)
    assert weights(trained) != before


def test_narrow_shortcuts_have_their_channels_first_while_it_trains() -> None:
    """On two threads a batch of hundreds of 28 x 28 crashed or overwrote other values with channels last."""
    module = Architecture(name="resnet14", input_shape=(1, 28, 28), num_classes=3, width=8).build()
    shortcuts = [part for part in module.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
    assert narrow_shortcuts(module) == [part for part in shortcuts if part.in_channels < 16] != []
    seen: list[tuple[bool, bool]] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((inputs[0].is_contiguous(), layer.get_parameter("weight").is_contiguous()))

        hooks = [layer.register_forward_hook(look) for layer in narrow_shortcuts(module)]
        found: Tensor = module(images).square().sum()
        for hook in hooks:
            hook.remove()
        return found

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(module, (torch.rand(340, 1, 28, 28), torch.arange(340) % 3), TrainingSettings(steps=2, batch_size=340),
              seed=0, loss=loss)  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert seen == [(True, True)] * 2 * len(narrow_shortcuts(module))
    assert not any(layer._forward_pre_hooks for layer in narrow_shortcuts(module))


@pytest.mark.parametrize("name", ["vgg", "lenet"])
def test_other_networks_may_have_their_channels_last(name: str) -> None:
    module = Architecture(name=name, input_shape=(3, 64, 64), num_classes=3, width=8).build()
    assert channels_last_is_safe(module, (64, 64))


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_batchnorm_can_be_frozen(toy: ImageData, optimizer: OptimizerName) -> None:
    settings = QUICK.model_copy(
        update={"optimizer": optimizer, "weight_decay": 0.01, "epochs": 1, "freeze_batchnorm": True}
    )
    module = network("resnet8")
    module.get_parameter("bn1.bias").requires_grad_(False)
    norms = {name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = weights(module)
    seen: list[bool] = []

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(module.training and not any(module.get_submodule(name).training for name in norms))
        return nn.functional.cross_entropy(module(images), labels)

    after = weights(train(module, toy, settings, seed=0, loss=loss))
    changed = {name.rpartition(".")[0] for name in before if before[name] != after[name]}
    assert changed == {name.rpartition(".")[0] for name in before} - norms
    assert seen == [True] * 6
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    assert {name for name, flag in flags.items() if not flag} == {"bn1.bias"}


def test_gradients_come_back_after_an_error(toy: ImageData) -> None:
    module = network("resnet8")
    settings = QUICK.model_copy(update={"freeze_batchnorm": True})
    with pytest.raises(ClassifierError, match="diverged"):
        train(module, toy, settings, seed=0, loss=lambda module, images, labels: module(images).mean() * math.nan)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_after_an_error_nothing_is_left_in_training_mode(toy: ImageData) -> None:
    module = network("resnet8").eval()
    for freeze in (False, True):
        settings = QUICK.model_copy(update={"freeze_batchnorm": freeze})
        with pytest.raises(ClassifierError, match="diverged"):
            train(module, toy, settings, seed=0, loss=lambda module, images, labels: module(images).mean() * math.nan)
        assert not any(part.training for part in module.modules())


def test_the_global_generator_is_left_as_it_was(toy: ImageData) -> None:
    module = nn.Sequential(nn.Dropout(0.5), network())
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = weights(train(module, toy, ONE, seed=0))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(Interrupted):
        train(module, toy, ONE, seed=0, progress=Progress(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert weights(train(nn.Sequential(nn.Dropout(0.5), network()), toy, ONE, seed=0)) == first  # draws are the seed's


@pytest.mark.parametrize(("device", "forked"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_the_generator_of_the_gpu_in_use_is_left_too(
    device: str, forked: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[torch.device]] = []

    def fork_rng(devices: list[torch.device]) -> nullcontext[None]:
        asked.append(devices)
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with _generators_kept(torch.device(device)):
        assert asked == [forked]


def test_inputs_are_prepared_after_augmentation(toy: ImageData) -> None:
    """As if they had been ready, without augmentation; with it, what is altered are raw images."""
    ready = (10 - 20 * toy.images.repeat_interleave(2, 3), toy.labels)
    expected = weights(train(network("vgg"), ready, ONE, seed=3))
    prepared = train(network("vgg"), toy, ONE, seed=3, prepare=lambda raw: 10 - 20 * raw.repeat_interleave(2, 3))
    assert weights(prepared) == expected
    seen: list[Tensor] = []

    def prepare(raw: Tensor) -> Tensor:
        seen.append(raw)
        return 10 - 20 * raw

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert torch.equal(images, 10 - 20 * seen[-1])
        return nn.functional.cross_entropy(module(images), labels)

    noisy = TrainingSettings(steps=2, batch_size=48, augmentation="noise")
    train(network(), toy, noisy, seed=0, loss=loss, prepare=prepare)
    assert [len(raw) for raw in seen] == [1, 48, 48]  # of the first, the shape alone is looked at
    assert all(0 == raw.min() < raw.max() <= 1 and len(set(raw.flatten().tolist())) > 1000 for raw in seen[1:])


@pytest.mark.parametrize("side", [32, 48])
def test_the_layout_is_that_of_prepared_inputs(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images that are enlarged for the network are large: channels last would write beyond memory."""
    shapes: list[tuple[int, ...]] = []

    def noted(module: nn.Module, shape: tuple[int, ...]) -> bool:
        shapes.append(tuple(shape))
        return channels_last_is_safe(module, shape)

    monkeypatch.setattr("intaglio.training.loop.channels_last_is_safe", noted)
    module = Architecture(name="resnet8", input_shape=(1, side, side), num_classes=3, width=4).build()
    data = (torch.rand(4, 1, 16, 16), torch.arange(4) % 3)
    train(module, data, TrainingSettings(steps=1), seed=0, prepare=lambda raw: nn.functional.interpolate(raw, side))
    assert [shape[-2:] for shape in shapes] == [(side, side)]


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_parameters_without_gradient_stay(toy: ImageData, optimizer: OptimizerName) -> None:
    module = network()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    before = weights(module)
    settings = QUICK.model_copy(update={"optimizer": optimizer, "weight_decay": 0.01})
    after = weights(train(module, toy, settings, seed=0))
    assert {name for name in before if before[name] != after[name]} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_that_was_named_is_the_one_trained_on(device: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fabric(**options: Any) -> None:
        asked.append(options)

    monkeypatch.setattr("intaglio.training.loop.Fabric", fabric)
    _fabric(torch.device(device))
    assert asked == [{"accelerator": "cuda", "devices": [index], "precision": "32-true"}]


# --- checkpoints --------------------------------------------------------------------------------------------------


def finished(path: Path, toy: ImageData) -> Path:
    train(network(), toy, ONE, seed=0, checkpoint=path)
    return path


def rewrite(path: Path, **changes: Tensor | None) -> None:
    tensors = {**load_file(path), **changes}
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut short", "not a checkpoint of this training run"),
        ("text", "not a checkpoint of this training run"),
        ("empty", "not a checkpoint of this training run"),
        ("folder", "not a checkpoint of this training run"),
        ("no epoch", "not a checkpoint of this training run"),
        ("another tensor", "not a checkpoint .*of another network"),
        ("a tensor less", "not a checkpoint .*of another network"),
        ("another shape", "not a checkpoint .*of another network"),
        ("a stray name", "not a checkpoint of this training run"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, toy: ImageData, case: str, message: str) -> None:
    path = finished(tmp_path / "checkpoint", toy)
    content = path.read_bytes()
    if case == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif case == "text":
        path.write_text("hello")
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "folder":
        path.unlink()
        path.mkdir()
    elif case == "no epoch":
        save_file(load_file(path), path)
    elif case == "another tensor":
        rewrite(path, **{"module/more": torch.zeros(1)})
    elif case == "a tensor less":
        rewrite(path, **{"module/fc.bias": None})
    elif case == "another shape":
        rewrite(path, **{"module/fc.bias": torch.zeros(7)})
    else:
        rewrite(path, stray=torch.zeros(1))
    with pytest.raises(ModelError, match=message):
        train(network(), toy, ONE, seed=0, checkpoint=path)


def test_a_checkpoint_is_of_one_run(tmp_path: Path, toy: ImageData) -> None:
    path, module = finished(tmp_path / "checkpoint", toy), network()
    before, message = weights(module), "begun with other settings, seed, key, model or data; remove it"
    for settings, seed, identity in ((QUICK, 0, ""), (ONE, 1, ""), (ONE, 0, "another")):
        with pytest.raises(ModelError, match=message):
            train(module, toy, settings, seed=seed, identity=identity, checkpoint=path)
    assert weights(module) == before
    assert weights(train(module, toy, ONE, seed=0, checkpoint=path)) != before


def test_checkpoints_are_safetensors_and_hold_all_state(tmp_path: Path, toy: ImageData) -> None:
    path = finished(tmp_path / "checkpoint", toy)
    with safe_open(path, "pt") as stream:
        keys = set(stream.keys())
        assert json.loads(stream.metadata()["epoch"]) == 1
    names = list(network().state_dict())
    assert {key.removeprefix("module/") for key in keys if key.startswith("module/")} == set(names)
    expected = {
        f"optimizer/{index}/{part}" for index in range(len(names)) for part in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {key for key in keys if not key.startswith("module/")} == expected


# --- augmentation -------------------------------------------------------------------------------------------------

BATCH = torch.rand(64, 2, 5, 7, generator=torch.Generator().manual_seed(0))


def augmented(kind: Augmentation, seed: int = 1) -> Tensor:
    return augment(BATCH, kind, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", get_args(Augmentation))
def test_augmentations_keep_shape_bounds_and_input(kind: Augmentation) -> None:
    before = BATCH.clone()
    result = augmented(kind)
    assert torch.equal(BATCH, before)
    assert (result.shape, result.dtype) == (BATCH.shape, BATCH.dtype)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert torch.equal(result, augmented(kind))
    assert torch.equal(result, BATCH) == (kind == "none")
    assert kind == "none" or not torch.equal(result, augmented(kind, seed=2))


@pytest.mark.parametrize("kind", ["flip", "shift", "flip-shift"])
def test_all_frames_of_a_clip_are_altered_alike(kind: Augmentation) -> None:
    frame = torch.rand(16, 1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    altered = augment(frame.expand(-1, 3, -1, -1, -1), kind, torch.Generator().manual_seed(1))
    alone = augment(frame[:, 0], kind, torch.Generator().manual_seed(1))
    assert not torch.equal(alone, frame[:, 0])
    for index in range(3):
        assert torch.equal(altered[:, index], alone)


def test_flip_mirrors_about_half() -> None:
    flipped = [torch.equal(new, old.flip(2)) for new, old in zip(augmented("flip"), BATCH, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(augmented("flip"), BATCH, strict=True)]
    assert [not mirrored for mirrored in flipped] == kept
    assert 16 < sum(flipped) < 48


def test_shift_moves_each_image_as_a_whole() -> None:
    found = []
    for new, old in zip(augmented("shift"), BATCH, strict=True):
        padded = nn.functional.pad(old, (SHIFT,) * 4)
        moves = [
            (down, right)
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            if torch.equal(new, padded[:, down : down + 5, right : right + 7])
        ]
        assert len(moves) == 1
        found += moves
    assert {down for down, _ in found} == {right for _, right in found} == set(range(5))


def test_flip_shift_mirrors_about_half_and_moves_each() -> None:
    mirrored = 0
    for new, old in zip(augmented("flip-shift"), BATCH, strict=True):
        found = [
            flipped
            for flipped in (False, True)
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            if torch.equal(
                new,
                nn.functional.pad(old.flip(2) if flipped else old, (SHIFT,) * 4)[:, down : down + 5, right : right + 7],
            )
        ]
        assert len(found) == 1
        mirrored += found[0]
    assert 16 < mirrored < 48


def test_noise_has_its_deviation() -> None:
    grey = torch.full((50, 1, 20, 20), 0.5)
    change = augment(grey, "noise", torch.Generator().manual_seed(3)) - grey
    assert float(change.std()) == pytest.approx(NOISE, rel=0.02)
    assert float(change.mean()) == pytest.approx(0, abs=0.002)


def test_a_refused_checkpoint_changes_nothing(toy: ImageData, tmp_path: Path) -> None:
    settings, file = TrainingSettings(epochs=1, batch_size=64), tmp_path / "state"
    train(network("resnet8", width=4), toy, settings, seed=0, checkpoint=file)
    other = network("resnet14", width=4)
    before = weights(other)
    with pytest.raises(ModelError, match="of another network"):
        train(other, toy, settings, seed=0, checkpoint=file)
    assert weights(other) == before
    assert not other.training


def test_tied_weights_survive_a_checkpoint(toy: ImageData, tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        side = math.prod(toy.input_shape)
        module = nn.Sequential(nn.Flatten(), nn.Linear(side, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 10))
        module[4].weight = module[3].weight
        return module

    whole = train(tied(), toy, TrainingSettings(epochs=2, batch_size=64), seed=0, checkpoint=tmp_path / "state")
    again = train(tied(), toy, TrainingSettings(epochs=2, batch_size=64), seed=0, checkpoint=tmp_path / "state")
    assert (
        weights(again)
        == weights(whole)
        == weights(train(tied(), toy, TrainingSettings(epochs=2, batch_size=64), seed=0))
    )
    assert again.get_parameter("4.weight") is again.get_parameter("3.weight")


def test_training_leaves_no_gradients(toy: ImageData) -> None:
    module = train(network(), toy, TrainingSettings(steps=2, batch_size=8), seed=0)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_narrow_shortcuts_are_called_by_keyword_too(toy: ImageData) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut, self.head = nn.Conv2d(toy.input_shape[0], 4, 1, 2), nn.LazyLinear(10)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.shortcut(input=x).flatten(1))
            return answer

    module = Named()
    module(toy.images[:2])
    module.shortcut.weight.data = module.shortcut.weight.data.contiguous(memory_format=torch.channels_last)
    before = weights(module)
    assert weights(train(module, toy, TrainingSettings(steps=2, batch_size=8, augmentation="shift"), seed=0)) != before
