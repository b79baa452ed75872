"""Every mode of every scheme: what may change and what must not, each loss as written, and networks of all sorts."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, IntaglioError, ModelError, RecipeError
from intaglio.mark import MODES, SCHEMES, AdversarialParametric, DeepFidelity, Host, Margin, Rehearsal, Scheme
from intaglio.mark import deep_fidelity as deep_fidelity_module
from intaglio.mark.fidelity import prototype_feature_loss, soft_prediction_loss, total_weight_loss
from intaglio.seeds import derive_seed, torch_generator
from intaglio.triggers.keyed import keyed_batch
from mark_models import CLASSES, DATA, SHAPE, TEST, Tiny, accuracy, host, tiny, weights

SEED = bytes(range(32))
TRIGGERS = ImageData(*keyed_batch("noise-chain", SEED, 40, SHAPE, CLASSES), name="triggers")
FIXED = {"fixll", "fixll-twl", "fixll-pfl", "fixll-spl", "scratch-fixll"}
FEW: dict[str, Any] = {"epochs": 2, "batch_size": 50, "triggers_per_batch": 10, "learning_rate": 0.003}
CASES = [(scheme, mode) for scheme in SCHEMES for mode in MODES]
Forward = Callable[["Odd", Tensor], Tensor]


def embedded(scheme: Scheme, module: nn.Module | None = None, triggers: ImageData = TRIGGERS, **more: Any) -> nn.Module:
    return scheme.embed(module or host(), DATA, triggers, **more)


def test_the_table_names_every_scheme() -> None:
    assert [*SCHEMES] == ["deep-fidelity", "adversarial-parametric", "margin", "rehearsal"]
    assert len(MODES) == 9
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert {*FEW, "mode"} <= set(inspect.signature(DeepFidelity).parameters)
        assert scheme(mode="fixll-pfl", **FEW).epochs == 2


@pytest.mark.parametrize(("scheme", "mode"), CASES)
def test_every_mode_of_every_scheme(scheme: str, mode: str) -> None:
    original = copy.deepcopy(host()).train()
    original.fc.bias.requires_grad_(False)
    before, state, steps = weights(original), torch.random.get_rng_state(), []
    method = SCHEMES[scheme](mode=mode, **FEW)  # type: ignore[arg-type]
    marked = embedded(method, original, seed=3, progress=lambda done, total: steps.append((done, total)))

    # the host, and the world
    assert weights(original) == before
    assert original.training
    assert [name for name, value in original.named_parameters() if not value.requires_grad] == ["fc.bias"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert steps == [(step, 8) for step in range(1, 9)]

    # the same again, and another
    assert weights(embedded(method, original, seed=3)) == weights(marked)
    assert weights(embedded(method, original, seed=4)) != weights(marked)

    # what changed
    after = weights(marked)
    changed = {name for name in after if after[name] != before[name]}
    head, body = {"fc.weight", "fc.bias"}, {"features.1.weight", "features.1.bias"}
    normalisation = {name for name in after if name.startswith("features.2")}
    expected = (set() if mode in FIXED else head) | (set() if mode == "ftll" else body)
    expected |= normalisation if mode.startswith("scratch") else set()
    assert changed == expected

    # what is handed over
    assert not marked.training
    assert not any(part.training for part in marked.modules())
    assert all(parameter.requires_grad for parameter in marked.parameters())


def test_full_marks() -> None:
    """FixLL+PFL learns every trigger, and moves the features a small part of what FTAL moves them."""
    options: dict[str, Any] = {"epochs": 60, "triggers_per_batch": 20, "learning_rate": 0.01, "pfl_weight": 60}
    found = {}
    for mode in ("fixll-pfl", "ftal"):
        marked = embedded(DeepFidelity(mode=mode, **options))
        assert accuracy(marked, TRIGGERS) == 1
        assert accuracy(marked, TEST) >= accuracy(host(), TEST) - 0.01
        with torch.no_grad():
            found[mode] = float(prototype_feature_loss(marked.features(TEST.images), host().features(TEST.images)))  # type: ignore[operator]
    assert found["fixll-pfl"] < found["ftal"] / 20


# --- losses ----------------------------------------------------------------------------------------------------------


def loss_of(monkeypatch: pytest.MonkeyPatch, scheme: DeepFidelity, seed: int = 0) -> tuple[Tiny, Callable[..., Tensor]]:
    """The module in training, moved away from its host, and the scheme's loss of it."""
    found: list[Any] = []

    def caught(module: Tiny, data: Any, settings: Any, *, loss: Any, **more: Any) -> None:
        found.extend((module, loss, data, settings))
        assert more["seed"] == derive_seed(seed, "mark", scheme.mode)

    monkeypatch.setattr(deep_fidelity_module, "train", caught)
    embedded(scheme, seed=seed)
    module, loss, (images, places), settings = found
    assert torch.equal(images, DATA.images)
    assert places.tolist() == list(range(len(DATA)))
    assert settings.freeze_batchnorm != scheme.mode.startswith("scratch")
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(1.1)
    return module.eval(), loss


