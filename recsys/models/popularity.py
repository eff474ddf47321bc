"""The most watched first: the line every model must beat, and what a stranger gets."""

import numpy as np
from numpy.typing import NDArray


class Popularity:
    """A ranked list. It has no vectors and nothing to train."""

    def __init__(self, item_counts: NDArray[np.integer] | NDArray[np.floating]) -> None:
        """item_counts: [N] train events of each item, or those of lately (`recsys.models.trend`)."""
        order = np.lexsort((np.arange(len(item_counts)), -item_counts))
        self.ranked: NDArray[np.int32] = order[item_counts[order] > 0].astype(np.int32)
        """[P] the items with a train event, by (-count, item)."""
