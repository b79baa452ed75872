"""Whose key made an image: decoded bits against the codes of all users.

    L' = round(64 L / |L|)                        L: what a witness feels of each bit
    t_u = <k_u, L'>                               k_u: the user's code, signs
    p_u = min(1, users * W * P(<k, L'> >= t_u))   k: signs at random; W: 1, or 2 where marks are read beside the decoder

A witness is the decoder; another, on a grid of JPEG, are the marks, which for each user compare other blocks, and so
are read for each. Where they name different users, nobody is named: whoever can copy what one of them goes by would
else hide behind an innocent. And nobody is named for several images together by the marks alone: what lies at their
places can be copied onto pictures that are much alike; what the decoder reads can't be written without the user's own
residual. So it has to say the same, with p <= alpha for that one user. A user's code is random to everyone without the
owner's key. So for a code that has nothing to do with the image t is a sum of whole numbers with random signs, whatever
they are, and its chances are counted exactly (`sign_sums`); the numbers of users and witnesses account for all that was
looked at. So p bounds the chance that an image without anything of a user's key is named for that user. It is the
chance over owners' keys: of one owner's images, those that are named wrongly may all be named for the same innocent,
whose code is what the decoder feels where nothing is.

It bounds chance alone, not intent: a name says that the image carries a residual that was made for that user, not that
the user put it there. Whoever has one original and its keyed copy, or many of a user's keyed images, can add that
residual to any other image, which then is named for that user. Marks alone are copied more easily, from one keyed
image onto others much like it: single images may be named by them.
"""

from collections import Counter
from operator import itemgetter

import torch
from pydantic import Field
from scipy.stats import binom
from torch import Tensor

from intaglio.errors import DataError
from intaglio.lock.codes import LockSecrets
from intaglio.lock.sign_sums import tail
from intaglio.lock.users import UserStore
from intaglio.results import Result

_SMALLEST = 1e-12
#: How finely L is rounded: to a 64th of its length. p-values of one in ten thousand are then steps of a tenth apart.
_FINENESS = 64
#: Images compared at a time: a hundred thousand against a thousand users at once are most of a gigabyte.
_BATCH = 1024


class Match(Result):
    """The best-matching user, or None where nobody matches at the level asked for; and how sure that is.

    None also where one witness names one user and another witness another: `disputed` then says whom, surest first,
    with their p-values. None for several images together if the marks name `by_marks` and the decoder feels nothing of
    that user.
    """

    user: str | None
    p_value: float
    nearest: str
    disputed: dict[str, float] = Field(default_factory=dict)
    by_marks: str | None = None

    def against(self, user: str | None) -> float:
        """The least p-value at which it is named for anybody but `user`, 1 if it isn't."""
        named = self.disputed or ({} if self.user is None else {self.user: self.p_value})
        return min((p_value for name, p_value in named.items() if name != user), default=1.0)


class Trace(Result):
    """Whose residual each image carries (`images`); `together`, whose all carry if one key made them all.

    `together` says nothing of whether one key did: 30 images of one user hide 20 of another in it. So `named` counts
    for how many images each user is named, and `user` is who is named for all of them together and contradicted by
    none: None where nobody is named together, or images are named for someone else

    - so surely that chance gives no such name to any of N images: p <= alpha / N (Bonferroni), or
    - more often than chance does: P(Binomial(N, alpha) >= those) <= alpha. (Images that depend on each other, as
      frames of a clip do, may be more often; what errs then is towards None.)

    A few names that are wrong by chance, up to about alpha N, so don't hide a user. That images are named for nobody
    is no contradiction: a residual may be too faint to tell, or missing. `least` is the smallest p-value that an image
    can have: above alpha nobody can be named.
    """

    images: tuple[Match, ...]
    together: Match
    users: int
    alpha: float
    least: float
    named: dict[str, int]
    user: str | None

    def lines(self) -> tuple[str, ...]:
        """What all images say, in words: counts, the user if one key made all, contradictions, what a name means."""
        total, best = len(self.images), self.together.user
        counts = ", ".join(f"{name}: {count} of {total} images" for name, count in self.named.items())
        nobody = f"nobody: {total - sum(self.named.values())} of {total} images"
        found = [
            f"{counts}; {nobody}" if counts else nobody,
            f"if one key made all: {best or 'nobody'} (p = {self.together.p_value:.1e})",
        ]
        if self.least > self.alpha:
            found.append(
                f"nobody can be named at alpha {self.alpha:g}: of {self.users} users and so few bits chance explains "
                f"any agreement with p = {self.least:.1e}"
            )
        disputed = Counter(" and ".join(match.disputed) for match in self.images if match.disputed)
        found += [
            f"{count} of {total} images carry what was made for two users, {names}: nobody is named for them"
            for names, count in disputed.most_common()
        ]
        if self.together.by_marks is not None:
            found.append(
                f"all together bear marks of {self.together.by_marks}, but the decoder feels nothing of that user: "
                "marks may have been copied, so nobody is named for them"
            )
        if self.together.disputed:
            found.append(f"all together carry what was made for two users, {' and '.join(self.together.disputed)}")
        if others := sum(match.against(best) <= self.alpha for match in self.images):
            by_chance = f"chance names up to about {self.alpha * total:.2g} wrongly (alpha {self.alpha:g} each)"
            if best is None:
                found.append(f"nobody is named for all {total} together; one by one, {by_chance}")
            elif self.user is None:
                found.append(f"the images disagree: {others} of {total} are named for others than {best}; {by_chance}")
            else:
                found.append(f"{others} of {total} are named for others than {best}, as may be: {by_chance}")
        if self.named or best is not None:
            found.append(
                "a name says that an image carries a residual made for that user, not that the user put it there: "
                "whoever has keyed images of a user can add their residual to others"
            )
        return tuple(found)


