"""The one-pixel signature: equal to its definition, whatever the model, the base, the grid or the chunk."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intaglio.classifiers import Access, CallableClassifier, Classifier, TorchClassifier
from intaglio.errors import ClassifierError, DataError, IntaglioError, RecipeError
from intaglio.scan import one_pixel_responses, one_pixel_signature, signature, signature_maps
from intaglio.scan.places import Places, resolve_grid
from intaglio.scan.signature import VARIANTS, base_images, pixel_values
from naive_signature import naive_signature
from scan_models import counted, noise, random_model


def torch_model(shape: tuple[int, ...], classes: int) -> TorchClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Conv2d(shape[0], 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes))
        module(torch.zeros(1, *shape))
    return TorchClassifier(module, input_shape=shape, num_classes=classes)


CASES: dict[str, tuple[Classifier, Any, Any, dict[str, Any]]] = {
    "grey": (random_model((1, 4, 4), 3), ("black", "grey", "noise"), None, {}),
    "colour": (random_model((3, 3, 4), 4), ("black", "white"), None, {}),
    "colour, values by channel": (random_model((3, 3, 3), 4), ("noise",), 3, {}),
    "two channels": (random_model((2, 3, 3), 3), ("grey",), None, {}),
    "not square": (random_model((1, 3, 6), 3), ("grey", "white"), 4, {}),
    "two classes": (random_model((1, 4, 4), 2), ("black", "grey"), None, {}),
    "1,000 classes": (random_model((1, 2, 3), 1000), ("grey",), 3, {}),
    "softmax": (random_model((1, 4, 4), 3, outputs="probabilities"), ("black", "grey"), None, {}),
    "softmax, recognised": (random_model((1, 3, 4), 3, outputs="probabilities"), ("grey",), None, {}),
    "module": (torch_model((1, 4, 5), 3), ("black", "noise"), None, {}),
    "own bases and values": (random_model((1, 4, 4), 3), noise(2, (1, 4, 4)), torch.tensor([[0.1], [0.8]]), {}),
    "squares": (random_model((1, 5, 5), 3), ("grey",), None, {"size": 3}),
    "even squares": (random_model((1, 5, 4), 3), ("grey",), 2, {"size": 2}),
    "blocks": (random_model((1, 7, 5), 3), ("grey",), None, {"grid": (3, 2)}),
    "squares of blocks": (random_model((3, 7, 5), 3), ("noise",), None, {"grid": (3, 4), "size": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_signature_is_what_its_definition_says(case: str) -> None:
    classifier, bases, values, options = CASES[case]
    found = one_pixel_signature(classifier, bases, values, **options)
    images = bases if isinstance(bases, torch.Tensor) else base_images(classifier.input_shape, bases)
    levels = values if isinstance(values, torch.Tensor) else pixel_values(classifier.input_shape[0], values)
    expected = naive_signature(classifier, images, levels, options.get("size", 1), options.get("grid"))
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_signature_of_a_linear_model_is_known_by_hand() -> None:
    # logits: (2 a - b, 0, a / 2 + 3 c) for pixels a, b, c, d; a set to v changes them by v (7, -5, -2) / 6, centred
    weight = torch.tensor([[2.0, -1, 0, 0], [0, 0, 0, 0], [0.5, 0, 3, 0]])
    classifier = CallableClassifier(lambda x: x.flatten(1) @ weight.T, input_shape=(1, 2, 2), num_classes=3)
    maps = one_pixel_signature(classifier, ("black",), torch.tensor([[0.0], [0.5], [1.0]]))[0]
    by_variant = dict(zip(VARIANTS, maps.flatten(2), strict=True))
    expected = torch.tensor([[7 / 6, 0, 0, 0], [0, 1 / 3, 0, 0], [0, 1 / 3, 2, 0]])
    torch.testing.assert_close(by_variant["logit"], expected, atol=1e-6, rtol=0)
    assert by_variant["argmax"][:, :3].tolist() == [[2, 0, 0], [0, 2, 0], [0, 2, 2]]
    white = weight.softmax(0)
    torch.testing.assert_close(by_variant["increase"], (3 * white).log().clamp_min(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_variant["decrease"][:, 2], -(3 * white[:, 2]).log().clamp_max(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_variant["probability"], (white - 1 / 3).abs(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("budget", [1, 300, 1000])
def test_chunked_equals_whole(monkeypatch: pytest.MonkeyPatch, batch_size: int, budget: int) -> None:
    whole = one_pixel_signature(random_model((1, 5, 6), 4), ("black", "noise"))
    monkeypatch.setattr(signature, "_CHUNK_BYTES", budget)
    chunked = one_pixel_signature(random_model((1, 5, 6), 4, batch_size=batch_size), ("black", "noise"))
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "bases", "values", "options", "queries"),
    [
        ((1, 5, 4), ("black", "grey"), None, {}, 2 * (20 * 5 + 1)),
        ((3, 4, 4), ("grey",), None, {}, 16 * 8 + 1),
        ((3, 4, 4), ("grey",), 10, {}, 16 * 30 + 1),
        ((1, 6, 6), ("grey", "white", "noise"), 2, {"grid": (2, 3)}, 3 * (6 * 2 + 1)),
        ((1, 66, 40), ("grey",), 2, {}, 32 * 32 * 2 + 1),
    ],
)
def test_queries_and_progress_are_counted(
    shape: tuple[int, ...], bases: Any, values: int | None, options: dict[str, Any], queries: int
) -> None:
    classifier = counted(random_model(shape, 3))
    steps: list[tuple[int, int]] = []
    one_pixel_signature(classifier, bases, values, progress=lambda done, total: steps.append((done, total)), **options)
    assert classifier.queries == queries
    assert steps[-1] == (queries, queries)
    assert all(before[0] < after[0] and after[1] == queries for before, after in itertools.pairwise(steps))


def test_permuting_classes_permutes_the_signature() -> None:
    order = torch.tensor([2, 0, 3, 1])
    plain = one_pixel_signature(random_model((1, 5, 5), 4))
    permuted = one_pixel_signature(random_model((1, 5, 5), 4, order=order))
    torch.testing.assert_close(permuted, plain[:, :, order], atol=1e-5, rtol=1e-5)


def test_variants_come_in_the_order_asked_for() -> None:
    classifier = random_model((1, 4, 4), 3)
    everything = one_pixel_signature(classifier)
    some = one_pixel_signature(classifier, variants=("argmax", "increase"))
    assert torch.equal(some, everything[:, [VARIANTS.index("argmax"), VARIANTS.index("increase")]])


@pytest.mark.parametrize("options", [{}, {"size": 3}, {"grid": (2, 3)}])
def test_responses_reduce_to_the_signature(options: dict[str, Any]) -> None:
    classifier = random_model((3, 5, 4), 3)
    base, values = noise(1, (3, 5, 4))[0], pixel_values(3)
    responses = one_pixel_responses(classifier, base, values, **options)
    assert responses.shape == (8, 3, *options.get("grid", (5, 4)))
    torch.testing.assert_close(responses.exp().sum(1), torch.ones_like(responses[:, 0]))
    found = signature_maps(responses, classifier.log_probs(base[None])[0])
    expected = one_pixel_signature(classifier, base[None], values, **options)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_values_may_differ_from_place_to_place() -> None:
    classifier, base = random_model((1, 4, 5), 3), noise(1, (1, 4, 5))[0]
    steps = torch.stack([base + 0.1, base - 0.1]).clamp(0, 1)
    responses = one_pixel_responses(classifier, base, steps)
    image = base.clone()
    image[0, 2, 3] = steps[1, 0, 2, 3]
    torch.testing.assert_close(responses[1, :, 2, 3], classifier.log_probs(image[None])[0], atol=1e-5, rtol=0)


# --- places ----------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 20), width=st.integers(1, 20), data=st.data())
@settings(max_examples=40, deadline=None)
def test_blocks_cover_every_pixel_once(height: int, width: int, data: st.DataObject) -> None:
    grid = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    places = Places((1, height, width), grid, 1)
    masks = places.masks(0, len(places))
    assert masks.shape == (grid[0] * grid[1], 1, height, width)
    assert bool((masks.sum(0) == 1).all())
    sizes = masks.flatten(1).sum(1)
    assert int(sizes.min()) >= (height // grid[0]) * (width // grid[1])
    assert torch.equal(torch.cat([places.masks(0, 1), places.masks(1, len(places))]), masks)


def test_large_squares_are_cut_at_the_border() -> None:
    masks = Places((1, 5, 6), None, 3).masks(0, 30)
    sizes = masks.flatten(1).sum(1).view(5, 6)
    assert sizes.tolist() == [[4, 6, 6, 6, 6, 4], *[[6, 9, 9, 9, 9, 6]] * 3, [4, 6, 6, 6, 6, 4]]


@pytest.mark.parametrize(
    ("shape", "grid", "expected"),
    [
        ((1, 28, 28), "auto", None),
        ((3, 64, 64), "auto", None),
        ((3, 65, 64), "auto", (32, 32)),
        ((1, 100, 20), "auto", (32, 20)),
        ((3, 224, 224), None, None),
        ((3, 224, 224), (7, 224), (7, 224)),
    ],
)
def test_large_inputs_are_probed_in_blocks(shape: tuple[int, ...], grid: Any, expected: Any) -> None:
    assert resolve_grid(shape, grid) == expected


def test_value_sets() -> None:
    assert pixel_values(1).flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert sorted(pixel_values(3).tolist()) == [list(map(float, f"{corner:03b}")) for corner in range(8)]
    assert pixel_values(3, 2).tolist() == [
        [0, 0.5, 0.5], [1, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 1]
    ]  # fmt: skip
    assert pixel_values(2).shape == (10, 2)


def test_base_images() -> None:
    black, grey, white, fuzz = base_images((3, 4, 5), ("black", "grey", "white", "noise"))
    assert (black.unique().tolist(), grey.unique().tolist(), white.unique().tolist()) == ([0], [0.5], [1])
    assert float(fuzz.min()) >= 0.25
    assert float(fuzz.max()) <= 0.75
    assert torch.equal(fuzz, base_images((3, 4, 5), ("noise",))[0])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bases": ("black", "pink")}, RecipeError, "unknown base image 'pink'; known are black, grey"),
        ({"bases": ()}, RecipeError, "at least one base image"),
        ({"bases": torch.zeros(1, 1, 4, 5)}, DataError, r"expected float32 images \[N, 1, 4, 4\]"),
        ({"bases": torch.full((1, 1, 4, 4), 1.5)}, DataError, r"span 1\.5"),
        ({"values": 1}, RecipeError, "at least 2 levels, got 1"),
        ({"values": torch.zeros(2, 3)}, RecipeError, r"expected values \[V, 1\], got"),
        ({"values": torch.zeros(0, 1)}, RecipeError, r"expected values \[V, 1\], got"),
        ({"values": torch.zeros(2, 1, 4, 3)}, RecipeError, r"expected values \[V, 1\], got"),
        ({"values": torch.tensor([[0.0], [2.0]])}, DataError, r"span .*2"),
        ({"grid": (5, 2)}, RecipeError, "a grid of 5 x 2 blocks does not fit 4 x 4 pixels"),
        ({"grid": (0, 2)}, RecipeError, "does not fit"),
        ({"size": 0}, RecipeError, "size of 1 or more"),
        ({"variants": ("logit", "shape")}, RecipeError, "unknown variant 'shape'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[IntaglioError], message: str) -> None:
    with pytest.raises(error, match=message):
        one_pixel_signature(random_model((1, 4, 4), 3), **options)


def test_labels_alone_are_not_enough() -> None:
    labels = CallableClassifier(
        lambda x: x.flatten(1).argmax(1) % 3, input_shape=(1, 4, 4), num_classes=3, access=Access.LABELS
    )
    with pytest.raises(ClassifierError, match=r"needs SCORES access, .* offers LABELS"):
        one_pixel_signature(labels)


def test_frames_of_images_and_bases_of_other_sizes_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"only clips \(T, C, H, W\) have frames"):
        one_pixel_signature(random_model((1, 4, 4), 3), ("grey",), frames="each")
    with pytest.raises(RecipeError, match="expected a base image"):
        one_pixel_responses(random_model((1, 4, 4), 3), torch.zeros(1, 4, 5), pixel_values(1))
