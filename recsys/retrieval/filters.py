"""Sets of items as ascending arrays, and which items a request may be answered with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.int32]


def union(*sets: NDArray[np.integer]) -> Items:
    """Every item of some arrays once, ascending."""
    parts = [part for part in sets if len(part)]
    if not parts:
        return np.zeros(0, np.int32)
    items = np.sort(parts[0] if len(parts) == 1 else np.concatenate(parts))
    differs = items[1:] != items[:-1]  # as np.unique does it, in a third of the time for a user's few
    return (items if differs.all() else np.concatenate([items[:1], items[1:][differs]])).astype(np.int32)


def intersection(one: Items, other: Items) -> Items:
    """What is in both of two ascending arrays: by looking the shorter one's items up in the longer."""
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    return short[contains(long, short)].astype(np.int32)


def contains(ascending: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.bool_]:
    """For each item whether it is in an ascending array, by binary search."""
    if not len(ascending):
        return np.zeros(len(items), bool)
    places = np.minimum(np.searchsorted(ascending, items), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == items
    return found


def without(items: NDArray[np.integer], hidden: NDArray[np.integer]) -> Items:
    """Items that are not in an ascending array, in their order."""
    return items[~contains(hidden, items)].astype(np.int32)


def compressed(sets: Sequence[Items]) -> tuple[NDArray[np.int64], Items]:
    """Sets of items as compressed rows: offsets [B + 1] and items."""
    lengths = np.fromiter(map(len, sets), np.int64, len(sets))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, np.concatenate([*sets, np.zeros(0, np.int32)]).astype(np.int32)


def bucket(size: int, least: int = 16) -> int:
    """The next power of two: requests of about the same size are searched together, each as it would be alone."""
    return max(least, 1 << (size - 1).bit_length())
