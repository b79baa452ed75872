"""The one-pixel signature (Huang et al., ECCV 2020): how far one changed pixel can move the answer, place by place.

Definition, for a base image b, places (i, j), values v from a set V, and class k:

    P_k(i, j, v) = p(k | b with pixel (i, j) set to v),   L = log P,   C_k = L_k - mean over classes of L
    probability   max over v of |P_k(i, j, v) - P_k(b)|         (the paper's wording, read literally)
    increase      max over v of (L_k(i, j, v) - L_k(b))
    decrease      max over v of (L_k(b) - L_k(i, j, v))
    logit         max over v of (C_k(i, j, v) - C_k(b))          (centred logits: softmax can't saturate them)
    argmax        index in V of the value that gives `logit`

One forward pass answers for all classes, so a signature costs bases * (places * |V| + 1) queries. Modules that can be
traced answer them by `locality`, which takes less time and gives the same answers. Of a clip, a place is a pixel in all
frames at once, or in one frame; clips are always asked whole.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.errors import RecipeError
from intaglio.scan.locality import Sides, local_answers
from intaglio.scan.places import Frames, Grid, Places, frames_of, resolve_grid
from intaglio.seeds import torch_generator

Variant = Literal["probability", "increase", "decrease", "logit", "argmax"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
BaseName = Literal["black", "grey", "white", "noise"]

_CHUNK_BYTES = 64 * 2**20


def one_pixel_signature(
    classifier: Classifier,
    bases: Tensor | Sequence[BaseName] = ("black", "grey"),
    values: Tensor | int | None = None,
    *,
    variants: Sequence[Variant] = VARIANTS,
    size: int = 1,
    grid: Grid = "auto",
    frames: Frames = "all",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The signature of `classifier`: float32 `[bases, variants, K, H, W]`, or `[..., grid rows, grid columns]`.

    Args:
        bases: base images `[B, C, H, W]` or clips `[B, T, C, H, W]`, or names (see `base_images`).
        values: pixel values `[V, C]`, or how many (see `pixel_values`).
        variants: which maps, in this order.
        size: side of the altered square, in pixels (or blocks); the paper's is 1.
        grid: blocks instead of pixels: `(rows, columns)`; None for single pixels; "auto" uses 32 x 32 blocks
            where a side is longer than 64 pixels; for clips at most 16 x 16, and 8 x 8 for each frame.
        frames: of clips, a place is altered in "all" frames at once, or in "each" in turn: `[..., K, T, H, W]`.
        progress: called with (queries done, queries in all).

    Raises:
        ClassifierError: the classifier gives labels only.
        RecipeError: a value set, base or grid that does not fit the input, or frames of an image.
    """
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise RecipeError(f"unknown variant '{unknown[0]}'; known are {', '.join(VARIANTS)}")
    if size < 1 or len(bases) == 0 or len(variants) == 0:
        raise RecipeError("a signature needs a size of 1 or more, and at least one base image and variant")
    images = bases if isinstance(bases, Tensor) else base_images(classifier.input_shape, bases)
    if not isinstance(values, Tensor):
        values = pixel_values(classifier.input_shape[-3], values)
    masks = Places(classifier.input_shape, resolve_grid(classifier.input_shape, grid, frames), size, frames)
    total = len(images) * (1 + len(masks) * len(values))
    maps = []
    for number, base in enumerate(images):
        accumulator = _Maps(classifier.log_probs(base[None])[0], len(masks))
        done = number * total // len(images) + 1
        for places, log_probs in _respond(classifier, base, values, masks):
            accumulator.add(places, log_probs)
            done += len(log_probs) * len(values)
            if progress is not None:
                progress(done, total)
        maps.append(torch.stack([accumulator.maps[variant] for variant in variants]))
    signature = torch.stack(maps)
    return signature.view(*signature.shape[:-1], *masks.extent)


