"""Whose key made an image: decoded bits against the codes of all users.

    t_u = <k_u, L> / |L|                      L: what the decoder feels of each bit; k_u: the user's code, signs
    p_u = min(1, users * erfc(t_u / sqrt(2)) / (4 erfc(1)))

A user's code is random to everyone without the owner's key. For a code that has nothing to do with the image, t is a
weighted sum of random signs, so that P(t >= s) is at most 3.18 times that of a standard normal number, whatever L is
(Bentkus & Dzindzalieta 2015, "A tight Gaussian bound for weighted sums of Rademacher random variables"); the number of
users accounts for all who were looked at. So p bounds the chance of naming anyone who had no part in the image.
"""

import math

import torch
from torch import Tensor

from intaglio.errors import DataError
from intaglio.results import Result

_SMALLEST = 1e-12


class Match(Result):
    """The best-matching user, or None where nobody matches at the level asked for; and how sure that is."""

    user: str | None
    p_value: float
    nearest: str


class Trace(Result):
    """Whose key made each image (`images`), and all of them together, if one key made all (`together`)."""

    images: tuple[Match, ...]
    together: Match
    users: int
    alpha: float

    @property
    def user(self) -> str | None:
        """Who made all of them together."""
        return self.together.user


def trace_codes(felt: Tensor, codes: Tensor, names: tuple[str, ...], alpha: float) -> Trace:
    """Compares decoded bits `[N, n]` with the users' codes `[U, n]`.

    Raises:
        DataError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha lies between 0 and 1, got {alpha}")
    everything = torch.cat([felt, felt.sum(dim=0, keepdim=True)]).double()
    distances = everything @ codes.T.double() / everything.norm(dim=1, keepdim=True).clamp(min=_SMALLEST)
    best, places = distances.clamp(min=0).max(dim=1)
    matches = [
        _match(names[place], min(1.0, len(names) * _tail(score)), alpha)
        for score, place in zip(best.tolist(), places.tolist(), strict=True)
    ]
    return Trace(images=tuple(matches[:-1]), together=matches[-1], users=len(names), alpha=alpha)


def _match(name: str, p_value: float, alpha: float) -> Match:
    return Match(user=name if p_value <= alpha else None, p_value=p_value, nearest=name)


def _tail(score: float) -> float:
    """The most that P(t >= score) can be, for a score of 0 or more."""
    return min(1.0, math.erfc(score / math.sqrt(2)) / (4 * math.erfc(1)))
