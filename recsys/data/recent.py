"""How often each item was watched lately: an event counts half after so many days.

Shapes: N items, E events, H half-lives.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Days. A setting says one; else those that are tried on validation.
HALF_LIVES = (1.0, 3.0, 7.0, 30.0, 90.0, 365.0)

# The share that all events have in what is recent, so that an item which nobody watched lately keeps a place.
EVER = 0.01

DAY = 86_400.0


class RecentCounts:
    """Train events of each item, each counting half after a half-life before the newest of them."""

    def __init__(self, items: int, half_lives: Sequence[float] = HALF_LIVES) -> None:
        """half_lives: days."""
        self.half_lives = tuple(half_lives)
        self.newest = -np.inf
        self.counts = np.zeros((len(self.half_lives), items))

    def add(self, item: NDArray[np.integer], time: NDArray[np.int64]) -> None:
        """Events. item: [E]; time: [E] Unix seconds."""
        if not len(item):
            return
        self.move_to(max(self.newest, float(time.max())))
        for row, days in enumerate(self.half_lives):
            weights = 2.0 ** ((time - self.newest) / (days * DAY))
            self.counts[row] += np.bincount(item, weights, minlength=self.counts.shape[1])

    def move_to(self, newest: float) -> None:
        """Count from a later time on."""
        if np.isfinite(self.newest):
            ages = (newest - self.newest) / (np.array(self.half_lives) * DAY)
            self.counts *= 2.0 ** -ages[:, None]
        self.newest = newest

    def lately(self, half_life_days: float, item_counts: NDArray[np.integer]) -> NDArray[np.float32]:
        """[N] recent events, as many in all as there are train events, with a little of these; zero for an item without any.
        item_counts: [N] of train."""
        recent, ever = self.counts[self.half_lives.index(half_life_days)], item_counts.astype(np.float64)
        scaled = recent * (ever.sum() / max(recent.sum(), np.finfo(float).tiny))
        mixed: NDArray[np.float32] = ((1 - EVER) * scaled + EVER * ever).astype(np.float32)
        return mixed
