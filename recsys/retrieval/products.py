"""Inner products of some queries with all items, fast and nearly right: no true score is above what is told of it, so that who
cannot be among the best is found without true ones.

Shapes: B queries, N items, D dimensions, R items of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.packed import PackedItems

Floats = NDArray[np.float32]

EPS = np.finfo(np.float32).eps
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny  # numbers below have fewer digits: their rounding is not in proportion to them
SQUARES = 1e-20, 1e30  # of lengths, between which single precision says them nearly right
FEW = 32  # for fewer queries than these, items × queries and a transposition are faster than queries × items
AT_ONCE = 1 << 11  # items turned into bytes together, which takes little memory


class Scores(Protocol):
    """What is told of some queries' scores, a block of items at a time."""

    @property
    def floors(self) -> Callable[[Floats], Floats] | None:
        """[B] of what is told to [B] that true scores are not below; None where only true scores can say."""

    def block(self, first: int, last: int) -> Floats:
        """[B, R] of the items from `first`, a multiple of `rows`, to `last`, the block's end; the caller may change them until
        he asks again."""

    def least(self, floors_B: Floats) -> Floats:
        """[B] what is told at least of a true score that reaches its query's floor."""


class Products(Protocol):
    """The items, ready to be multiplied. longest: the length of the longest of them, at least."""

    longest: float

    def rows(self, queries: int) -> int:
        """Items of a block, for so many queries."""

    def scores(self, queries_BD: Floats) -> Scores:
        """Of these queries."""

    @property
    def crowded(self) -> int | None:
        """Candidates of one query, more than which cost more than to ask `finer`; None where that cannot be."""

    def suits(self, k: int) -> bool:
        """Whether lists of `k` are not found sooner by `finer`."""

    @property
    def finer(self) -> "Products":
        """For queries of which these tell too little."""


