"""Which few grey levels to change so that several margins become what they should be: a closest-vector search."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from intaglio.seal.surface import Moves

Floats = NDArray[np.float64]
Choice = NDArray[np.int64]

#: Moves that are combined by fours: 128 give 8,128 pairs, hence 33 million sums of two pairs.
_POOL = 128
#: The most moves that a coarse approach takes before the fine search.
_COARSE_STEPS = 64
_LEAST_MOVES = 8


def combine(moves: Moves, need: Floats, tolerance: float, count: int, generator: np.random.Generator) -> list[Choice]:
    """Up to `count` sets of moves whose effects add up to `need` `[J]` as nearly as can be found, best first.

    First the best single moves are taken while they bring the sum nearer, until what is left is as small as a typical
    move. Then, of a pool of 128 moves of fitting size, the sum of two pairs that is nearest to the rest is looked up
    in a k-d tree, once for each pair. Among sums within `tolerance` (Euclidean) those of the smallest moves come first,
    for there the network is most nearly linear. No pixel is moved twice in a set.
    """
    taken, rest, free = _approach(moves, need)
    if len(free) < _LEAST_MOVES:
        return []
    sizes = np.linalg.norm(moves.effects, axis=1)
    pool = _pool(free, sizes, float(np.linalg.norm(rest)), generator)
    first, second = _pairs(pool, moves.pixels)
    if not len(first):
        return []
    sums = moves.effects[first] + moves.effects[second]
    distance, partner = KDTree(sums).query(rest - sums)
    sets = np.stack([first, second, first[partner], second[partner]], axis=1)
    touched = np.sort(moves.pixels[sets], axis=1)
    usable = (np.diff(touched, axis=1) > 0).all(axis=1)
    # Within the tolerance the order is by size; beyond it, by distance, which is always larger than the scaled size.
    weight = sizes[sets].sum(axis=1)
    rank = np.where(distance <= tolerance, tolerance * weight / weight.max(), tolerance + distance)
    order = np.argsort(np.where(usable, rank, np.inf))[: int(usable.sum())]
    chosen: dict[tuple[int, ...], Choice] = {}
    for index in order:
        chosen.setdefault(tuple(sorted(sets[index])), np.concatenate([taken, sets[index]]))
        if len(chosen) == count:
            break
    return list(chosen.values())


def _approach(moves: Moves, need: Floats) -> tuple[Choice, Floats, Choice]:
    """The moves taken, what is left to do, and the moves that are still free."""
    sizes = np.linalg.norm(moves.effects, axis=1)
    free = np.arange(len(sizes))
    typical = float(np.median(sizes)) if len(sizes) else 0.0
    taken: list[int] = []
    while len(taken) < _COARSE_STEPS and np.linalg.norm(need) > typical and len(free) >= _LEAST_MOVES:
        left = np.linalg.norm(need - moves.effects[free], axis=1)
        best = int(left.argmin())
        if left[best] >= np.linalg.norm(need):
            break
        index = int(free[best])
        taken.append(index)
        need = need - moves.effects[index]
        free = free[moves.pixels[free] != moves.pixels[index]]
    return np.array(taken, np.int64), need, free


def _pool(free: Choice, sizes: Floats, rest: float, generator: np.random.Generator) -> Choice:
    """Moves not much larger than the rest; they are dense around it."""
    ordered = free[np.argsort(sizes[free], kind="stable")]
    cut = max(int(np.searchsorted(sizes[ordered], 2 * rest)), 4 * _POOL)
    fitting = ordered[:cut]
    return fitting if len(fitting) <= _POOL else generator.choice(fitting, _POOL, replace=False)


def _pairs(pool: Choice, pixels: NDArray[np.int64]) -> tuple[Choice, Choice]:
    """All pairs of moves of different pixels."""
    first, second = np.triu_indices(len(pool), 1)
    apart = pixels[pool[first]] != pixels[pool[second]]
    return pool[first[apart]], pool[second[apart]]
