"""Which items of a history pulled an item up: what its score would lose without them.

Shapes: K items of a list, H items of a history, L learnt dimensions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.filters import Items
from recsys.retrieval.requests import Cause

CAUSES = 3  # named for each item of a list, at most


def causes(vectors_KL: NDArray[np.float32], history: Items, added_HL: NDArray[np.float32]) -> list[tuple[Cause, ...]]:
    """For each of K items the causes that add to its score, most first.

    vectors_KL: of the items; history: [H]; added_HL: the user's vector less what it were without each (`Tastes.without_each`).
    """
    if not len(history):
        return [()] * len(vectors_KL)
    return [_largest(history, gains) for gains in vectors_KL @ added_HL.T]


def _largest(history: Items, gains_H: NDArray[Any]) -> tuple[Cause, ...]:
    best = np.argsort(-gains_H, kind="stable")[:CAUSES]
    return tuple(Cause(int(history[place]), float(gains_H[place])) for place in best if gains_H[place] > 0)