class Float32Products:
    """Matrix products in single precision: true but for their rounding."""

    crowded = None
    BLOCK = 1 << 19  # scores: 2 MB, which stay in the cache

    def __init__(self, items_ND: Floats) -> None:
        self._items_ND, self.longest = items_ND, _longest(items_ND)

    @property
    def finer(self) -> "Float32Products":
        """There are none."""
        return self

    def rows(self, queries: int) -> int:
        """Items of a block, for so many queries."""
        return max(1, self.BLOCK // queries)

    def suits(self, k: int) -> bool:
        """All."""
        return True

    def scores(self, queries_BD: Floats) -> Scores:
        """Of these queries."""
        return _Float32Scores(self._items_ND, queries_BD, off_by(queries_BD, self.longest))


@dataclass(frozen=True)
class _Float32Scores:
    """Of `items` [N, D] for `queries` [B, D], off by [B] at most."""

    items: Floats
    queries: Floats
    off: NDArray[np.float64]

    def block(self, first: int, last: int) -> Floats:
        items_RD = self.items[first:last]
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large to be told is nobody's best
            if len(self.queries) < FEW:
                return np.ascontiguousarray((items_RD @ np.ascontiguousarray(self.queries.T)).T)
            return self.queries @ items_RD.T

    def floors(self, told_B: Floats) -> Floats:
        return _single(told_B - self.off)

    def least(self, floors_B: Floats) -> Floats:
        return self.floors(floors_B)


class Int8Products:
    """Products of bytes, added up as integers: several times as many a second, of a quarter of the memory.

    An item is x = s (i + e) with a step s, whole numbers i and the rest e; a query is q = t (p + r) likewise. So a score is
    s t (i·p + i·r + e·(p + r)). Told is s (i·p + m), where m is as much as the other two can be (Cauchy and Schwarz): as
    every vector has a step that suits it, |i| and |e| are much alike for all items, and m is theirs for the longest.
    A few dimensions more, where all items have their largest whole number, carry m. A dimension in which all are alike orders
    nothing and would spoil the steps (models of ratings have one): it is left out. So the best are filtered by bounds and
    refined by true scores, as in the VA-file (Weber, Schek & Blott 1998).
    """

    crowded = 1 << 10
    # For longer lists single precision is as fast or faster (docs/log.md), as bytes let more items through, each of which is
    # scored by itself; most so with wide vectors, whose last dimensions tell little while m grows with all of them.
    LONGEST, WIDE, LONGEST_OF_WIDE = 32, 256, 16
    ROWS = 1 << 15
    ITEM = 127  # levels
    # Without VNNI, processors add up the products of two neighbouring dimensions in 16 bits that saturate (AVX2's vpmaddubsw):
    # a query's bytes, from 0 to 126, and an item's fit there.
    QUERY = 63

    def __init__(self, items_ND: Floats, indexed: NDArray[np.int32] | None = None) -> None:
        """indexed: the items that can be in a list; unset: all."""
        self._items_ND, self.longest = items_ND, _longest(items_ND)
        self._common_D = _common(items_ND, indexed)
        self._differs = np.isnan(self._common_D)
        dims = int(self._differs.sum())
        # m is below 96 D, as |i| ≤ 127 √D, |p| ≤ 63 √D, and |e| and |r| ≤ √D / 2; a dimension carries 127 · 63.
        self._carrying = 1 + (96 * dims + 64) // (self.ITEM * self.QUERY)
        self._whole = self._rest = 0.0  # the longest i and e
        self._rows = self.ROWS
        self._blocks = [self._packed(items_ND[first : first + self._rows]) for first in range(0, len(items_ND), self._rows)]

    @cached_property
    def finer(self) -> Float32Products:
        """For a user whose best scores are small beside what his vector and an item's could come to."""
        return Float32Products(self._items_ND)

    def rows(self, queries: int) -> int:
        """Items of a block, for so many queries."""
        return self._rows

    def suits(self, k: int) -> bool:
        """Short ones."""
        return k <= (self.LONGEST if self._items_ND.shape[1] <= self.WIDE else self.LONGEST_OF_WIDE)

    def scores(self, queries_BD: Floats) -> Scores:
        """Of these queries."""
        codes_BD, steps_B, rest_B = _coded(queries_BD[:, self._differs], self.QUERY)
        carried_BE = self._margin(_lengths(codes_BD), rest_B, rounding(queries_BD.shape[1]))
        coded_BD = (np.concatenate([codes_BD, carried_BE], axis=1) + self.QUERY).astype(np.uint8)
        common_B = queries_BD[:, ~self._differs].astype(np.float64) @ self._common_D[~self._differs]
        memory = np.empty(len(queries_BD) * self._rows, np.float32)
        return _Int8Scores(self._blocks, self._rows, coded_BD, steps_B, common_B, memory)

    def _margin(self, whole_B: NDArray[np.float64], rest_B: Floats, rounded: np.float32) -> NDArray[np.float64]:
        """[B, E] m, spread over the dimensions that carry it."""
        long_B = whole_B + rest_B
        most_B = (self._whole * rest_B + self._rest * long_B) * (1 + rounded)
        # What is told, the true score and its floor are rounded, too.
        most_B += 8 * EPS * (self._whole + self._rest) * long_B + 1
        carried_BE: NDArray[np.float64] = np.ceil(most_B / self.ITEM)[:, None] - self.QUERY * np.arange(self._carrying)
        return np.clip(carried_BE, 0, self.QUERY)

    def _packed(self, items_RD: Floats) -> PackedItems:
        count, dims = len(items_RD), int(self._differs.sum())
        codes_DR, steps_R = np.full((dims + self._carrying, count), self.ITEM, np.int8), np.empty(count, np.float32)
        for first in range(0, count, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            codes_PD, steps_R[part], rest_P = _coded(items_RD[part, self._differs], self.ITEM)
            codes_DR[:dims, part] = codes_PD.T
            self._whole = max(self._whole, float(_lengths(codes_PD).max()))
            self._rest = max(self._rest, float(rest_P.max()))
        return PackedItems(codes_DR, steps_R, zero=self.QUERY)


@dataclass(frozen=True)
class _Int8Scores:
    """For the bytes of some `queries` [B, D + E], in units of their `steps` [B], less what all items have in `common` [B].

    memory: for the scores of a block, of `rows` items.
    """

    blocks: Sequence[PackedItems]
    rows: int
    queries: NDArray[np.uint8]
    steps: Floats
    common: NDArray[np.float64]
    memory: Floats

    floors = None

    def block(self, first: int, last: int) -> Floats:
        count = len(self.queries)
        scores_BR = self.memory[: count * (last - first)].reshape(count, -1)
        self.blocks[first // self.rows].multiply(self.queries, scores_BR)
        return scores_BR

    def least(self, floors_B: Floats) -> Floats:
        # The floor is rounded in proportion to the whole score.
        rounded_B = EPS * (np.abs(floors_B) + np.abs(self.common)) + TINY
        return _single((floors_B - self.common - np.where(np.isfinite(rounded_B), rounded_B, 0)) / self.steps)


def rounding(dims: int) -> np.float32:
    """How far a product in single precision may be off in the worst case, both vectors of length 1, and as much again.

    A sum of D products is off by D · 2⁻²⁴ at most (Higham, Accuracy and Stability of Numerical Algorithms, §3.1).
    """
    return np.float32((dims + 2) * EPS)


def off_by(queries_BD: Floats, longest: float) -> NDArray[np.float64]:
    """[B] how far a product of each query with an item, of length `longest` at most, may be off in single precision."""
    off_B: NDArray[np.float64] = float(rounding(queries_BD.shape[1])) * longest * _lengths(queries_BD) + TINY
    return off_B


def _coded(vectors_ND: Floats, levels: int) -> tuple[Floats, Floats, Floats]:
    """Whole numbers [N, D] from -levels to levels, each vector's step [N], and in steps how long what is left out is [N]."""
    steps_N = np.maximum(np.abs(vectors_ND).max(axis=1, initial=0) / np.float32(levels), TINY)
    scaled_ND = vectors_ND / steps_N[:, None]
    codes_ND = np.rint(scaled_ND)
    rounded = EPS * np.float32(levels * vectors_ND.shape[1] ** 0.5)  # by the division
    return codes_ND, steps_N, (_lengths(scaled_ND - codes_ND) + rounded).astype(np.float32)


def _common(items_ND: Floats, indexed: NDArray[np.int32] | None) -> Floats:
    """[D] what all indexed items have in a dimension, NaN where they differ."""
    count = len(items_ND) if indexed is None else len(indexed)
    low_D, high_D = np.full(items_ND.shape[1], np.inf, np.float32), np.full(items_ND.shape[1], -np.inf, np.float32)
    for first in range(0, count, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        some_PD = items_ND[part if indexed is None else indexed[part]]
        low_D, high_D = np.minimum(low_D, some_PD.min(axis=0)), np.maximum(high_D, some_PD.max(axis=0))
    return np.where(low_D == high_D, low_D, np.float32(np.nan))


def _longest(vectors_ND: Floats) -> float:
    """How long one is at most, in single precision where squares have room there, which takes a quarter of the time."""
    square = float(np.einsum("nd,nd->n", vectors_ND, vectors_ND).max(initial=0))
    if SQUARES[0] < square < SQUARES[1]:
        return float(square**0.5 * (1 + rounding(vectors_ND.shape[1])))
    return float(_lengths(vectors_ND).max(initial=0))


def _lengths(vectors_ND: Floats) -> NDArray[np.float64]:
    """[N], in double precision since squares are taken."""
    lengths_N: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))
    return lengths_N


def _single(numbers: NDArray[np.float64]) -> Floats:
    """In single precision, as far as that reaches."""
    return np.clip(numbers, -LARGEST, LARGEST).astype(np.float32)
