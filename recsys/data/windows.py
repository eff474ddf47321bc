"""Windows of histories: what a sequence model is fed. Cut and padded here for training, evaluation and serving alike.

Positions count from the start of a window and padding comes after its last event. Under causal attention no event sees what
comes later, so padding needs no mask, and a place in a training window is exactly what serving would see there.

Shapes: W windows, T tokens (events of all windows together), L tokens of the longest.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.data.hashing import mixed
from recsys.data.histories import Histories, ranges

# Shapes are rounded up to these, since libraries prepare themselves for each new one: a thousand cost more than the padding.
ROUND_TOKENS, ROUND_ROWS = 8, 16


@dataclass(frozen=True)
class Padded:
    """Where the tokens of W windows are in an array of `shape` ([at least W, L]), flattened: windows from its left, the rest is
    padding.

    event: [T] each token's place among all events; place: [T] in the array; last: [W] place of each window's last token, of
    an empty window its first.
    """

    shape: tuple[int, int]
    event: NDArray[np.int64]
    place: NDArray[np.int64]
    last: NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Consecutive events of some user each, at most `most`: [first, last) into item [E] int32. first, last: [W] int64."""

    item: NDArray[np.int32]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    most: int

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[W] tokens of each window."""
        return self.last - self.first

    def take(self, rows: NDArray[Any]) -> "Windows":
        """Some of them, in that order."""
        return replace(self, first=self.first[rows], last=self.last[rows])

    def buckets(self, tokens: int) -> list[NDArray[np.int64]]:
        """Rows of windows of like lengths, longest first: at most `tokens` when padded to the longest, but one at least."""
        order = np.argsort(-self.lengths, kind="stable")
        longest = self.lengths[order]
        buckets, start = [], 0
        while start < len(order):
            rows = max(1, tokens // self._rounded(int(longest[start])))
            rows -= rows % ROUND_ROWS if rows > ROUND_ROWS else 0
            buckets.append(order[start : start + rows])
            start += rows
        return buckets

    def padded(self) -> Padded:
        """All of them padded to the longest, rounded up; there may be rows of padding alone, of no windows at all one."""
        lengths = self.lengths
        longest = self._rounded(int(lengths.max(initial=0)))
        starts = np.arange(len(self), dtype=np.int64) * longest
        return Padded(
            shape=(_up(len(self), ROUND_ROWS) if len(self) > ROUND_ROWS else max(len(self), 1), longest),
            event=ranges(self.first, self.last),
            place=ranges(starts, starts + lengths),
            last=starts + np.maximum(lengths - 1, 0),
        )

    def _rounded(self, longest: int) -> int:
        return min(_up(max(longest, 1), ROUND_TOKENS), self.most)


@dataclass(frozen=True)
class Sequences:
    """A step of next-item prediction: at every token of the windows the event after it is to be told.

    The training loop adds `negatives` and `total`, as to `Pairs`. Its length is how many events are to be told.
    """

    windows: Windows
    negatives: Any = None
    total: Any = None

    def __len__(self) -> int:
        return int(self.windows.lengths.sum())

    @property
    def positives(self) -> NDArray[np.int32]:
        """[T] items to be told."""
        return self.windows.item[ranges(self.windows.first, self.windows.last) + 1]

    def pieces(self, most: int | None) -> "list[Sequences]":
        """Parts of windows of like lengths, of at most so many tokens, padding counted; what they share, they share."""
        if most is None or not len(self):
            return [self]
        return [replace(self, windows=self.windows.take(rows)) for rows in self.windows.buckets(most)]


def training_windows(histories: Histories, max_length: int, seed: int) -> Windows:
    """Windows in which every event but a user's first is to be told once.

    A history longer than a window is cut into consecutive ones, the first of them of a length drawn by (seed, user): with
    a seed for each epoch the cuts fall elsewhere, and no event is always told from little. Users with one event give none.
    """
    told = np.maximum(histories.lengths - 1, 0)
    drawn = mixed(histories.user.astype(np.uint64), np.full(len(told), seed, np.uint64)) % np.uint64(max_length)
    ahead = np.where(told > max_length, drawn.astype(np.int64), 0)  # what the first window leaves of a whole one
    count = -(-(told + ahead) // max_length)
    number = ranges(np.zeros_like(count), count)
    user = np.repeat(np.arange(len(told)), count)
    start, end = histories.offsets[:-1][user], histories.offsets[:-1][user] + told[user]
    first = start - ahead[user] + number * max_length
    return Windows(histories.item, np.maximum(first, start), np.minimum(first + max_length, end), max_length)


def last_windows(histories: Histories, max_length: int, known: NDArray[np.bool_] | None = None) -> Windows:
    """One for each user: his last events, to tell what follows them. Empty for a user without any.

    known: [N] items that a model has learnt; events on others say nothing to it and are left out.
    """
    if known is not None and not known[histories.item].all():
        histories = _only(histories, known[histories.item])
    last = histories.offsets[1:]
    return Windows(histories.item, np.maximum(histories.offsets[:-1], last - max_length), last, max_length)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _only(histories: Histories, kept: NDArray[np.bool_]) -> Histories:
    """Histories of the events that are kept, for their items alone."""
    before = np.concatenate([[0], np.cumsum(kept)])
    return Histories.of_events(histories.user, np.diff(before[histories.offsets]), histories.item[kept])