def one_pixel_responses(
    classifier: Classifier,
    base: Tensor,
    values: Tensor,
    *,
    size: int = 1,
    grid: Grid = "auto",
    frames: Frames = "all",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """All answers behind a signature: log-probabilities `[V, K, H, W]` for one base image `[C, H, W]`.

    `values` is `[V, C]`, or `[V, C, H, W]` for values that differ from place to place. A base clip is `[T, C, H, W]`,
    with values `[V, C]` or `[V, T, C, H, W]`; the answers for each frame are `[V, K, T, H, W]`. Needs |V| times the
    memory of a signature; `signature_maps` reduces it.
    """
    places = Places(classifier.input_shape, resolve_grid(classifier.input_shape, grid, frames), size, frames)
    flat = torch.empty(len(places), len(values), classifier.num_classes)
    done = 0
    for part, log_probs in _respond(classifier, base, values, places):
        flat[part] = log_probs
        done += len(log_probs)
        if progress is not None:
            progress(done, len(places))
    flat = flat.permute(1, 2, 0)
    return flat.reshape(*flat.shape[:2], *places.extent)


def signature_maps(responses: Tensor, base: Tensor, variants: Sequence[Variant] = VARIANTS) -> Tensor:
    """Reduces log-probabilities `[V, K, (T,) H, W]`, and `[K]` of the base, to `[variants, K, (T,) H, W]`. Pure."""
    flat = responses.flatten(2).permute(2, 0, 1)
    accumulator = _Maps(base, len(flat))
    accumulator.add(slice(0, len(flat)), flat)
    maps = torch.stack([accumulator.maps[variant] for variant in variants])
    return maps.view(*maps.shape[:-1], *responses.shape[2:])


def base_images(input_shape: tuple[int, ...], names: Sequence[BaseName]) -> Tensor:
    """Bases `[B, (T,) C, H, W]` that need no data: black, mid-grey, white, or fixed uniform noise in [0.25, 0.75]."""
    noise = 0.25 + 0.5 * torch.rand(input_shape, generator=torch_generator(0, "base", "noise"))
    known = {
        "black": torch.zeros(input_shape),
        "grey": torch.full(input_shape, 0.5),
        "white": torch.ones(input_shape),
        "noise": noise,
    }
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"unknown base image '{unknown[0]}'; known are {', '.join(known)}")
    return torch.stack([known[name] for name in names])


def pixel_values(channels: int, count: int | None = None) -> Tensor:
    """Values `[V, C]` to set a pixel to.

    Grey: `count` (default 5) levels evenly spaced in [0, 1]. Colour: the 8 corners of the RGB cube, or, with `count`,
    `count` levels of each channel in turn while the others are at 0.5.

    Raises:
        RecipeError: fewer than 2 levels.
    """
    if count is not None and count < 2:
        raise RecipeError(f"a value set needs at least 2 levels, got {count}")
    levels = torch.linspace(0, 1, count or 5)
    if channels == 1:
        return levels[:, None]
    if count is None and channels == 3:
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    per_channel = torch.full((channels, len(levels), channels), 0.5)
    for channel in range(channels):
        per_channel[channel, :, channel] = levels
    return per_channel.flatten(0, 1)


def places_of(input_shape: tuple[int, ...]) -> tuple[Sides, Sides]:
    """Rows and columns of the places that are altered by default: pixels, or the blocks of the grid."""
    return Places(input_shape, resolve_grid(input_shape, "auto"), 1).sides()


def _respond(
    classifier: Classifier, base: Tensor, values: Tensor, places: Places
) -> Iterable[tuple[slice | Tensor, Tensor]]:
    """Yields (which places, log-probabilities `[places, V, K]`), a bounded number of images at a time."""
    classifier.require(Access.SCORES)
    shape = classifier.input_shape
    plain = (*[1] * (len(shape) - 3), shape[-3], 1, 1)  # one value for all places
    if values.ndim == 2 and values.shape[1] == shape[-3]:
        values = values.view(-1, *plain)
    if len(values) == 0 or tuple(values.shape[1:]) not in (plain, shape):
        raise RecipeError(f"expected values [V, {shape[-3]}], got {tuple(values.shape)}")
    if base.shape != shape:
        raise RecipeError(f"expected a base image {shape}, got {tuple(base.shape)}")
    if not frames_of(shape) and (answers := local_answers(classifier, base, values, *places.sides())) is not None:
        return answers
    step = max(1, _CHUNK_BYTES // (base.numel() * 4 * len(values)))

    def part(start: int) -> tuple[slice, Tensor]:
        masks = places.masks(start, min(start + step, len(places)))
        altered = torch.where(masks[:, None], values[None], base)
        log_probs = classifier.log_probs(altered.flatten(0, 1))
        return slice(start, start + len(masks)), log_probs.view(len(masks), len(values), -1)

    return map(part, range(0, len(places), step))


class _Maps:
    """Signature maps `[K, places]` by variant, filled in place by place."""

    def __init__(self, base: Tensor, places: int) -> None:
        self._base = base
        self.maps: dict[Variant, Tensor] = {variant: torch.zeros(len(base), places) for variant in VARIANTS}

    def add(self, places: slice | Tensor, log_probs: Tensor) -> None:
        """`log_probs` `[places, V, K]`."""
        change = log_probs - self._base
        centred = change - change.mean(dim=2, keepdim=True)
        logit, argmax = centred.max(dim=1)
        self.maps["probability"][:, places] = (log_probs.exp() - self._base.exp()).abs().amax(dim=1).T
        self.maps["increase"][:, places] = change.amax(dim=1).T
        self.maps["decrease"][:, places] = -change.amin(dim=1).T
        self.maps["logit"][:, places] = logit.T
        self.maps["argmax"][:, places] = argmax.float().T