def trace_users(felt: Tensor, names: tuple[str, ...], secrets: LockSecrets, alpha: float) -> Trace:
    """`trace_codes` of what `Lock.read` felt, `[N, W, n]`, with the codes of these users.

    Raises:
        DataError: alpha outside (0, 1).
    """
    return trace_codes(felt, torch.stack([secrets.code(name) for name in names]), names, alpha)


def require_traceable(users: UserStore, alpha: float) -> tuple[str, ...]:
    """Everyone who was ever issued a key; fails before images are read if they can't be traced.

    Raises:
        DataError: nobody was ever issued a key, or alpha outside (0, 1).
    """
    if not len(users):
        raise DataError("no user was ever issued a key, so there is nobody to look for")
    _check_level(alpha)
    return users.names


def trace_codes(felt: Tensor, codes: Tensor, names: tuple[str, ...], alpha: float) -> Trace:
    """Compares decoded bits `[N, n]`, or those of W witnesses `[N, W, n]`, with the users' codes `[U, n]`.

    The first witness, the decoder, is heard on every user; if there are others, there is one for each user, who is
    heard on that user alone.

    `alpha` is the accepted chance of a wrong name, for each image and for all together. It is chance's alone: that a
    user is named says that the residual was made for that user, not who put it into the image.

    Raises:
        DataError: alpha outside (0, 1).
    """
    _check_level(alpha)
    bits = codes.shape[1]
    felt = felt.double().view(len(felt), -1, bits)
    if felt.shape[1] not in (1, 1 + len(names)):
        raise DataError(f"{felt.shape[1]} witnesses are not the decoder, alone or with one for each of {len(names)}")
    everything = torch.cat([felt, felt.sum(dim=0, keepdim=True)])
    matches = [
        match for part in torch.split(everything, _BATCH) for match in _matches(part, codes.double(), names, alpha)
    ]
    images, together = tuple(matches[:-1]), matches[-1]
    if len(images) > 1:
        together = _supported(together, everything[-1], codes.double(), names, alpha)
    return Trace(
        images=images,
        together=together,
        users=len(names),
        alpha=alpha,
        least=min(1.0, _looked_at(felt, names) * 0.5**bits),
        named=dict(Counter(match.user for match in images if match.user is not None).most_common()),
        user=None if _contradicted(images, together.user, alpha) else together.user,
    )


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise DataError(f"alpha lies between 0 and 1, got {alpha}")


def _supported(match: Match, felt: Tensor, codes: Tensor, names: tuple[str, ...], alpha: float) -> Match:
    """The same, but nobody if the first witness, of `felt` `[W, n]`, feels nothing of the user who is named."""
    if match.user is None:
        return match
    decoded = _whole(felt[0])
    if tail(decoded, float(decoded @ codes[names.index(match.user)])) <= alpha:
        return match
    return match.model_copy(update={"user": None, "by_marks": match.user})


def _matches(felt: Tensor, codes: Tensor, names: tuple[str, ...], alpha: float) -> list[Match]:
    whole, looked_at = _whole(felt), _looked_at(felt, names)
    heard = [(whole[:, :1].expand(-1, len(names), -1), whole[:, 0] @ codes.T)]
    if whole.shape[1] > 1:
        heard.append((whole[:, 1:], (whole[:, 1:] * codes).sum(dim=2)))
    found = [(weights, *agreed.max(dim=1)) for weights, agreed in heard]
    matches = []
    for row in range(len(whole)):
        said = [
            (min(1.0, looked_at * tail(weights[row, places[row]], float(best[row]))), names[int(places[row])])
            for weights, best, places in found
        ]
        matches.append(_match(sorted(said, key=itemgetter(0)), alpha))
    return matches


def _looked_at(felt: Tensor, names: tuple[str, ...]) -> int:
    """What chance is multiplied by: users, and the kinds of witnesses of `[N, W, n]`."""
    return len(names) * (1 if felt.shape[1] == 1 else 2)


def _whole(felt: Tensor) -> Tensor:
    """L' of what is felt, `[..., n]`."""
    whole: Tensor = (_FINENESS * felt / felt.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST)).round()
    return whole


def _match(said: list[tuple[float, str]], alpha: float) -> Match:
    """What witnesses say together, the surest first."""
    p_value, name = said[0]
    named = {other: level for level, other in reversed(said) if level <= alpha}
    if len(named) > 1:
        return Match(user=None, p_value=p_value, nearest=name, disputed=dict(reversed(named.items())))
    return Match(user=name if named else None, p_value=p_value, nearest=name)


def _contradicted(images: tuple[Match, ...], user: str | None, alpha: float) -> bool:
    """Whether images are named for others than `user`, more surely or more often than by chance."""
    if user is None:
        return False
    others = [p_value for match in images if (p_value := match.against(user)) <= alpha]
    if not others:
        return False
    often = float(binom.sf(len(others) - 1, len(images), alpha)) <= alpha
    return often or min(others) * len(images) <= alpha
