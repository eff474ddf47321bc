"""Which items lists are made of when they are measured.

Shapes: N items.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

BY_ITEM = "items"
"""The split that holds out all events of some items."""


class Candidates(NamedTuple):
    """eligible: [N] the items; kind: those with a train event (trained), also others that have a vector (listed), or only
    these others (cold)."""

    eligible: NDArray[np.bool_]
    kind: Literal["trained", "listed", "cold"]


def candidates(listed: NDArray[np.bool_], item_counts: NDArray[np.int64], split: str | None) -> Candidates:
    """What a model or a bundle is measured on. listed: [N] items that its lists may hold; item_counts: [N] train events.

    Under a split by item, cold items are ranked among themselves where there are any, as DropoutNet (Volkovs et al., NeurIPS
    2017) and its successors do. No item with train events is held out there, so that among all items whoever scored those
    lowest would gain, whatever his order of the cold ones. A model that lists no cold item is ranked on
    those it lists, and misses.
    """
    cold = listed & (item_counts == 0)
    if not cold.any():
        return Candidates(listed, "trained")
    return Candidates(cold, "cold") if split == BY_ITEM else Candidates(listed, "listed")
