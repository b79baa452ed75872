"""A lock's secrets: they follow from the key alone, carriers are orthogonal, and codes are balanced and far apart."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.errors import DataError
from intaglio.evidence.key import Key
from intaglio.lock.codes import (
    RIVALS,
    LockSecrets,
    checked_name,
    pixel_carriers,
    random_codes,
    spread,
    stream,
    wrong_secret,
)
from intaglio.triggers.drawing import Atoms, Mixing, cosines
from intaglio.triggers.sample_specific import SampleSpecificEncoder
from lock_models import OWNER, STRANGER

SHAPE = (1, 28, 28)


WAYS = {"mixing": Mixing(8), "atoms": Atoms(3, 4)}
EVERY = pytest.mark.parametrize("way", WAYS)


def secrets(key: Key = OWNER, generation: int = 0, way: str = "atoms") -> LockSecrets:
    return LockSecrets(key, SHAPE, WAYS[way], 96, generation=generation)


def test_the_stream_is_known() -> None:
    # AES-256-CTR of zeros under HKDF-SHA256(0^32, info "intaglio/1/x"): pinned, for old locks must stay readable.
    assert stream(STRANGER, "x", 16).hex() == "28d90a05019d5efc65b20f3e163547df"
    assert stream(STRANGER, "x", 8) == stream(STRANGER, "x", 16)[:8]


@EVERY
def test_same_key_same_secrets_and_nothing_else(way: str) -> None:
    first, again = secrets(way=way), secrets(way=way)
    assert torch.equal(first.mixing, again.mixing)
    assert torch.equal(first.carriers, again.carriers)
    assert torch.equal(first.code("alice"), again.code("alice"))
    for other in (secrets(STRANGER, way=way), secrets(generation=1, way=way)):
        for mine, theirs in ((first.mixing, other.mixing), (first.carriers, other.carriers)):
            overlap = float((mine * theirs).sum() / (mine.norm() * theirs.norm()))
            assert abs(overlap) < 0.35
        assert not torch.equal(first.code("alice"), other.code("alice"))


@pytest.mark.parametrize(
    ("size", "bits", "marks"),
    [((28, 28), 96, 36), ((32, 40), 48, 80), ((64, 64), 8, 32), ((7, 20), 8, 0), ((8, 24), 8, 0), ((7, 40), 8, 0)],
)
def test_marks_on_a_grid_of_jpeg(size: tuple[int, int], bits: int, marks: int) -> None:
    """Four a block of 8 x 8 at most, and four a bit, each in a place of its own, at low frequencies of whole blocks."""
    known = LockSecrets(OWNER, (1, *size), WAYS["mixing"], bits, marked=True)
    plain = LockSecrets(OWNER, (1, *size), WAYS["mixing"], bits)
    assert torch.equal(known.carriers[:, :1], plain.carriers)
    found = known.carriers[:, 1]
    places = found.nonzero()
    assert len(places) == marks
    sizes = found[found != 0] / bits**0.5
    assert torch.allclose(sizes, sizes.round(), atol=1e-3)
    compared = -(-size[0] // 8) * -(-size[1] // 8)
    if compared <= 32:  # of more, as many evenly spaced
        four = [[(int(number) - 1) // compared**place % compared for place in range(4)] for number in sizes.round()]
        assert all(len(set(blocks)) == 4 for blocks in four)
        assert not marks or len(set(map(tuple, four))) > 0.9 * marks
    assert len(set(map(tuple, places[:, 1:].tolist()))) == marks
    assert set((places[:, 1:] % 8).sum(dim=1).tolist()) <= {1, 2, 3}
    blocks = Counter(map(tuple, (places[:, 1:] // 8).tolist()))
    assert all(count <= 4 and 8 * row + 8 <= size[0] and 8 * column + 8 <= size[1]
               for (row, column), count in blocks.items())  # fmt: skip
    assert set(Counter(places[:, 0].tolist()).values()) <= {marks // bits, marks // bits + 1}
    planes = spread(torch.ones(1, bits), known.carriers)
    assert torch.allclose(planes[:, 1], found.sum(dim=0)[None] / bits**0.5)
    if marks:
        assert not torch.equal(
            found, LockSecrets(STRANGER, (1, *size), WAYS["mixing"], bits, marked=True).carriers[:, 1]
        )


def test_marks_of_a_bit_lie_in_different_blocks() -> None:
    """64 bits in 64 blocks once had all four marks of each in one block, which one black block takes away."""
    found = LockSecrets(OWNER, (1, 64, 64), WAYS["mixing"], 64, marked=True).carriers[:, 1]
    places = found.nonzero()
    blocks = [len({(row // 8, column // 8) for bit, row, column in places.tolist() if bit == one}) for one in range(64)]
    assert min(blocks) >= 2
    assert sum(blocks) > 3.8 * 64


@EVERY
def test_carriers_are_orthogonal(way: str) -> None:
    carriers = secrets(way=way).carriers
    assert carriers.shape == (96, *WAYS[way].plane_shape(28, 28))
    products = carriers.flatten(1) @ carriers.flatten(1).T / carriers[0].numel()
    assert torch.allclose(products, torch.eye(96), atol=1e-5)


def test_carriers_over_pixels_are_of_middle_frequencies() -> None:
    carriers = secrets(way="mixing").carriers[:, 0]
    assert torch.allclose(carriers.mean(dim=(1, 2)), torch.zeros(96), atol=1e-5)
    steps = (carriers[:, 1:] - carriers[:, :-1]).square().mean()
    assert float(steps) < 1.2  # white noise would have 2: the finest frequencies are left out


def test_codes_are_signs_that_differ_in_about_half_their_places() -> None:
    known = secrets()
    codes = torch.stack([known.code(f"user {index}") for index in range(64)])
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    distances = [int((a != b).sum()) for a, b in itertools.combinations(codes, 2)]
    assert min(distances) >= 22
    assert max(distances) <= 74


@pytest.mark.parametrize(
    ("way", "first", "last"),
    [
        ("mixing", [1.2904991, 1.9791461, 1.4801644, -0.1411780], [2.3534613, 3.2731369, 3.7048144]),
        ("atoms", [-1.7925688, 0.6193264, 0.0208848, 0.4333236], [0.5554771, -1.7360572, 0.2218300]),
    ],
)
def test_carriers_are_known(way: str, first: list[float], last: list[float]) -> None:
    """Pinned, for what old locks keyed must stay readable."""
    carriers = LockSecrets(OWNER, (1, 12, 20), WAYS[way], 16).carriers
    assert carriers.dtype == torch.float32
    assert carriers[3, 0, 1, 1:5].tolist() == pytest.approx(first, abs=1e-5)
    assert carriers[-1, -1, -1, -3:].tolist() == pytest.approx(last, abs=1e-5)


def test_carriers_over_pixels_are_cosine_transforms_of_what_is_in_the_band() -> None:
    carriers = pixel_carriers(OWNER, "x", 8, (1, 14, 22))[:, 0].double()
    spectrum = cosines(14) @ carriers @ cosines(22).T
    radius = (torch.arange(14)[:, None] / 14).square() + (torch.arange(22) / 22).square()
    outside = (radius.sqrt() <= 0.07) | (radius.sqrt() >= 0.5)
    assert float(spectrum[:, outside].abs().max()) < 1e-5
    assert torch.allclose(spectrum.square().sum(dim=(1, 2)), torch.full((8,), 14 * 22.0).double(), rtol=1e-5)


@EVERY
def test_carriers_wait_until_they_are_asked_for_once(way: str) -> None:
    known = secrets(way=way)
    assert torch.equal(known.code("alice"), secrets(way=way).code("alice"))
    assert "carriers" not in vars(known)
    with torch.inference_mode():
        carriers = known.carriers
    assert known.carriers is carriers
    assert not carriers.is_inference()


@EVERY
def test_spreading_and_correlating_gives_the_code_back(way: str) -> None:
    known = secrets(way=way)
    codes = random_codes(5, 96, torch.Generator().manual_seed(1))
    planes = spread(codes, known.carriers)
    assert planes.shape == (5, *WAYS[way].plane_shape(28, 28))
    assert torch.allclose(planes.square().mean(dim=(1, 2, 3)), torch.ones(5), atol=1e-4)
    found = planes.flatten(1) @ known.carriers.flatten(1).T / planes[0].numel() * 96**0.5
    assert torch.allclose(found, codes, atol=1e-4)


def test_a_users_secret_holds_the_shared_mixing_and_an_own_plane() -> None:
    known = secrets()
    alice, bob = known.secret("alice"), known.secret("bob")
    assert torch.equal(alice.mixing, bob.mixing)
    assert torch.equal(alice.plane, spread(known.code("alice")[None], known.carriers))
    assert not torch.equal(alice.plane, bob.plane)


def test_rivals_are_the_owners_secret_and_none_is_the_owner() -> None:
    known, again = secrets(), secrets()
    assert torch.equal(known.rivals, again.rivals)
    assert len(known.rivals) == RIVALS
    mixings = torch.cat([known.mixing, known.rivals]).flatten(1)
    assert torch.allclose(mixings.norm(dim=1), mixings[:1].norm().expand(RIVALS + 1))
    alike = torch.corrcoef(mixings) - torch.eye(RIVALS + 1)
    assert float(alike.abs().max()) < 0.7


@pytest.mark.parametrize(("stride", "size"), [(1, 3), (4, 8)])
def test_wrong_keys_keep_the_scale_but_not_the_secret(stride: int, size: int) -> None:
    encoder = SampleSpecificEncoder(1, width=4, features=4, stride=stride)
    planes = torch.rand(6, *encoder.drawing.plane_shape(12, 12))
    wrong = wrong_secret(encoder, planes, torch.Generator().manual_seed(3))
    assert wrong.mixing.shape == (6, 1, 4, size, size)
    own = encoder.draw_mixing(1, torch.Generator().manual_seed(4))
    assert torch.allclose(wrong.mixing.flatten(1).norm(dim=1), own.norm().expand(6))
    assert sorted(map(float, wrong.plane.flatten(1).sum(1))) == pytest.approx(
        sorted(map(float, planes.flatten(1).sum(1)))
    )


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=100))
def test_names_are_taken_as_they_are_or_refused(name: str) -> None:
    if name.isprintable() and name == name.strip():
        assert checked_name(name) == name
    else:
        with pytest.raises(DataError, match="a user's name"):
            checked_name(name)


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines", " ahead", "behind ", "\t"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="a user's name has 1 to 100 printable characters"):
        secrets().code(name)


@pytest.mark.parametrize(
    ("shape", "length", "way"),
    [((1, 12, 12), 96, "atoms"), ((1, 16, 16), 50, "atoms"), ((1, 12, 12), 96, "mixing"), ((1, 16, 16), 63, "mixing")],
)
def test_images_too_small_for_the_code(shape: tuple[int, int, int], length: int, way: str) -> None:
    with pytest.raises(DataError, match=f"too small to carry {length} bits"):
        LockSecrets(OWNER, shape, WAYS[way], length)


def test_what_marks_compare_is_each_users_own() -> None:
    """Places are the same for all users and lie in every key network: who knows them must not know the rest."""
    known = LockSecrets(OWNER, (1, 32, 40), WAYS["mixing"], 48, marked=True)
    alice, bob = known.marks("alice"), known.marks("bob")
    assert torch.equal(alice > 0, bob > 0)
    assert int((alice > 0).sum()) == 80
    assert float((alice == bob)[alice > 0].double().mean()) < 0.05
    for user, sizes in (("alice", alice), ("bob", bob), ("compared", known.marks("compared"))):
        plane = known.secret(user).plane
        assert torch.equal(plane[:, :1], spread(known.code(user)[None], known.carriers)[:, :1])
        assert torch.equal(plane[0, 1].abs(), sizes)
        bits, *places = known.carriers[:, 1].nonzero().T
        assert torch.equal(plane[0, 1][tuple(places)].sign(), known.code(user)[bits])
    nobodys = (known.carriers[:, 1].amax(dim=0) / 48**0.5).round()  # a user of any name compares other blocks
    for sizes in (alice, bob, known.marks("compared"), known.marks("marks")):
        assert float((sizes == nobodys)[alice > 0].double().mean()) < 0.05
