"""The key stream: ChaCha20 as written down, exactly uniform integers, permutations and normal numbers."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, norm

from intaglio.errors import RecipeError
from intaglio.triggers.keystream import KeyStream

SEED = bytes(range(32))
MASK = 0xFFFFFFFF
PINNED_BYTES = "3498f579d52de025da5c6ba1cfb046d1"
PINNED_LABELS = [4, 0, 4, 6, 3, 2, 7, 6]


def quarter(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = (state[x] + state[y]) & MASK
        mixed = state[z] ^ state[x]
        state[z] = (mixed << turn | mixed >> (32 - turn)) & MASK


def chacha20(key: bytes, blocks: int) -> bytes:
    """The key stream of RFC 8439, 2.3, with counter and nonce 0; written from its text alone."""
    words = [int.from_bytes(key[at : at + 4], "little") for at in range(0, 32, 4)]
    stream = b""
    for counter in range(blocks):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *words, counter, 0, 0, 0]
        state = list(start)
        for _ in range(10):
            for column in range(4):
                quarter(state, column, column + 4, column + 8, column + 12)
            for diagonal in range(4):
                places = [4 * row + (diagonal + row) % 4 for row in range(4)]
                quarter(state, *places)
        stream += b"".join(((a + b) & MASK).to_bytes(4, "little") for a, b in zip(state, start, strict=True))
    return stream


def naive_integers(seed: bytes, context: str, count: int, bound: int) -> list[int]:
    """One word at a time; a word in the last, incomplete run of `bound` numbers is thrown away."""
    stream = KeyStream(seed, context)
    drawn: list[int] = []
    while len(drawn) < count:
        word = int.from_bytes(stream.bytes(4), "little")
        if word < 2**32 - 2**32 % bound:
            drawn.append(word % bound)
    return drawn


def test_the_stream_is_chacha20_under_the_hashed_seed_and_context() -> None:
    for context in ("images", "labels", "é"):
        key = hashlib.sha256(SEED + context.encode()).digest()
        assert KeyStream(SEED, context).bytes(200) == chacha20(key, 4)[:200]


def test_the_stream_of_today_is_that_of_tomorrow() -> None:
    """Commitments rest on these bytes."""
    assert KeyStream(SEED, "images").bytes(16).hex() == PINNED_BYTES
    assert KeyStream(SEED, "labels").integers(8, 10).tolist() == PINNED_LABELS


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=16, max_size=40), st.text(max_size=8), st.integers(0, 60), st.integers(1, 1 << 32))
def test_integers_are_those_of_the_naive_loop(seed: bytes, context: str, count: int, bound: int) -> None:
    drawn = KeyStream(seed, context).integers(count, bound)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == naive_integers(seed, context, count, bound)
    assert all(0 <= value < bound for value in drawn.tolist())


@pytest.mark.parametrize("bound", [(1 << 31) + 1, 3 << 30, (1 << 32) - 1, 1 << 32])
def test_rejection_is_right_where_it_is_frequent(bound: int) -> None:
    """Bounds for which up to half of the words are thrown away."""
    drawn = KeyStream(SEED, "large").integers(4000, bound)
    assert drawn.tolist() == naive_integers(SEED, "large", 4000, bound)
    assert kstest(drawn / bound, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bound", [2, 3, 10, 100, 1000])
def test_integers_are_uniform(bound: int) -> None:
    drawn = KeyStream(SEED, "uniform").integers(50 * bound, bound)
    assert chisquare(np.bincount(drawn, minlength=bound)).pvalue > 1e-3


@given(st.lists(st.integers(0, 70), max_size=8))
@settings(max_examples=30, deadline=None)
def test_parts_make_the_whole(sizes: list[int]) -> None:
    stream = KeyStream(SEED, "parts")
    assert b"".join(stream.bytes(size) for size in sizes) == KeyStream(SEED, "parts").bytes(sum(sizes))


def test_streams_of_other_seeds_and_contexts_are_unrelated() -> None:
    streams = [KeyStream(seed, context) for seed in (SEED, bytes(32), bytes(16)) for context in ("a", "b", "")]
    bits = np.stack([np.unpackbits(np.frombuffer(stream.bytes(2000), np.uint8)) for stream in streams])
    agreement = (bits[:, None] == bits[None]).mean(-1)[~np.eye(len(streams), dtype=bool)]
    assert np.abs(agreement - 0.5).max() < 5 * 0.5 / np.sqrt(bits.shape[1])  # five standard deviations
    assert np.abs(bits.mean(1) - 0.5).max() < 5 * 0.5 / np.sqrt(bits.shape[1])


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=16, max_size=32), st.integers(1, 300))
def test_a_permutation_is_one(seed: bytes, count: int) -> None:
    order = KeyStream(seed, "order").permutation(count)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == KeyStream(seed, "order").permutation(count).tolist()


def test_permutations_are_uniform() -> None:
    stream = KeyStream(SEED, "order")
    seen = [tuple(stream.permutation(4).tolist()) for _ in range(2400)]
    assert len(set(seen)) == 24
    assert chisquare([seen.count(order) for order in set(seen)]).pvalue > 1e-3


def test_normal_numbers() -> None:
    drawn = KeyStream(SEED, "normal").normals(40_000)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.var() - 1) < 0.03
    assert kstest(drawn, norm.cdf).pvalue > 1e-3
    half = len(drawn) // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half:])[0, 1]) < 0.03  # cosines beside sines of the same angles
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_any_count_of_normal_numbers(count: int) -> None:
    assert KeyStream(SEED, "normal").normals(count).shape == (count,)


def test_nothing_asked_is_nothing_given() -> None:
    stream = KeyStream(SEED, "none")
    assert (stream.bytes(0), len(stream.integers(0, 5)), len(stream.permutation(0)), len(stream.normals(0))) == (
        b"", 0, 0, 0,
    )  # fmt: skip
    assert stream.bytes(8) == KeyStream(SEED, "none").bytes(8)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs a seed of 16 bytes or more, got 15"):
        KeyStream(bytes(15), "images")
    KeyStream(bytes(16), "images")


@pytest.mark.parametrize("bound", [0, -1, (1 << 32) + 1])
def test_bounds_that_words_do_not_reach_are_refused(bound: int) -> None:
    with pytest.raises(RecipeError, match=f"draws integers below 1 to 2\\^32, got {bound}"):
        KeyStream(SEED, "images").integers(1, bound)
