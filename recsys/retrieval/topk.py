"""Exact search: the best items by inner product, the same list whoever else is in the batch.

Items are scored in blocks that stay in the cache, by one matrix product each. Most scores are never looked at again: the
first block gives each query a floor under its K-th best score, and only what is above a floor is kept. The few kept are
scored again row by row, because a matrix product rounds differently in another batch.

Shapes: B queries, N items, D dimensions, K best, R items of a block, G groups of them, C candidates of all queries.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Items = NDArray[np.int32]
Keys = NDArray[np.int64]  # item · B + query: less the block's first, an index into its scores
Seen = tuple[NDArray[np.int64], Items]

NOTHING = -1  # pads a list that ran out of items; its score is -inf
QUERIES = 64  # queries searched together
BLOCK_SCORES = 1 << 19  # scores of a block: 2 MB
LEAST_GROUPS = 64  # groups whose maxima give the first floor
MOST_CANDIDATES = 1 << 16  # candidates kept before the floors are raised


def top_k(
    queries_BD: Floats,
    items_ND: Floats,
    k: int,
    *,
    seen: Seen | None = None,
    never: Items | None = None,
    allowed: Items | None = None,
    largest: float | None = None,
) -> tuple[Items, Floats]:
    """The `k` best items of each query by inner product, ordered by (-score, item).

    seen: (offsets [B + 1], items), what each query must not get; never: ascending items that none gets; allowed: ascending
    items to choose from in place of all (`never` is not asked then); largest: `largest_norm(items_ND)`, where it is known.
    Returns ids [B, K] and scores [B, K], K = min(k, items to choose from), padded with NOTHING and -inf.
    """
    if allowed is not None:
        return _among(queries_BD, items_ND, k, seen, allowed)
    k = min(k, len(items_ND))
    ids_BK = np.full((len(queries_BD), k), NOTHING, np.int32)
    scores_BK = np.full((len(queries_BD), k), -np.inf, np.float32)
    largest = largest_norm(items_ND) if largest is None else largest
    for first in range(0, len(queries_BD) if k else 0, QUERIES):
        part = slice(first, first + QUERIES)
        chunk_BD = np.ascontiguousarray(queries_BD[part], np.float32)
        hidden = None if seen is None else _Hidden(seen, part, len(chunk_BD))
        _search(chunk_BD, items_ND, k, hidden, never, largest, ids_BK[part], scores_BK[part])
    return ids_BK, scores_BK


def largest_norm(items_ND: Floats) -> float:
    """The length of the longest vector, which bounds how far a matrix product may be off."""
    return float(np.sqrt(np.einsum("nd,nd->n", items_ND, items_ND).max(initial=0)))


def order(query_D: Floats, items_ND: Floats, candidates: NDArray[np.integer], k: int) -> tuple[Items, Floats]:
    """The best `k` of some items by (-score, item), scored in a fixed order of additions whatever else is asked."""
    scores = rescore(query_D, items_ND[candidates])
    best = np.lexsort((candidates, -scores))[:k]
    return candidates[best].astype(np.int32), scores[best]


def rescore(query: Floats, vectors_CD: Floats) -> Floats:
    """[C] inner products with one query [D] or with one each [C, D].

    NumPy sums each row by itself, so a row's result depends on that row alone; that of a matrix product does not.
    """
    scores: Floats = (vectors_CD.astype(np.float64) * query).sum(axis=1).astype(np.float32)
    return scores


def nearest(vectors_ND: Floats, items: Items, item: int, k: int) -> tuple[Items, Floats]:
    """The `k` of some `items` (ascending) nearest to one item by cosine, itself left out, by (-cosine, item)."""
    lengths_N = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND)), 1e-12)
    others = items[items != item]
    wanted_D = vectors_ND[item] / lengths_N[item]
    cosines = (vectors_ND @ wanted_D)[others] / lengths_N[others]
    if k < len(others):
        kth = np.partition(cosines, len(others) - k)[len(others) - k]
        others = others[cosines >= kth - _rounding(vectors_ND.shape[1])]
    exact = (rescore(wanted_D, vectors_ND[others]) / lengths_N[others]).astype(np.float32)
    best = np.lexsort((others, -exact))[:k]
    return others[best], exact[best]


def _search(
    queries_BD: Floats,
    items_ND: Floats,
    k: int,
    hidden: "_Hidden | None",
    never: Items | None,
    largest: float,
    ids_BK: Items,
    scores_BK: Floats,
) -> None:
    """Fill in the lists of up to QUERIES queries."""
    slack_B = _rounding(queries_BD.shape[1]) * largest * np.linalg.norm(queries_BD, axis=1)
    rows = _rows(len(queries_BD))
    queries_DB, block_RB = np.ascontiguousarray(queries_BD.T), np.empty((min(rows, len(items_ND)), len(queries_BD)), np.float32)
    candidates = _Candidates(k, slack_B.astype(np.float32))
    for start in range(0, len(items_ND), rows):
        items_RD = items_ND[start : start + rows]
        scores_RB = np.matmul(items_RD, queries_DB, out=block_RB[: len(items_RD)])
        if hidden is not None:
            scores_RB.reshape(-1)[hidden.in_block(start)] = -np.inf
        if never is not None:
            first, last = np.searchsorted(never, [start, start + len(items_RD)])
            scores_RB[never[first:last] - start] = -np.inf
        candidates.add(scores_RB, start)
    _sort(queries_BD, items_ND, candidates.keys(), ids_BK, scores_BK)


class _Candidates:
    """What may still be among the K best of each query, as keys, and the floors that it must be above."""

    def __init__(self, k: int, slack_B: Floats) -> None:
        self._k, self._slack_B, self._count = k, slack_B, len(slack_B)
        self._floors_RB: Floats | None = None  # repeated for each row: comparing whole blocks is faster than broadcasting
        self._keys: list[Keys] = []
        self._scores: list[Floats] = []
        self._kept = 0

    def add(self, scores_RB: Floats, start: int) -> None:
        """Look at a block of scores, whose first row is item `start`."""
        if self._floors_RB is None:
            self._raise(self._kth_of_groups(scores_RB), len(scores_RB))
        assert self._floors_RB is not None
        places = np.flatnonzero(scores_RB > self._floors_RB[: len(scores_RB)])
        self._keys.append(places + start * self._count)
        self._scores.append(scores_RB.reshape(-1)[places])
        self._kept += len(places)
        if self._kept > MOST_CANDIDATES:
            self._raise(self._prune(), len(self._floors_RB))

    def keys(self) -> Keys:
        """Every candidate that is left, in no order."""
        self._prune()
        return self._keys[0]

    def _kth_of_groups(self, scores_RB: Floats) -> Floats:
        """[B] the K-th best of the maxima of groups of items: K items at least score so much. -inf if that cannot be said."""
        groups = min(max(LEAST_GROUPS, 1 << (4 * self._k - 1).bit_length()), len(scores_RB))
        if self._k > groups:
            return np.full(self._count, -np.inf, np.float32)
        whole = len(scores_RB) // groups * groups
        best_GB = scores_RB[:whole].reshape(-1, groups * self._count).max(axis=0).reshape(groups, self._count)
        kth_B: Floats = np.partition(best_GB, groups - self._k, axis=0)[groups - self._k]
        return kth_B

    def _raise(self, kth_B: Floats, rows: int) -> None:
        """New floors. Just below what counts: a comparison with `>` must keep a score that equals it, and never -inf."""
        self._floors_RB = np.tile(np.nextafter(kth_B - self._slack_B, np.float32(-np.inf)), (rows, 1))

    def _prune(self) -> Floats:
        """Drop what cannot be among the K best candidates; the K-th best scores."""
        keys, scores = np.concatenate(self._keys), np.concatenate(self._scores)
        queries = keys % self._count
        kth_B = _kth_of_each(queries, scores, self._count, self._k)
        kept = scores >= (kth_B - self._slack_B)[queries]
        self._keys, self._scores, self._kept = [keys[kept]], [scores[kept]], int(kept.sum())
        return kth_B


def _kth_of_each(queries: Keys, scores: Floats, count: int, k: int) -> Floats:
    """[B] the K-th best score of each query's candidates, -inf for a query with fewer."""
    lengths_B = np.bincount(queries, minlength=count)
    width = max(int(lengths_B.max()), k)
    by_query = np.argsort(queries.astype(np.uint16), kind="stable")
    places = np.arange(len(queries)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    padded_BW = np.full((count, width), -np.inf, np.float32)
    padded_BW[queries[by_query], places] = scores[by_query]
    kth_B: Floats = np.partition(padded_BW, width - k, axis=1)[:, width - k]
    return kth_B


def _sort(queries_BD: Floats, items_ND: Floats, keys: Keys, ids_BK: Items, scores_BK: Floats) -> None:
    """Score the candidates again, each by itself, and fill in each query's list by (-score, item)."""
    items, queries = np.divmod(keys, len(queries_BD))
    scores = rescore(queries_BD[queries], items_ND[items])
    best = np.lexsort((items, -scores, queries))
    items, queries, scores = items[best], queries[best], scores[best]
    places = np.arange(len(keys)) - np.searchsorted(queries, np.arange(len(queries_BD)))[queries]
    kept = places < ids_BK.shape[1]
    ids_BK[queries[kept], places[kept]] = items[kept]
    scores_BK[queries[kept], places[kept]] = scores[kept]


class _Hidden:
    """What some queries must not get, by block of items."""

    def __init__(self, seen: Seen, part: slice, count: int) -> None:
        offsets = seen[0][part.start : part.start + count + 1]
        items = seen[1][offsets[0] : offsets[-1]]
        blocks = (items // _rows(count)).astype(np.uint16)  # 16 bits are sorted by radix, ten times as fast
        by_block = np.argsort(blocks, kind="stable")
        self._ends = np.cumsum(np.bincount(blocks))
        keys = items.astype(np.int64) * count + np.repeat(np.arange(count), np.diff(offsets))
        self._keys: Keys = keys[by_block]
        self._count = count

    def in_block(self, start: int) -> Keys:
        """Indices into the scores of the block whose first row is item `start`."""
        block = start // _rows(self._count)
        if block >= len(self._ends):
            return self._keys[:0]
        return self._keys[self._ends[block - 1] if block else 0 : self._ends[block]] - start * self._count


def _rows(count: int) -> int:
    """Items of a block, for so many queries."""
    return max(1, BLOCK_SCORES // count)


def _rounding(dims: int) -> float:
    """How far two products in single precision may differ in the worst case, both vectors of length 1, and as much again.

    A sum of D products is off by D · 2⁻²⁴ at most (Higham, Accuracy and Stability of Numerical Algorithms, §3.1).
    """
    return 2 * (dims + 2) * float(np.finfo(np.float32).eps)


def _among(queries_BD: Floats, items_ND: Floats, k: int, seen: Seen | None, allowed: Items) -> tuple[Items, Floats]:
    if seen is not None:
        keep = np.isin(seen[1], allowed)
        offsets = np.concatenate([[0], np.cumsum(keep)])[seen[0]]
        seen = offsets, np.searchsorted(allowed, seen[1][keep]).astype(np.int32)
    places_BK, scores_BK = top_k(queries_BD, items_ND[allowed], k, seen=seen)
    ids_BK = np.where(places_BK == NOTHING, NOTHING, allowed[places_BK] if len(allowed) else NOTHING).astype(np.int32)
    return ids_BK, scores_BK
