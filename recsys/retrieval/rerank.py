"""Another order for what was found: more diverse, less or more popular, newer or older. What is found stays the index's affair.

Shapes: N items, P found, K wanted, L learnt dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

STRENGTH = 2.0
"""What a dial turned all the way adds to the first item of the catalogue by its standing, and takes from the last, in standard
deviations of the scores found."""
LEAST_MORE, MOST_MORE, TIMES_MORE = 190, 1000, 9


def pool(k: int) -> int:
    """How many items are found, to choose `k` from: 200 for 10, and 1,000 more at the most."""
    return k + min(max(TIMES_MORE * k, LEAST_MORE), MOST_MORE)


def standing(values_N: NDArray[np.generic], among_N: NDArray[np.bool_]) -> Floats:
    """[N] between -1 for the least and 1 for the largest value, by rank `among_N`, equal ones alike; 0 for the others."""
    values = values_N[among_N]
    ordered = np.sort(values)
    below, to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    standings_N = np.zeros(len(values_N), np.float32)
    standings_N[among_N] = (below + to) / max(len(values), 1) - 1
    return standings_N


def log_standing(values_N: NDArray[np.generic], among_N: NDArray[np.bool_]) -> Floats:
    """[N] between -1 for the least and 1 for the largest value, by logarithms: ranks hardly tell the popular ones apart."""
    standings_N = np.zeros(len(values_N), np.float32)
    told = np.log(values_N[among_N].astype(np.float64))
    if len(told):
        standings_N[among_N] = 2 * (told - told.min()) / (np.ptp(told) or 1.0) - 1
    return standings_N


def reranked(
    scores_P: Floats,
    k: int,
    dials: Sequence[tuple[float, Floats]] = (),
    diversity: float = 0.0,
    directions_PL: Floats | None = None,
) -> NDArray[np.intp]:
    """[K] places of the chosen, best first, ties as they were found.

    dials: how far each is turned, -1 to 1, and the standing [P] of the items by it. diversity: 0 to 1, the part of an item's
    worth that is taken for its likeness (cosine, of rows of `directions_PL`, of length 1) to the most like of those before it;
    the rest is its relevance, from 0 to 1 over what was found: maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).
    """
    scores = scores_P.astype(np.float64)
    worth_P = (scores - scores.mean()) / (scores.std() or 1.0) if len(scores) else scores
    for turned, standing_P in dials:
        worth_P = worth_P + STRENGTH * turned * standing_P
    if not diversity:
        return np.argsort(-worth_P, kind="stable")[:k]
    assert directions_PL is not None
    return _marginal(worth_P, k, diversity, directions_PL)


def _marginal(worth_P: NDArray[np.float64], k: int, diversity: float, directions_PL: Floats) -> NDArray[np.intp]:
    chosen = np.zeros(min(k, len(worth_P)), np.intp)
    if not len(chosen):
        return chosen
    relevance_P = (1 - diversity) * (worth_P - worth_P.min()) / (np.ptp(worth_P) or 1.0)
    likeness_P = np.full(len(worth_P), -1.0, np.float32)
    chosen[0] = place = int(np.argmax(relevance_P))
    left_P = relevance_P.copy()
    for number in range(1, len(chosen)):
        left_P[place] = -np.inf
        np.maximum(likeness_P, directions_PL @ directions_PL[place], out=likeness_P)
        chosen[number] = place = int(np.argmax(left_P - diversity * likeness_P))
    return chosen
