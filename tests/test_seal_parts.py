"""The parts of a seal: keyed draws, PNGs, the noise floor, ways of computing, shams, digests, the baselines' maths."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom
from torch import Tensor, nn

from intaglio.classifiers import CallableClassifier, OnnxClassifier, TorchClassifier, export_onnx
from intaglio.errors import ClassifierError, DataError, EvidenceError, RecipeError
from intaglio.evidence.key import Key
from intaglio.seal import Boundary, FineGrained, Request, Sensitive, Variance
from intaglio.seal.digest import images_digest, weights_digest
from intaglio.seal.draws import Draws, seal_identity
from intaglio.seal.executions import VARIANTS, Execution, executions
from intaglio.seal.noise import Measured, flip_bound, measure, noise_floor, sequence_p_value
from intaglio.seal.pixels import decode_png, encode_png
from intaglio.seal.sensitive import sensitivity_slope
from intaglio.seal.shams import alertness
from intaglio.seal.starts import starting_levels
from intaglio.seal.surface import probabilities
from intaglio.seal.variance import Generator, loss
from seal_models import KEY, SHAPE, classifier, linear

DRAWS = Draws(KEY, "ab" * 16)


def levels(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 3) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed)).float()


# --- keyed draws -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(2, 12))
def test_targets_are_balanced(count: int, classes: int) -> None:
    counts = Counter(DRAWS.targets(count, classes))
    assert sum(counts.values()) == count
    assert max(counts.values()) - (min(counts.values()) if len(counts) == classes else 0) <= 1


def test_draws_depend_on_key_seal_use_and_path() -> None:
    orders = {
        tuple(draws.shuffled(30, use, *path))
        for draws in (DRAWS, Draws(KEY, "cd" * 16), Draws(Key(b"o" * 32), "ab" * 16))
        for use in ("a", "b")
        for path in ((), (1,), (2,))
    }
    assert len(orders) == 18
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert DRAWS.shuffled(30, "a") == DRAWS.shuffled(30, "a")
    first, second = (torch.rand(4, generator=DRAWS.generator("a", index)) for index in (0, 1))
    assert not torch.equal(first, second)


def test_commitments_open_with_the_key_alone() -> None:
    commitment = DRAWS.commitment(3, 7)
    assert DRAWS.opened(3, commitment, 10) == 7
    assert DRAWS.opened(3, commitment, 7) is None
    assert DRAWS.opened(2, commitment, 10) is None
    assert Draws(Key(b"o" * 32), "ab" * 16).opened(3, commitment, 10) is None
    everything = {DRAWS.commitment(index, label) for index in range(20) for label in range(10)}
    assert len(everything) == 200


def test_the_same_facts_give_the_same_seal() -> None:
    facts: dict[str, object] = {"digest": "ab", "seed": 0}
    assert seal_identity(KEY, facts) == seal_identity(KEY, dict(reversed(facts.items())))
    others = {seal_identity(KEY, facts), seal_identity(KEY, facts | {"seed": 1}), seal_identity(Key(b"o" * 32), facts)}
    assert len(others) == 3
    assert all(len(bytes.fromhex(other)) == 16 for other in others)


# --- pictures --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 5, 7), (3, 4, 6), (2, 3, 4), (4, 3, 2), (3, 1, 4, 5), (2, 3, 4, 5), (2, 2, 3, 3)]),
    st.integers(0, 99),
)
def test_pngs_hold_exactly_the_grey_levels(shape: tuple[int, ...], seed: int) -> None:
    image = levels(1, shape, seed)[0]
    assert torch.equal(decode_png(encode_png(image), shape), image)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no base64", "damaged trigger"),
        ("AAAA", "damaged trigger"),
        (encode_png(torch.zeros(1, 4, 5)), r"trigger of \(1, 4, 5\), expected \(1, 5, 4\)"),
    ],
)
def test_damaged_pictures_are_refused(text: str, problem: str) -> None:
    with pytest.raises(EvidenceError, match=problem):
        decode_png(text, (1, 5, 4))


# --- the noise floor -------------------------------------------------------------------------------------------------


def test_the_flip_bound_follows_its_formula() -> None:
    # One execution of 100 deviations, the largest 2: S(2) <= 0.0466 (Clopper-Pearson, 1 in 100), S(6) <= 0.0466^3.
    deviations = torch.linspace(0, 2, 100, dtype=torch.float64).view(1, 100, 1)
    once = 0.0465595
    assert flip_bound(deviations, 2.0) == pytest.approx(1.0)
    assert flip_bound(deviations, 6.0) == pytest.approx(once**3, rel=1e-4)
    louder = torch.cat([deviations, 2 * deviations])
    assert flip_bound(louder, 6.0) == pytest.approx(once**1.5, rel=1e-4)
    assert flip_bound(louder, 3.0) == 1.0
    assert flip_bound(torch.zeros(2, 5, 1), 1.0) == 0.0


@pytest.mark.parametrize(("mismatches", "planned", "bound"), [(1, 128, 1e-6), (1, 4, 1e-3), (3, 50, 0.02)])
def test_p_values_are_binomial_tails_over_all_that_was_planned(mismatches: int, planned: int, bound: float) -> None:
    expected = 1 - sum(float(binom.pmf(count, planned, bound)) for count in range(mismatches))
    assert sequence_p_value(mismatches, planned, bound) == pytest.approx(expected, rel=1e-6, abs=1e-14)
    assert sequence_p_value(0, planned, bound) == 1.0


def test_what_is_measured() -> None:
    exact = linear()
    shift = torch.tensor([0.0, 1e-3, -2e-3], dtype=torch.float64)
    ways = [
        Execution("as opened", lambda images: exact.scores(images / 255).double()),
        Execution("float64", lambda images: exact.scores(images / 255).double()),
        Execution("other", lambda images: exact.scores(images / 255).double() + shift),
    ]
    images = levels(4, (1, 8, 8))
    tops = ways[0].scores(images).argmax(dim=1)
    measured = measure(ways, images, tops, 2)
    assert measured.margins.shape == (3, 4, 2)
    assert measured.names[measured.reference] == "float64"
    assert measured.deviations[:2].max() == 0
    assert float(measured.deviations[2].max()) == pytest.approx(3e-3)
    assert measured.eta == pytest.approx(3e-3)
    half = measured.take(torch.arange(2))
    floor = noise_floor(half, half, tops[:2], measured)
    assert (floor.answers, floor.changed, floor.deviations, floor.reference) == (6, 0, 24, "float64")
    assert floor.silence_bound == pytest.approx(1 - 0.05 ** (1 / 6))
    # What was found and dropped again counts too: the bound is no selection of those that nothing changed.
    changed = replace(measured, labels=measured.labels.clone())
    changed.labels[2, 3] += 1
    honest = noise_floor(half, changed, tops, measured)
    assert (honest.answers, honest.changed) == (12, 1)
    assert honest.silence_bound == pytest.approx(float(beta.ppf(0.95, 2, 11)))
    assert floor.smallest_margin <= floor.largest_margin
    assert measured.take(torch.tensor([1, 3])).labels.tolist() == measured.labels[:, [1, 3]].tolist()
    quiet = Measured(("as opened",), torch.ones(1, 2, 1, dtype=torch.float64), torch.zeros(1, 2), 8.0)
    assert quiet.eta == 8.0 * 2**-21


# --- ways of computing -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX export takes seconds."""
    monkeypatch.setattr("intaglio.seal.executions._exported", lambda classifier: None)


