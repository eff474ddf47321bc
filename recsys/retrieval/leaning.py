"""How personal scores lean to what is popular now: a dimension behind the learnt ones, of items their leaning, of users 1.

So a score stays one dot product, in exact search and in any index. Shapes: R rows, L learnt dimensions, D of them and the rest.
"""

import numpy as np
from numpy.typing import NDArray

WIDTH = 8  # dimensions more: the one, and zeros, so that there stays a multiple of 8

Floats = NDArray[np.float32]


def with_column(learnt_RL: Floats, column_R: Floats) -> Floats:
    """[R, L + 8] with one more dimension."""
    behind = np.zeros((len(learnt_RL), WIDTH), np.float32)
    behind[:, 0] = column_R
    return np.concatenate([learnt_RL, behind], axis=1)


def whole(vector_L: Floats, dim: int) -> Floats:
    """[D] a user's vector as it is searched for, of what was made of his history: all dimensions, or the learnt ones."""
    if len(vector_L) == dim:
        return vector_L
    found: Floats = with_column(vector_L[None], np.ones(1, np.float32))[0]
    return found