def tempered(logits: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """t CE(z / t), by hand."""
    chosen = (logits / temperature).log_softmax(1).gather(1, labels[:, None])
    return -temperature * chosen.mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("mode", MODES)
def test_each_loss_is_the_one_written_down(mode: Any, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weighted: dict[str, float] = {"twl_weight": 0.02, "pfl_weight": 0.3, "spl_weight": 50.0}
    scheme = DeepFidelity(mode=mode, triggers_per_batch=6, temperature=temperature, **weighted)  # type: ignore[arg-type]
    module, loss = loss_of(monkeypatch, scheme, seed=5)
    places = torch.tensor([7, 3, 11])
    chosen = torch.randint(len(TRIGGERS), (6,), generator=torch_generator(5, "mark", "triggers"))
    images, labels = TRIGGERS.images[chosen], TRIGGERS.labels[chosen]
    clean = DATA.images[places]
    taught = tempered(module(images), labels, temperature)
    both = (3 * cross_entropy(module(clean), DATA.labels[places]) + 6 * taught) / 9
    twl = total_weight_loss(module.parameters(), host().parameters())
    variance = float(host().features(DATA.images).detach().var(dim=0).sum())
    expected: Callable[[], Tensor] = {
        "fixll-pfl": lambda: (
            taught + 0.3 / variance * prototype_feature_loss(module.features(clean), host().features(clean))
        ),
        "fixll-spl": lambda: taught + 50 * soft_prediction_loss(module(clean), host()(clean)),
        "ftal-twl": lambda: both + 0.02 * twl,
        "fixll-twl": lambda: both + 0.02 * twl,
    }.get(mode, lambda: both)
    assert loss(module, clean, places).item() == pytest.approx(expected().item(), rel=1e-4)


def terms(scheme: DeepFidelity) -> tuple[Host, Tiny, Tensor, Tensor, float]:
    """A host, a module to mark, triggers, and their plain loss at the temperature of the default."""
    frame = Host(host(), Preprocessing(), "fc")
    module = copy.deepcopy(host())
    images, labels = TRIGGERS.images[:8], TRIGGERS.labels[:8]
    return frame, module, images, labels, tempered(module(images), labels).item()


def test_the_defaults_are_those_that_were_measured() -> None:
    """docs/mark.md has figures of these; what is given wins over them."""
    plain, rehearsed = DeepFidelity(), Rehearsal()
    assert (plain.epochs, plain.triggers_per_batch, plain.temperature, plain.pfl_weight) == (12, 8, 2.0, 120.0)
    assert (rehearsed.epochs, rehearsed.triggers_per_batch, rehearsed.temperature) == (6, 16, 2.0)
    assert (Rehearsal(epochs=3, temperature=1.0).epochs, Rehearsal(temperature=1.0).temperature) == (3, 1.0)


def test_plain_deep_fidelity_adds_nothing() -> None:
    scheme = DeepFidelity()
    frame, module, images, labels, _ = terms(scheme)
    assert float(scheme.hardening(frame, module, DATA, 0)(images, labels)) == 0


@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_weights_are_moved_in_the_worst_direction_and_back(radius: float) -> None:
    """The loss at theta + delta, delta_l = e ||theta_l|| g_l / ||g_l||, by a loop over layers."""
    scheme = AdversarialParametric(strength=0.5, radius=radius)
    frame, module, images, labels, plain = terms(scheme)
    module.fc.requires_grad_(False)
    before = weights(module)
    found = scheme.hardening(frame, module, DATA, 0)(images, labels)
    assert weights(module) == before
    moved = copy.deepcopy(module)
    trained = [value for value in moved.parameters() if value.requires_grad]
    for value, slope in zip(trained, torch.autograd.grad(tempered(moved(images), labels), trained), strict=True):
        delta = radius * value.detach().norm() * slope / slope.norm()
        assert float(delta.norm()) == pytest.approx(radius * float(value.detach().norm()), rel=1e-4)
        value.data += delta
    assert found.item() == pytest.approx(0.5 * tempered(moved(images), labels).item(), rel=1e-4)
    assert found.item() > 0.5 * plain * 1.02
    torch.autograd.backward(found)
    assert float(module.features[1].weight.grad.abs().sum()) > 0  # type: ignore[union-attr,operator]
    assert module.fc.weight.grad is None


def test_marks_are_rehearsed_where_fine_tuning_leads() -> None:
    """The loss at theta + u d, with d by a plain loop of Adam over the same images, and u drawn for every batch."""
    scheme = Rehearsal(strength=0.5, every=2, steps=3, rate=0.01, reach=2.0)
    frame, module, images, labels, _ = terms(scheme)
    module.fc.requires_grad_(False)
    before = weights(module)
    loss = scheme.hardening(frame, module, DATA, 7)
    found = [loss(images, labels) for _ in range(3)]
    assert weights(module) == before
    assert not module.training

    draw = torch_generator(7, "mark", "rehearsal")
    for number, value in enumerate(found):
        if number % 2 == 0:
            tuned = copy.deepcopy(module).requires_grad_(True).train()
            optimizer = torch.optim.Adam(tuned.parameters(), 0.01)
            for _ in range(3):
                places = torch.randint(len(DATA), (32,), generator=draw)
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(tuned(DATA.images[places]), DATA.labels[places]))
                optimizer.step()
        far = 2.0 * float(torch.rand((), generator=draw))
        moved = copy.deepcopy(module)
        for mine, start, end in zip(
            moved.state_dict().values(), module.state_dict().values(), tuned.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.copy_(start + far * (end - start))
        assert value.item() == pytest.approx(0.5 * tempered(moved(images), labels).item(), rel=1e-4)
    torch.autograd.backward(found[-1])
    assert float(module.features[1].weight.grad.abs().sum()) > 0  # type: ignore[union-attr,operator]
    assert module.fc.weight.grad is None


@pytest.mark.parametrize("scheme", [AdversarialParametric(), Margin(), Rehearsal(rate=0.05)])
def test_hardened_losses_are_larger_than_plain_ones(scheme: DeepFidelity, monkeypatch: pytest.MonkeyPatch) -> None:
    places = torch.arange(20)
    module, plain = loss_of(monkeypatch, DeepFidelity())
    hardened_module, hardened = loss_of(monkeypatch, scheme)
    assert weights(module) == weights(hardened_module)
    with_term = hardened(hardened_module, DATA.images[places], places).item()
    assert with_term > 1.2 * plain(module, DATA.images[places], places).item() > 0


@pytest.mark.parametrize(("radius", "steps"), [(8 / 255, 3), (0.1, 1), (0.3, 5)])
def test_adversarial_points_stay_in_the_ball_and_are_worse(radius: float, steps: int) -> None:
    scheme = Margin(strength=2.0, radius=radius, steps=steps)
    frame, module, images, labels, plain = terms(scheme)
    asked: list[Tensor] = []
    module.register_forward_pre_hook(lambda _module, inputs: asked.append(inputs[0].detach().clone()))
    found = scheme.hardening(frame, module, DATA, 0)(images, labels)
    assert len(asked) == steps + 1
    assert torch.equal(asked[0], images)
    for points in asked:
        assert float((points - images).abs().max()) <= radius + 1e-6
        assert 0 <= float(points.min()) <= float(points.max()) <= 1
    assert float((asked[-1] - images).abs().max()) > 0.6 * radius
    assert found.item() == pytest.approx(2 * tempered(module(asked[-1]), labels).item(), rel=1e-5)
    assert found.item() / 2 > plain
    torch.autograd.backward(found)
    assert float(module.features[1].weight.grad.abs().sum()) > 0  # type: ignore[union-attr,operator]


# --- networks of all sorts -------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A body, a head, a layer that nothing comes of, and a way to use them."""

    def __init__(self, way: Forward) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.body = nn.Linear(144, 16)
            self.spare = nn.Linear(16, CLASSES)
            self.head = nn.Linear(16, CLASSES)
        self.drop = nn.Dropout(0.3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, self.body(x.flatten(1)).relu())


WAYS: dict[str, Forward] = {
    "dropout before": lambda net, z: net.head(net.drop(z)),
    "dropout after": lambda net, z: net.drop(net.head(z)),
    "softmax": lambda net, z: net.head(z).softmax(1),
    "log-softmax": lambda net, z: net.head(z).log_softmax(1),
    "a spare layer": lambda net, z: net.head(z),
    "a spare layer that is called": lambda net, z: (net.head(z), net.spare(z))[0],
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_networks_of_all_sorts(way: str, scheme: str) -> None:
    original = Odd(WAYS[way])
    before = weights(original)
    method = SCHEMES[scheme](epochs=20, triggers_per_batch=20, learning_rate=0.01, pfl_weight=0.005)
    few = TRIGGERS.take(torch.arange(10))
    marked = embedded(method, original, few)
    assert weights(original) == before
    assert weights(marked)["head.weight"] == before["head.weight"]
    assert weights(marked)["spare.weight"] == before["spare.weight"]
    assert accuracy(marked, few) >= 0.8
    assert marked(TEST.images[:3]).shape == (3, CLASSES)


def test_a_softmax_at_the_end_changes_nothing() -> None:
    """Losses are those of the logits, so that both ways are marked alike."""
    for scheme in SCHEMES.values():
        plain, soft = (embedded(scheme(**FEW), Odd(WAYS[way])) for way in ("a spare layer", "softmax"))
        assert weights(plain) == weights(soft)


def test_the_hosts_preprocessing_is_kept() -> None:
    """2 x - 1 in front of the module, or as the module's own first step: the same mark."""

    class Within(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.inner((x - 0.5) / 0.5)
            return answer

    for scheme in SCHEMES.values():
        outside = embedded(scheme(**FEW), preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
        within = embedded(scheme(**FEW), Within(host()))
        for name, value in outside.state_dict().items():
            assert torch.allclose(value, within.state_dict()[f"inner.{name}"], atol=1e-4), name
        assert weights(outside) != weights(embedded(scheme(**FEW)))


def test_a_named_layer_is_the_one_found() -> None:
    assert weights(embedded(DeepFidelity(**FEW), layer="fc")) == weights(embedded(DeepFidelity(**FEW)))


def test_from_scratch_starts_anew() -> None:
    """The host's own weights leave no trace but in the head that is kept."""
    other = tiny(seed=9)
    other.fc.load_state_dict(host().fc.state_dict())
    for mode in ("scratch", "scratch-fixll"):
        one, two = (embedded(DeepFidelity(mode=mode, **FEW), module) for module in (host(), other))
        assert weights(one) == weights(two)


# --- what makes no sense ---------------------------------------------------------------------------------------------


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(144))
        self.fc = nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1) + self.token)
        return logits


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("deep-fidelity", {"mode": "fixll-xyz"}, "unknown mode 'fixll-xyz'; there are ftal, ftll, fixll, ftal-twl"),
        ("deep-fidelity", {"epochs": 0}, "epochs, batch size and triggers per batch are at least 1"),
        ("margin", {"batch_size": 0}, "are at least 1"),
        ("adversarial-parametric", {"triggers_per_batch": -1}, "are at least 1"),
        ("deep-fidelity", {"learning_rate": 0.0}, "a learning rate is above 0, got 0.0"),
        ("deep-fidelity", {"learning_rate": float("nan")}, "a learning rate is above 0, got nan"),
        ("deep-fidelity", {"temperature": 0}, "a temperature is above 0, got 0"),
        ("rehearsal", {"temperature": float("nan")}, "a temperature is above 0, got nan"),
        ("margin", {"learning_rate": float("inf")}, "a learning rate is above 0, got inf"),
        ("margin", {"radius": 0.0}, "a margin needs a radius above 0, at least 1 step"),
        ("margin", {"steps": 0}, "at least 1 step"),
        ("margin", {"strength": float("nan")}, "a strength of 0 or more"),
        ("adversarial-parametric", {"radius": -0.1}, "an adversarial perturbation needs a radius above 0"),
        ("adversarial-parametric", {"strength": -1.0}, "a strength of 0 or more"),
        ("rehearsal", {"every": 0}, "a rehearsal needs 1 step or more"),
        ("rehearsal", {"steps": 0}, "a rehearsal needs 1 step or more"),
        ("rehearsal", {"rate": 0.0}, "a rate and a reach above 0"),
        ("rehearsal", {"reach": float("nan")}, "a rate and a reach above 0"),
        ("rehearsal", {"strength": -1.0}, "a strength of 0 or more"),
    ],
)
def test_options_that_make_no_sense(scheme: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SCHEMES[scheme](**options)


def labelled(label: int) -> ImageData:
    return ImageData(DATA.images, torch.where(torch.arange(200) == 7, label, DATA.labels), name="mislabelled")


BROKEN = copy.deepcopy(host())
BROKEN.fc.bias.data[0] = float("nan")
SHAPELESS = ImageData(torch.rand(20, 1, 9, 9), torch.arange(20) % CLASSES)
SMALL_TRIGGERS = ImageData(torch.rand(4, 1, 9, 9), torch.arange(4))


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({}, {"module": nn.Sequential(host(), nn.ReLU())}, ModelError, "no linear layer's output is the network's"),
        ({}, {"module": nn.Sequential(nn.Conv2d(1, 10, 12), nn.Flatten())}, ModelError, "the convolution '0' makes it"),
        ({}, {"module": BROKEN}, ModelError, "answers to the example are not finite"),
        ({}, {"layer": "head"}, ModelError, "no layer 'head'; linear layers are features.1, fc"),
        ({}, {"layer": "features.2"}, ModelError, "layer 'features.2' is a BatchNorm1d, not a linear layer"),
        ({}, {"layer": "features.1"}, ModelError, r"'features.1' is not the final one: it gives \[2, 24\]"),
        ({}, {"data": SHAPELESS, "triggers": SMALL_TRIGGERS}, ModelError, r"can't answer inputs \[2, 1, 9, 9\]: mat1"),
        (
            {},
            {"data": SHAPELESS, "triggers": SMALL_TRIGGERS, "layer": "fc"},
            ModelError,
            r"can't answer inputs \[2, 1, 9, 9\]: mat1",
        ),
        ({}, {"data": SHAPELESS}, DataError, r"triggers are \[1, 12, 12\], but the data \[1, 9, 9\]"),
        ({}, {"data": labelled(10)}, DataError, r"mislabelled: labels span 0\.\.10, but the model has 10 classes"),
        ({}, {"data": labelled(-1)}, DataError, r"mislabelled: 1 images have no label; a mark needs them all"),
        (
            {},
            {"triggers": ImageData(TRIGGERS.images, TRIGGERS.labels + 5, name="triggers")},
            DataError,
            r"triggers: labels span 5\.\.14",
        ),
        ({"learning_rate": 1e30, "mode": "ftal"}, {}, ClassifierError, "training diverged: the loss is"),
        ({"mode": "fixll"}, {"module": nn.Sequential(nn.Flatten(), nn.Linear(144, 10))}, ModelError, "leaves nothing"),
        ({"mode": "scratch"}, {"module": BareParameter()}, ModelError, r"'' \(BareParameter\) can't be drawn anew"),
    ],
)  # fmt: skip
def test_what_cannot_be_marked(
    options: dict[str, Any], arguments: dict[str, Any], error: type[IntaglioError], message: str
) -> None:
    given: dict[str, Any] = {"module": host(), "data": DATA, "triggers": TRIGGERS} | arguments
    state = torch.random.get_rng_state()
    with pytest.raises(error, match=message) as caught:
        DeepFidelity(**FEW | options).embed(**given)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_answers_to_triggers_that_are_not_finite() -> None:
    """A network that is fine on its data, and breaks on noise."""

    class Brittle(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / (x.amax((1, 2, 3), keepdim=True) < 1).float())

    dark = ImageData(TEST.images * 0.5, TEST.labels)
    with pytest.raises(ClassifierError, match="the host's answers to the triggers are not finite"):
        DeepFidelity(**FEW).embed(Brittle(), dark, TRIGGERS)


def test_frozen_parameters_of_the_host_are_trained_too() -> None:
    frozen = copy.deepcopy(host()).requires_grad_(False)
    assert weights(embedded(DeepFidelity(**FEW), frozen)) == weights(embedded(DeepFidelity(**FEW)))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