@pytest.mark.usefixtures("no_export")
def test_a_module_is_computed_in_many_ways_that_agree_but_for_noise() -> None:
    threads = torch.get_num_threads()
    module = classifier()
    images = levels(10)
    ways = executions(module, allow=["int8", "fp16"])
    names = [way.name for way in ways]
    assert names[:4] == ["as opened", "one by one", "batches of 7", "other decoding"]
    assert {"plain memory order", "other kernels", "float64", "int8 (1)", "int8 (2)", "fp16 (2)"} <= set(names)
    exact = next(way for way in ways if way.name == "float64").scores(images)
    assert exact.dtype == torch.float64
    for way in ways:
        apart = float((way.scores(images) - exact).abs().max())
        assert apart < (0.5 if way.name.startswith(("int8", "fp16")) else 1e-4)
        assert (apart > 1e-4) == way.name.startswith(("int8", "fp16"))
    assert torch.get_num_threads() == threads
    assert torch.backends.mkldnn.enabled


@pytest.mark.usefixtures("no_export")
def test_a_compiled_module_is_measured_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)  # compiling takes a minute
    assert "compiled" in [way.name for way in executions(classifier(), compiled=True)]
    assert "compiled" not in [way.name for way in executions(classifier())]


def test_onnx_runtime_is_among_them() -> None:
    module = classifier()
    ways = {way.name: way for way in executions(module)}
    images = levels(3)
    for name in ("ONNX Runtime", "ONNX Runtime, one by one"):
        assert torch.allclose(ways[name].scores(images), ways["float64"].scores(images), atol=1e-4)


