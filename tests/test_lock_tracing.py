"""Tracing many images: who is named for all of them, who is hidden behind that, and what a name means."""

from pathlib import Path

import pytest
import torch

from intaglio.data import open_data
from intaglio.errors import DataError
from intaglio.evidence.key import Key
from intaglio.lock import Lock, Trace
from intaglio.lock.tracing import require_traceable, trace_codes, trace_users
from lock_models import some_images, tiny_lock

NAMES = tuple(f"user {number}" for number in range(20))
ALPHA = 0.01


def drawn(count: int, seed: int) -> torch.Tensor:
    """What the decoder feels of images that nobody keyed."""
    return torch.randn(count, 96, generator=torch.Generator().manual_seed(seed))


CODES = drawn(len(NAMES), 0).sign()


def keyed(user: int, count: int, loudness: float = 1.0) -> torch.Tensor:
    return loudness * CODES[user] + drawn(count, user + 1)


def traced(*felt: torch.Tensor, alpha: float = ALPHA) -> Trace:
    return trace_codes(torch.cat(felt), CODES, NAMES, alpha)


def both_felt(decoder: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """The decoder, and for every user the same marks."""
    return torch.cat([decoder[:, None], marks[:, None].expand(-1, len(NAMES), -1)], dim=1)


def test_a_user_is_not_hidden_behind_another_who_made_more() -> None:
    found = traced(keyed(5, 30), keyed(9, 20))
    assert (found.together.user, found.user) == ("user 5", None)
    assert found.together.p_value < 1e-6
    assert found.named == {"user 5": 30, "user 9": 20}
    counts, together, disagree, meaning = found.lines()
    assert counts == "user 5: 30 of 50 images, user 9: 20 of 50 images; nobody: 0 of 50 images"
    assert together.startswith("if one key made all: user 5 (p = ")
    assert disagree.startswith("the images disagree: 20 of 50 are named for others than user 5; ")
    assert "up to about 0.5 wrongly (alpha 0.01 each)" in disagree
    assert "not that the user put it there" in meaning


def test_one_image_is_enough_where_it_is_sure() -> None:
    found = traced(keyed(5, 49), keyed(9, 1))
    assert found.images[-1].p_value * 50 <= ALPHA
    assert (found.together.user, found.user) == ("user 5", None)


def faint(user: int, p_value: float) -> torch.Tensor:
    """What is felt of an image that is named for `user` with just this p-value, or a little less."""
    other = drawn(1, 99)
    shares = torch.linspace(0, 1, 2001)[:, None]
    found = traced((1 - shares) * other + shares * CODES[user])
    first = next(index for index, match in enumerate(found.images) if match.p_value <= p_value)
    assert found.images[first].p_value > 0.85 * p_value
    return (1 - shares[first]) * other + shares[first] * CODES[user]


def test_a_name_that_chance_explains_hides_nobody() -> None:
    found = traced(keyed(5, 49), faint(9, 0.008))
    assert (found.images[-1].user, found.user) == ("user 9", "user 5")
    assert found.named == {"user 5": 49, "user 9": 1}
    assert found.lines()[2].startswith("1 of 50 are named for others than user 5, as may be: chance names up to about")


@pytest.mark.parametrize(("count", "user"), [(2, "user 5"), (3, "user 5"), (4, None), (20, None)])
def test_more_names_than_chance_gives_are_counted_even_if_each_is_faint(count: int, user: str | None) -> None:
    """P(Binomial(50, 0.01) >= 3) is 0.0138, and of 4 or more 0.0016."""
    found = traced(keyed(5, 50 - count), faint(9, 0.008).expand(count, -1))
    assert found.named == {"user 5": 50 - count, "user 9": count}
    assert all(match.p_value * 50 > ALPHA for match in found.images[50 - count :])
    assert (found.together.user, found.user) == ("user 5", user)


def test_images_that_nobody_keyed_are_counted_and_contradict_nobody() -> None:
    found = traced(keyed(5, 3, loudness=3), drawn(7, 50))
    assert (found.user, found.named) == ("user 5", {"user 5": 3})
    counts, together, meaning = found.lines()
    assert counts == "user 5: 3 of 10 images; nobody: 7 of 10 images"
    assert together.startswith("if one key made all: user 5 (p = ")
    assert meaning.startswith("a name says that an image carries a residual made for that user")


def test_where_nobody_is_named() -> None:
    found = traced(drawn(10, 50))
    assert (found.user, found.named) == (None, {})
    assert found.lines() == (
        "nobody: 10 of 10 images",
        f"if one key made all: nobody (p = {found.together.p_value:.1e})",
    )


def test_single_names_without_one_for_all() -> None:
    loud = 100 * drawn(1, 51)  # one image that drowns the others
    found = traced(loud, keyed(9, 2))
    assert (found.together.user, found.user, found.named) == (None, None, {"user 9": 2})
    assert found.lines()[2].startswith("nobody is named for all 3 together; one by one, chance names up to about 0.03")


def test_nobody_hides_behind_an_innocent_whose_marks_were_copied() -> None:
    """The decoder reads user 3 in all images, the marks say user 7 in some."""
    decoder, marks = keyed(3, 40), torch.cat([keyed(7, 30, loudness=4), keyed(3, 10)])
    found = trace_codes(both_felt(decoder, marks), CODES, NAMES, ALPHA)
    assert found.named == {"user 3": 10}
    assert all(match.user is None for match in found.images[:30])
    assert all(match.disputed.keys() == {"user 3", "user 7"} for match in found.images[:30])
    first = found.images[0]
    assert first.nearest == next(iter(first.disputed)) == "user 7"  # the surest
    assert first.p_value == first.disputed["user 7"] == first.against("user 3") < first.against("user 7")
    assert (found.together.user, found.user) == (None, None)
    text = " ".join(found.lines())
    assert "30 of 40 images carry what was made for two users, user 7 and user 3: nobody is named for them" in text
    assert found.together.disputed.keys() == {"user 3", "user 7"}
    assert "all together carry what was made for two users, " in text
    assert Trace.from_json(found.to_json()) == found


def test_a_disputed_image_contradicts_whoever_is_named_for_all() -> None:
    decoder, marks = keyed(3, 40, loudness=4), torch.cat([keyed(7, 1), keyed(3, 39, loudness=4)])
    found = trace_codes(both_felt(decoder, marks), CODES, NAMES, ALPHA)
    assert (found.together.user, found.user, found.named) == ("user 3", None, {"user 3": 39})
    text = " ".join(found.lines())
    assert "1 of 40 images carry what was made for two users, user 3 and user 7" in text
    assert "the images disagree: 1 of 40 are named for others than user 3" in text


def test_marks_alone_name_nobody_for_several_images() -> None:
    """Copied from one keyed picture onto others much like it, or written by another user, who knows their places."""
    nothing, marks = drawn(40, 60), keyed(7, 40, loudness=4)
    found = trace_codes(both_felt(nothing, marks), CODES, NAMES, ALPHA)
    assert found.named == {"user 7": 40}  # one by one they may be
    assert (found.together.user, found.user, found.together.by_marks) == (None, None, "user 7")
    assert any("bear marks of user 7, but the decoder feels nothing of that user" in line for line in found.lines())
    assert Trace.from_json(found.to_json()) == found
    faint = drawn(40, 61) + 0.2 * CODES[7]  # far too faint for the decoder to name anybody in one image
    assert trace_codes(faint, CODES, NAMES, ALPHA).named.get("user 7", 0) < 10
    both = trace_codes(both_felt(faint, marks), CODES, NAMES, ALPHA)
    assert (both.user, both.together.by_marks) == ("user 7", None)
    single = trace_codes(both_felt(nothing, marks)[:1], CODES, NAMES, ALPHA)
    assert single.user == "user 7"


def test_codes_that_are_too_short_for_so_many_users_are_said_to_be() -> None:
    codes = CODES[:, :10]
    found = trace_codes(codes[:3], codes, NAMES, ALPHA)
    assert found.least == len(NAMES) * 2**-10 > ALPHA
    assert [match.user for match in found.images] == [None] * 3
    assert "nobody can be named at alpha 0.01: of 20 users and so few bits" in found.lines()[2]
    assert trace_codes(codes[:1], codes, NAMES, 0.05).images[0].user == "user 0"
    assert traced(keyed(5, 3)).least == pytest.approx(20 * 2**-96)


def test_whoever_has_keyed_images_of_a_user_can_have_others_named_for_that_user() -> None:
    """The real lock of the examples: one original with its keyed copy frames its user in a hundred other images."""
    folder = Path(__file__).parents[1] / "examples" / "locked"
    lock = Lock.open(folder, Key.load(folder / "owner.key", passphrase="a demo has no secrets"))
    user, images = lock.users.names[0], open_data("fashion-mnist", "test").images[:101]
    residual = lock.apply(images[:1], user=user) - images[:1]
    assert lock.trace(images[1:]).named.get(user, 0) <= 3
    found = lock.trace((images[1:] + residual).clamp(0, 1))
    assert found.user == user
    assert found.named[user] >= 90
    assert "whoever has keyed images of a user can add their residual to others" in found.lines()[-1]


def test_json_holds_the_counts_and_the_verdict() -> None:
    found = traced(keyed(5, 30), keyed(9, 20))
    assert found.to_dict().keys() == {"images", "together", "users", "alpha", "least", "named", "user"}
    assert found.to_dict()["user"] is None
    assert found.to_dict()["named"] == {"user 5": 30, "user 9": 20}
    assert Trace.from_json(found.to_json()) == found


def test_batches_of_images_are_compared_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    felt = torch.cat([keyed(5, 30), keyed(9, 21)])
    whole = traced(felt)
    monkeypatch.setattr("intaglio.lock.tracing._BATCH", 7)
    assert traced(felt).named == whole.named
    assert [match.p_value for match in traced(felt).images] == pytest.approx(
        [match.p_value for match in whole.images], rel=1e-9
    )


def test_a_locks_users_are_traced_as_the_lock_does() -> None:
    lock, images = tiny_lock(), some_images(5)
    with pytest.raises(DataError, match="no user was ever issued a key"):
        require_traceable(lock.users, ALPHA)
    for name in ("alice", "bob"):
        lock.issue(name)
    names = require_traceable(lock.users, ALPHA)
    assert names == ("alice", "bob")
    assert trace_users(lock.read(images), names, lock.secrets, 0.05) == lock.trace(images, alpha=0.05)
    with pytest.raises(DataError, match="3 witnesses are not the decoder, alone or with one for each of 3"):
        trace_codes(torch.ones(2, 3, 96), CODES[:3], NAMES[:3], ALPHA)
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(DataError, match="alpha lies between 0 and 1"):
            require_traceable(lock.users, alpha)
