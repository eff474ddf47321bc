"""What is watched now: items stand higher that are watched more than they used to be.

A model that knows who watched what, and not when, ranks by what was ever watched. Where demand moves, its lists are late. What
an item has gained lately is added to every user's scores, whatever the model: docs/log.md has the forms that were tried.

Shapes: N items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trend:
    """What is popular lately, and how much personal scores lean to it.

    lately: [N] events of `recsys.data.recent`; weight: what a gain of one standard deviation adds to a score; 0: nothing.
    """

    half_life_days: float
    weight: float
    lately: NDArray[np.float32]

    def leaning(self, item_counts: NDArray[np.integer]) -> NDArray[np.float32]:
        """[N] what is added to every user's scores. item_counts: [N] train events."""
        return np.float32(self.weight) * gains(self.lately, item_counts)


def gains(lately: NDArray[np.float32], item_counts: NDArray[np.integer]) -> NDArray[np.float32]:
    """[N] events that an item has lately above what it usually has, both of as many in all, in standard deviations over the
    items with train events; zero for others."""
    gain: NDArray[np.float64] = np.where(item_counts > 0, lately.astype(np.float64) - item_counts, 0.0)
    spread = gain[item_counts > 0].std() if gain.any() else 1.0
    return (gain / max(spread, np.finfo(np.float32).tiny)).astype(np.float32)