@pytest.mark.usefixtures("no_export")
def test_ways_that_a_module_refuses_are_left_out() -> None:
    class Single(nn.Module):
        """Takes one image at a time, of one type."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            if len(images) != 1 or images.dtype != torch.float32:
                raise ValueError("one at a time")
            found: Tensor = self.inner(images)
            return found

    module = TorchClassifier(Single(classifier().module), input_shape=SHAPE, num_classes=3, fixed_batch=1)
    names = [way.name for way in executions(module)]
    assert "float64" not in names
    assert "other kernels" not in names
    assert "other kernels, one by one" in names


def test_files_and_functions_are_computed_in_few_ways(tmp_path: Path) -> None:
    module = classifier()
    asked = CallableClassifier(module.scores, input_shape=SHAPE, num_classes=3, outputs="logits")
    assert [way.name for way in executions(asked)] == ["as opened", "one by one", "batches of 7", "other decoding"]
    with pytest.raises(RecipeError, match="variants can be allowed for models whose weights are known, not"):
        executions(asked, allow=["fp16"])
    export_onnx(module.module, tmp_path / "m.onnx", input_shape=SHAPE)
    ways = {way.name: way for way in executions(OnnxClassifier(tmp_path / "m.onnx"))}
    assert "2 threads" in ways
    images = levels(3)
    assert torch.allclose(ways["2 threads"].scores(images), ways["as opened"].scores(images), atol=1e-5)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown variant 'int7' to allow; known are fp16, bf16, int16, int8, tf32"):
        executions(classifier(), allow=["int7"])
    assert set(VARIANTS) == {"fp16", "bf16", "int16", "int8", "tf32"}


# --- shams, digests, starts ------------------------------------------------------------------------------------------


def test_shams_tell_alert_triggers_from_dull_ones() -> None:
    module = classifier()
    before = weights_digest(module.module)
    images = levels(40)
    scores = module.scores(images / 255)
    tops = scores.argmax(dim=1)
    found = alertness(module, images, tops, seed=1)
    assert found.shape == (9, 40)
    gap = scores.topk(2, dim=1).values
    near = (gap[:, 0] - gap[:, 1]).argsort()
    assert float(found[:, near[:10]].abs().mean()) > 2 * float(found[:, near[-10:]].abs().mean())
    assert weights_digest(module.module) == before
    assert torch.equal(found, alertness(module, images, tops, seed=1))
    assert not torch.equal(found, alertness(module, images, tops, seed=2))


def test_a_module_without_weights_has_no_shams() -> None:
    class Rows(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 3))[:, :3]

    module = TorchClassifier(Rows(), input_shape=SHAPE, num_classes=3)
    assert alertness(module, levels(2), torch.tensor([0, 1]), seed=0).shape == (0, 2)


def test_digests_see_every_bit() -> None:
    module = classifier().module
    digest = weights_digest(module)
    assert digest == weights_digest(copy.deepcopy(module).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    other = copy.deepcopy(module)
    with torch.no_grad():
        first = next(other.parameters()).view(-1)
        first[0] = torch.nextafter(first[0], torch.tensor(9.0))
    assert weights_digest(other) != digest
    assert weights_digest(copy.deepcopy(module).double()) != digest


def test_digests_of_images_see_values_order_and_shape() -> None:
    images = torch.rand(3, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    brighter = images.clone()
    brighter[2, 0, 3, 5] = torch.nextafter(brighter[2, 0, 3, 5], torch.tensor(2.0))
    digests = {images_digest(other) for other in (images, brighter, images.flip(0), images.view(3, 1, 6, 4))}
    assert len(digests) == 4
    assert images_digest(images.to(memory_format=torch.channels_last)) == images_digest(images.clone())


def request(images: Tensor | None = None, pairs: int = 3) -> Request:
    return Request(DRAWS, pairs, [], images)


def test_starts_are_keyed() -> None:
    module = classifier()
    noise = starting_levels(module, request(), 5)
    assert noise.shape == (5, *SHAPE)
    assert torch.equal(noise, noise.round())
    assert torch.equal(noise[:2], starting_levels(module, request(), 2))
    coarse = starting_levels(module, request(), 4, coarse=True)
    assert torch.equal(coarse[::2], noise[:4:2])
    assert [len(image.unique()) for image in coarse[1::2]] == pytest.approx([16, 16], abs=3)
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    taken = starting_levels(module, request(images), 6)
    assert torch.equal(taken[:3], taken[3:])
    assert sorted(taken[:3].sum(dim=(1, 2, 3)).tolist()) == sorted((images * 255).round().sum(dim=(1, 2, 3)).tolist())
    with pytest.raises(DataError, match=r"images are \(1, 5, 5\), but the model takes \(1, 12, 12\)"):
        starting_levels(module, request(torch.rand(2, 1, 5, 5)), 2)


# --- the baselines' maths --------------------------------------------------------------------------------------------


def test_the_loss_of_the_paper() -> None:
    chances = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    wanted = torch.tensor([0, 1])
    expected = -(np.log(0.5) + np.log(0.1)) / 2 + 150 * np.var([0.5, 0.5, 0.9, 0.1], ddof=1)
    assert float(loss(chances, wanted, 150.0)) == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), 0.0))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 5, 9), (1, 4, 4)])
def test_the_generator_makes_images(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = Generator(shape, latent=16, channels=4)(torch.randn(2, 16)).detach()
    assert images.shape == (2, *shape)
    assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_sensitivity_climbs() -> None:
    module = classifier()
    image = levels(1)

    def size(at: Tensor) -> float:
        """||d p / d W||^2, exactly."""
        found = probabilities(module, at / 255, weights=True)[0]
        weights = list(module.module.parameters())
        return sum(
            float(slope.square().sum())
            for chance in found
            for slope in torch.autograd.grad(chance, weights, retain_graph=True)
        )

    before = size(image)
    signs = torch.Generator().manual_seed(0)
    for _ in range(15):
        image = (image + 2 * sensitivity_slope(module, image, signs).sign()).clamp(0, 255)
    assert size(image) > 1.2 * before


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Boundary(ways=1), "ways from 2"),
        (lambda: Boundary(low=5, high=5), "low < high"),
        (lambda: Boundary(surplus=0.5), "surplus from 1"),
        (lambda: Boundary(probes=2), "probes from 8"),
        (lambda: Variance(steps=0), "steps and channels from 1"),
        (lambda: FineGrained(step=0), "a step above 0"),
        (lambda: Sensitive(steps=0), "at least 1 step"),
    ],
)
def test_settings_that_make_no_sense(make: object, problem: str) -> None:
    assert callable(make)
    with pytest.raises(RecipeError, match=problem):
        make()


def test_settings_are_described() -> None:
    assert Boundary(ways=3).describe() == {
        "method": "boundary", "ways": 3, "low": 3.0, "high": 4.5, "surplus": 2.0, "rounds": 12, "probes": 64,
    }  # fmt: skip
    assert Variance().describe() == {"method": "variance", "weight": 150.0, "steps": 300, "channels": 64}


def test_fine_grained_steps_even_out_the_probabilities() -> None:
    module = classifier()
    start = starting_levels(module, request(), 6)
    found = FineGrained(steps=20).run(module, request())
    spread = [float(probabilities(module, images / 255).detach().var(dim=1).mean()) for images in (start, found.levels)]
    assert spread[1] < spread[0] / 2
    assert torch.equal(found.labels, module.predict(found.levels / 255))
    asked = CallableClassifier(module.scores, input_shape=SHAPE, num_classes=3, outputs="logits")
    with pytest.raises(ClassifierError, match="ftg needs gradients"):
        FineGrained().run(asked, request())
