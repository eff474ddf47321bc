"""What an order by chance is worth: the mean of a metric over all orders of the items that a user's list may hold.

Shapes: B users, K cut-offs, M metrics (metrics.RANKING), J places of the longest list.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def name_of(metric: str, k: int) -> str:
    """What its sum over users is called among an evaluation's counts."""
    return f"random {metric}@{k}"


def expected(items_B: Counts, relevant_B: Counts, held_B: Counts, ks: Sequence[int]) -> NDArray[np.float64]:
    """[M, K, B], as `metrics.RANKING` measures lists of the first K.

    items_B: items that may be listed; relevant_B: how many of them are held out; held_B: held-out items, listed or not.
    A place holds a held-out item with the share of these, r / n; the first j places hold none with the chance
    Π_{i<j} (n - r - i) / (n - i), of which MRR and the hit rate are made.
    """
    place_J = np.arange(max(ks))
    left_BJ = np.maximum(items_B[:, None] - place_J, 0)
    none_BJ = np.maximum(left_BJ - relevant_B[:, None], 0) / np.maximum(left_BJ, 1)
    missed_BJ = np.cumprod(np.where(left_BJ > 0, none_BJ, 1.0), axis=1)
    first_BJ = np.diff(1 - missed_BJ, axis=1, prepend=0.0)
    share_BJ = (relevant_B / np.maximum(items_B, 1))[:, None] * (left_BJ > 0)
    discount_J = 1 / np.log2(place_J + 2)
    ideal_J = np.cumsum(discount_J)
    columns = [
        [
            1 - missed_BJ[:, k - 1],
            share_BJ[:, :k].sum(1) / np.maximum(held_B, 1),
            (share_BJ * discount_J)[:, :k].sum(1) / ideal_J[np.clip(held_B, 1, k) - 1],
            (first_BJ / (place_J + 1))[:, :k].sum(1),
        ]
        for k in ks
    ]
    return np.array(columns).swapaxes(0, 1)
