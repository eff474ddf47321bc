"""Users' histories in memory: compressed rows (CSR), and the same flattened to pairs.

Shapes: B users, E events of all of them together.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data import schema


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Events one by one: what pointwise and pairwise models learn from.

    user, item: [E] int32; rating: [E] float32. Arrays of NumPy or tensors of torch, alike. The training loop adds
    `negatives` ([N] items drawn for the step) and `total` (events of the step over all workers, to scale the loss).
    """

    user: Any
    item: Any
    rating: Any
    negatives: Any = None
    total: Any = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def columns(self) -> tuple[Any, Any, Any]:
        """What there is one of for each event: user, item, rating."""
        return self.user, self.item, self.rating

    def pieces(self, most: int | None) -> "list[Pairs]":
        """Parts of at most so many events; what they share, they share."""
        if most is None or len(self) <= most:
            return [self]
        return [
            replace(self, **{n: getattr(self, n)[i : i + most] for n in ("user", "item", "rating")})
            for i in range(0, len(self), most)
        ]


@dataclass(frozen=True)
class Histories:
    """B users' events, each user's in time order, with the bounds of his three segments.

    user: [B] int32; offsets: [B + 1] int64 into item [E] int32, rating [E] float32, time [E] int64;
    valid_from, test_from: [B] int32, counted from the start of the user's row.
    """

    user: NDArray[np.int32]
    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    time: NDArray[np.int64]
    valid_from: NDArray[np.int32]
    test_from: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[B] events of each user."""
        return np.diff(self.offsets)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "Histories":
        """Rows of a user file (schema.USERS) as views of the Arrow buffers, copied only across chunks."""
        table = table.combine_chunks()
        offsets, item = _list_column(table, schema.ITEM)
        return cls(
            user=_column(table, schema.USER),
            offsets=offsets,
            item=item,
            rating=_list_column(table, schema.RATING)[1],
            time=_list_column(table, schema.TIME)[1],
            valid_from=_column(table, schema.VALID_FROM),
            test_from=_column(table, schema.TEST_FROM),
        )

    @classmethod
    def of_events(
        cls,
        user: NDArray[np.int32],
        lengths: NDArray[np.int64],
        item: NDArray[np.int32],
        rating: NDArray[np.float32] | None = None,
        time: NDArray[np.int64] | None = None,
    ) -> "Histories":
        """Histories that are all input: nothing held out."""
        ends = lengths.astype(np.int32)
        return cls(
            user=user,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            item=item,
            rating=np.ones(len(item), np.float32) if rating is None else rating,
            time=np.zeros(len(item), np.int64) if time is None else time,
            valid_from=ends,
            test_from=ends,
        )

    def bounds(self, segment: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[B] first and [B] one past the last event (into `item`) of each user's train, valid or test segment."""
        starts, ends = self.offsets[:-1], self.offsets[1:]
        valid, test = starts + self.valid_from, starts + self.test_from
        return {schema.TRAIN: (starts, valid), schema.VALID: (valid, test), schema.TEST: (test, ends)}[segment]

    def having(self, segment: str, every: int = 1) -> "Histories":
        """Only the users with events in a segment, or every so many of them."""
        first, last = self.bounds(segment)
        return self.take(np.flatnonzero(last > first)[::every])

    def segment(self, segment: str) -> "Histories":
        """Only the events of one segment; every user stays, possibly with none."""
        first, last = self.bounds(segment)
        return self._cut(first, last)

    def until(self, known: str) -> "Histories":
        """Only the events before validation (`valid`), before test (`test`), or all (`end`)."""
        last = {"valid": self.bounds(schema.TRAIN)[1], "test": self.bounds(schema.VALID)[1], "end": self.offsets[1:]}
        return self._cut(self.offsets[:-1], last[known])

    def trained_until(self, border: str) -> "Histories":
        """The same events, as if train reached to validation (`valid`, as they are), to test (`test`) or over all (`end`)."""
        if border == schema.VALID:
            return self
        ends = self.test_from if border == schema.TEST else self.lengths.astype(np.int32)
        return replace(self, valid_from=ends, test_from=np.maximum(self.test_from, ends))

    def take(self, rows: NDArray[Any]) -> "Histories":
        """The histories of some rows, in that order. rows: integers or a mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        first, last = self.offsets[rows], self.offsets[rows + 1]
        events = ranges(first, last)
        return Histories(
            user=self.user[rows],
            offsets=np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64),
            item=self.item[events],
            rating=self.rating[events],
            time=self.time[events],
            valid_from=self.valid_from[rows],
            test_from=self.test_from[rows],
        )

    def pairs(self) -> Pairs:
        """All events flattened; cut to a segment first."""
        return Pairs(np.repeat(self.user, self.lengths), self.item, self.rating)

    def _cut(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> "Histories":
        events = ranges(first, last)
        lengths = (last - first).astype(np.int32)
        return Histories(
            user=self.user,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            item=self.item[events],
            rating=self.rating[events],
            time=self.time[events],
            valid_from=np.minimum(self.valid_from, lengths),
            test_from=np.minimum(self.test_from, lengths),
        )


def ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of every [first, last), one range after the other, without a Python loop."""
    lengths = last - first
    ends = np.cumsum(lengths)
    if not len(ends) or not ends[-1]:
        return np.zeros(0, np.int64)
    shift = np.repeat(first - (ends - lengths), lengths)
    events: NDArray[np.int64] = np.arange(ends[-1], dtype=np.int64) + shift
    return events


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    column: NDArray[Any] = table.column(name).to_numpy()
    return column


def _list_column(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets from 0, and values, of a list column of one chunk."""
    column = table.column(name)
    if column.num_chunks == 0:
        return np.zeros(1, np.int64), column.type.value_type.to_pandas_dtype()(0).repeat(0)
    chunk = column.chunk(0)
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], chunk.flatten().to_numpy()
