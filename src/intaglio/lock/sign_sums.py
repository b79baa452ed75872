"""How likely random signs agree with given numbers so well: exact, for whole numbers.

    P(a_1 k_1 + ... + a_n k_n >= s),  each k_j -1 or +1, a half each

The sum is 2 T - A, where A = |a_1| + ... + |a_n| and T sums those |a_j| whose sign agrees. T is counted one number
after the other, P_j(T) = (P_{j-1}(T) + P_{j-1}(T - |a_j|)) / 2: nothing is ever subtracted, so that small chances are
as exact as large ones.
"""

import numpy as np
from torch import Tensor

from intaglio.errors import DataError


def tail(weights: Tensor, reached: float) -> float:
    """The chance of at least `reached`, for whole `weights` `[n]`.

    Costs n A additions and 8 A bytes.

    Raises:
        DataError: weights that aren't whole numbers.
    """
    if bool((weights != weights.round()).any()):
        raise DataError("sums of signs are counted for whole numbers only")
    sizes = [int(size) for size in weights.abs() if size]
    total = sum(sizes)
    chances = np.zeros(total + 1)
    chances[0], so_far = 1.0, 0
    for size in sizes:
        so_far += size
        chances[size : so_far + 1] += chances[: so_far + 1 - size].copy()
        chances[: so_far + 1] /= 2
    first = max(0, int(np.ceil((reached + total) / 2)))
    return min(1.0, float(chances[first:].sum()))
