"""Exact search: the best items by inner product, the same list whoever else is in the batch.

Items are scored in blocks, by one matrix product each (`products`), which tells the most that a score can be. Most are never
looked at again: the best of the first block, scored one by one, give each query a floor, and only what may reach it is kept.
The few kept are scored one by one, too, because a matrix product rounds, and differently in another batch.

Shapes: B queries, N items, D dimensions, K best, R items of a block, G groups of them, C candidates of all queries.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.filters import contains
from recsys.retrieval.products import Float32Products, Products, Scores, off_by, rounding

Floats = NDArray[np.float32]
Items = NDArray[np.int32]
Places = NDArray[np.int64]
Found = tuple[Places, Items, Floats]  # queries, items, scores
Seen = tuple[NDArray[np.int64], Items]

NOTHING = -1  # pads a list that ran out of items; its score is -inf
QUERIES = 64  # queries searched together
LEAST_GROUPS = 512  # groups of a block's items, of whose best the first floor is made
IN_CACHE = 1 << 19  # of more scores only those are looked at whose group's best reaches a floor
GROUP = 16  # items of a group, then
LANES = 64  # numbers that begin where the processor likes to read
MANY = 8  # where more than an eighth of all would be looked at, all are
AT_ONCE = 1 << 13  # numbers of the vectors that are scored one by one: so few that malloc does not map memory anew for each,
FEWEST = 128  # or so many vectors, where they are long
ROUGH_AT_ONCE = 1 << 15  # in single precision
MOST_CANDIDATES = 1 << 16  # candidates kept before the floors are raised; of long lists more

SIGN, LARGEST = np.uint32(1 << 31), np.uint32((1 << 32) - 1)  # bits of a float


def top_k(
    queries_BD: Floats,
    items_ND: Floats,
    k: int,
    *,
    seen: Seen | None = None,
    never: Items | None = None,
    allowed: Items | None = None,
    products: Products | None = None,
) -> tuple[Items, Floats]:
    """The `k` best items of each query by inner product, ordered by (-score, item).

    seen: (offsets [B + 1], items), what each query must not get; never: ascending items that none gets; allowed: ascending
    items to choose from in place of all (`never` is not asked then); products: of the same items, where they are at hand.
    Returns ids [B, K] and scores [B, K], K = min(k, items to choose from), padded with NOTHING and -inf.
    """
    if allowed is not None:
        return _among(queries_BD, items_ND, k, seen, allowed)
    k = min(k, len(items_ND))
    ids_BK = np.full((len(queries_BD), k), NOTHING, np.int32)
    scores_BK = np.full((len(queries_BD), k), -np.inf, np.float32)
    products = products or Float32Products(items_ND)
    products = products if products.suits(k) else products.finer
    for first in range(0, len(queries_BD) if k else 0, QUERIES):
        part = slice(first, first + QUERIES)
        chunk_BD = np.ascontiguousarray(queries_BD[part], np.float32)
        hidden = of_queries(seen or _nothing(len(queries_BD)), np.arange(first, first + len(chunk_BD)))
        _search(chunk_BD, items_ND, k, hidden, never, products, ids_BK[part], scores_BK[part])
    return ids_BK, scores_BK


def order(query_D: Floats, items_ND: Floats, candidates: NDArray[np.integer], k: int) -> tuple[Items, Floats]:
    """The best `k` of some items by (-score, item), scored in a fixed order of additions whatever else is asked."""
    scores = rescore(query_D, items_ND[candidates])
    best = np.lexsort((candidates, -scores))[:k]
    return candidates[best].astype(np.int32), scores[best]


def orders(
    queries_BD: Floats, items_ND: Floats, candidates_BC: NDArray[np.integer], k: int, seen: Seen | None = None
) -> tuple[Items, Floats]:
    """`order` of many queries at once, each of its own candidates, less what it has `seen`: the same lists, bit by bit.

    candidates_BC: in any order, an item more than once or not, padded with NOTHING. Returns ids [B, K] and scores [B, K],
    K = min(k, C), padded with NOTHING and -inf.
    """
    items_BC = np.sort(candidates_BC, axis=1).astype(np.int32)
    queries, items = np.repeat(np.arange(len(items_BC)), items_BC.shape[1]), items_BC.ravel()
    left_out_BC = items_BC == NOTHING
    left_out_BC[:, 1:] |= items_BC[:, 1:] == items_BC[:, :-1]
    if seen is not None:
        left_out_BC |= _are_seen(seen, queries, items, len(items_ND)).reshape(items_BC.shape)
    scores_BC = _scores(queries_BD, items_ND, queries, items).reshape(items_BC.shape)
    scores_BC[left_out_BC], items_BC[left_out_BC] = -np.inf, NOTHING
    # A number each, from the best: these are sorted many times as fast as pairs.
    keys_BC = ((LARGEST ^ _rank(scores_BC)).astype(np.uint64) << np.uint64(32)) | items_BC.view(np.uint32)
    keys_BK = np.sort(keys_BC, axis=1)[:, :k]
    return keys_BK.astype(np.uint32).view(np.int32), _of_rank(LARGEST ^ (keys_BK >> np.uint64(32)).astype(np.uint32))


def rescore(query: Floats, vectors_CD: Floats) -> Floats:
    """[C] inner products with one query [D] or with one each [C, D].

    NumPy sums each row by itself, so a row's result depends on that row alone; that of a matrix product does not.
    """
    scores: Floats = (vectors_CD.astype(np.float64) * query).sum(axis=1).astype(np.float32)
    return scores + np.float32(0)  # -0.0 is 0.0


def nearest(vectors_ND: Floats, items: Items, item: int, k: int) -> tuple[Items, Floats]:
    """The `k` of some `items` (ascending) nearest to one item by cosine, itself left out, by (-cosine, item)."""
    lengths_N = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND)), 1e-12)
    others = items[items != item]
    wanted_D = vectors_ND[item] / lengths_N[item]
    cosines = (vectors_ND @ wanted_D)[others] / lengths_N[others]
    if k < len(others):
        kth = np.partition(cosines, len(others) - k)[len(others) - k]
        others = others[cosines >= kth - 2 * rounding(vectors_ND.shape[1])]
    exact = (rescore(wanted_D, vectors_ND[others]) / lengths_N[others]).astype(np.float32)
    best = np.lexsort((others, -exact))[:k]
    return others[best], exact[best]


def _search(
    queries_BD: Floats,
    items_ND: Floats,
    k: int,
    hidden: Seen,
    never: Items | None,
    products: Products,
    ids_BK: Items,
    scores_BK: Floats,
) -> None:
    """Fill in the lists of up to QUERIES queries."""
    scores, rows = products.scores(queries_BD), products.rows(len(queries_BD))
    blocks = _by_block(hidden, rows, len(items_ND))
    most = max(products.crowded or len(items_ND), 4 * k)
    candidates = _Candidates(queries_BD, items_ND, k, scores, most, products.longest)
    for start, (queries, items) in zip(range(0, len(items_ND), rows), blocks, strict=True):
        scores_BR = scores.block(start, min(start + rows, len(items_ND)))
        scores_BR[queries, items - start] = -np.inf
        if never is not None:
            _hide(scores_BR, never, start)
        candidates.add(scores_BR, start)
    crowded = candidates.fill(ids_BK, scores_BK)
    if len(crowded):
        ids_CK, scores_CK = ids_BK[crowded], scores_BK[crowded]
        _search(queries_BD[crowded], items_ND, k, of_queries(hidden, crowded), never, products.finer, ids_CK, scores_CK)
        ids_BK[crowded], scores_BK[crowded] = ids_CK, scores_CK


def _hide(scores_BR: Floats, never: Items, start: int) -> None:
    """From all, in a block whose first column is item `start`."""
    first, last = np.searchsorted(never, [start, start + scores_BR.shape[1]])
    if first < last:  # added to all, since writing here and there takes longer
        hidden_R = np.zeros(scores_BR.shape[1], np.float32)
        hidden_R[never[first:last] - start] = -np.inf
        scores_BR += hidden_R


class _Candidates:
    """What may still be among the K best of each query, and the floors by which.

    A floor is a true K-th best score among some of the items: what cannot reach it is none of the K best.
    """

    def __init__(self, queries_BD: Floats, items_ND: Floats, k: int, scores: Scores, most: int, longest: float) -> None:
        """most: a query that has more candidates is crowded, and not looked at any further; longest: length of an item."""
        self._queries_BD, self._items_ND, self._k, self._scores, self._most = queries_BD, items_ND, k, scores, most
        self._floors_B: Floats | None = None
        self._is_crowded_B = np.zeros(len(queries_BD), bool)
        self._off_B = off_by(queries_BD, longest)
        self._found: list[Found] = []
        self._kept, self._room = 0, max(MOST_CANDIDATES, 8 * k * len(queries_BD))

    def add(self, scores_BR: Floats, start: int) -> None:
        """Look at a block of scores, whose first column is item `start`."""
        best_BG = _best_of_groups(scores_BR, self._k) if self._floors_B is None or scores_BR.size > IN_CACHE else None
        if self._floors_B is None:
            assert best_BG is not None
            self._floors_B = self._first_floors(scores_BR, best_BG, start)
        found = _reaching(scores_BR, best_BG, self._least(), start)
        self._found.append(found)
        self._kept += len(found[0])
        if self._kept > self._room:
            self._prune()

    def fill(self, ids_BK: Items, scores_BK: Floats) -> Places:
        """Each query's list by (-score, item), from the candidates' true scores. Returns the crowded queries, which are left
        out."""
        self._found = [self._all_found()]
        if self._scores.floors is not None or np.bincount(self._found[0][0], minlength=1).max() > self._most:
            self._prune()
        queries, items, _ = self._found[0]
        if self._scores.floors is None:
            queries, items = self._near_the_best(queries, items)
        _fill(queries, items, self._true(queries, items), ids_BK, scores_BK)
        return np.flatnonzero(self._is_crowded_B)

    def _all_found(self) -> Found:
        return _together(self._found)

    def _near_the_best(self, queries: Places, items: Items) -> tuple[Places, Items]:
        """Those that may be among the K best, by scores in single precision: true ones take several times as long."""
        queries, items, rough = self._rough(queries, items)
        is_told = np.isfinite(rough)  # sums of what is huge need not be
        rough[~is_told] = -np.inf
        least_B = self._kth(queries, rough) - 2 * self._off_B
        kept = (rough >= least_B[queries]) | ~is_told
        return queries[kept], items[kept]

    def _rough(self, queries: Places, items: Items) -> Found:
        """Query by query, with scores in single precision: by a product each, since pairs one by one take twice as long."""
        by_query = np.argsort(queries.astype(np.uint8), kind="stable")
        queries, items = queries[by_query], items[by_query]
        ends = np.cumsum(np.bincount(queries, minlength=len(self._queries_BD))).tolist()
        rough, step = np.empty(len(items), np.float32), max(FEWEST, ROUGH_AT_ONCE // self._items_ND.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for query_D, start, end in zip(self._queries_BD, [0, *ends], ends, strict=False):
                for first in range(start, end, step):
                    part = slice(first, min(first + step, end))
                    np.dot(self._items_ND.take(items[part], axis=0), query_D, out=rough[part])
        return queries, items, rough

    def _first_floors(self, scores_BR: Floats, best_BG: Floats, start: int) -> Floats:
        """[B] from the items of the first block that are no worse than the K-th best of the maxima of groups of them, and so K
        at least. -inf where there are not so many groups."""
        count, groups = best_BG.shape
        if self._k > groups:
            return np.full(count, -np.inf, np.float32)
        kth_B = np.partition(best_BG, groups - self._k, axis=1)[:, groups - self._k]
        kth_B[kth_B == -np.inf] = np.inf  # so few are none
        if self._scores.floors is not None:
            return np.where(kth_B == np.inf, np.float32(-np.inf), self._scores.floors(kth_B))
        return self._floors(*_reaching(scores_BR, best_BG, kth_B, start))

    def _least(self) -> Floats:
        """[B] what must be told of an item. Never -inf, which is told of those that must not be in a list."""
        assert self._floors_B is not None
        return np.where(self._is_crowded_B, np.float32(np.inf), self._scores.least(self._floors_B))

    def _prune(self) -> None:
        """Raise the floors, drop what cannot reach them, and all of the crowded queries."""
        assert self._floors_B is not None
        queries, items, scores = self._all_found()
        self._floors_B = np.maximum(self._floors_B, self._floors(queries, items, scores))
        kept = scores >= self._least()[queries]
        self._is_crowded_B |= np.bincount(queries[kept], minlength=len(self._queries_BD)) > self._most
        kept &= ~self._is_crowded_B[queries]
        self._found, self._kept = [(queries[kept], items[kept], scores[kept])], int(kept.sum())

    def _floors(self, queries: Places, items: Items, scores: Floats) -> Floats:
        """[B] the K-th best true score of each query's, or what it is not below; -inf for a query with fewer."""
        kth_B = self._kth(queries, scores)
        if self._scores.floors is not None:
            return np.where(kth_B == -np.inf, kth_B, self._scores.floors(kth_B))
        best = scores >= kth_B[queries]
        return self._kth(queries[best], self._true(queries[best], items[best]))

    def _kth(self, queries: Places, scores: Floats) -> Floats:
        return _kth_of_each(queries, scores, len(self._queries_BD), self._k)

    def _true(self, queries: Places, items: Items) -> Floats:
        return _scores(self._queries_BD, self._items_ND, queries, items)


def _are_seen(seen: Seen, queries: Places, items: Items, count: int) -> NDArray[np.bool_]:
    """For each pair whether the query has seen the item, of `count` items: by a number each, looked up all at once."""
    offsets, seen_items = seen
    of_seen = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return contains(of_seen * count + seen_items, queries * count + items)


def _scores(queries_BD: Floats, items_ND: Floats, queries: Places, items: NDArray[np.integer]) -> Floats:
    """Of pairs, each computed by itself, some at a time."""
    scores, step = np.empty(len(items), np.float32), max(FEWEST, AT_ONCE // items_ND.shape[1])
    for first in range(0, len(items), step):
        part = slice(first, first + step)
        scores[part] = rescore(queries_BD[queries[part]], items_ND[items[part]])
    return scores


def _fill(queries: Places, items: NDArray[np.integer], scores: Floats, ids_BK: Items, scores_BK: Floats) -> None:
    """Each query's list, its best by (-score, item)."""
    best = np.lexsort((items, -scores, queries))
    queries, items, scores = queries[best], items[best], scores[best]
    places = np.arange(len(items)) - np.searchsorted(queries, np.arange(len(ids_BK)))[queries]
    kept = places < ids_BK.shape[1]
    ids_BK[queries[kept], places[kept]] = items[kept]
    scores_BK[queries[kept], places[kept]] = scores[kept]


def _together(found: list[Found]) -> Found:
    queries, items, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return queries, items, scores


def _best_of_groups(scores_BR: Floats, k: int) -> Floats:
    """[B, G] the best of every G-th item: those that are left over at a block's end are in none. At least 4 K groups, if there
    are as many items."""
    rows = scores_BR.shape[1]
    groups = rows // GROUP // LANES * LANES if scores_BR.size > IN_CACHE else 0
    groups = min(max(LEAST_GROUPS, groups, 1 << (4 * k - 1).bit_length()), rows)
    # An overflow's NaN is nobody's best.
    best_BG: Floats = np.fmax.reduce(_in_groups(scores_BR, groups), axis=1, initial=-np.inf)
    return best_BG


def _in_groups(scores_BR: Floats, groups: int) -> Floats:
    """[B, R // G, G] of the same memory."""
    count, rows = scores_BR.shape
    return scores_BR[:, : rows // groups * groups].reshape(count, -1, groups)


def _reaching(scores_BR: Floats, best_BG: Floats | None, least_B: Floats, start: int) -> Found:
    """Which scores are no less than a query's least: queries, items and scores, in any order."""
    if best_BG is None or scores_BR.size <= IN_CACHE:
        return _at(scores_BR, least_B, start)
    rows, groups = scores_BR.shape[1], best_BG.shape[1]
    width = rows // groups
    hits = np.flatnonzero(best_BG >= least_B[:, None])
    if width * len(hits) > scores_BR.size // MANY:
        return _at(scores_BR, least_B, start)
    queries, group = np.divmod(hits, groups)
    of_groups_HW = _in_groups(scores_BR, groups)[queries, :, group]
    hit, place, scores = _where(of_groups_HW, of_groups_HW >= least_B[queries][:, None])
    found = queries[hit], (place * groups + group[hit] + start).astype(np.int32), scores
    if (whole := width * groups) == rows:
        return found
    return _together([found, _at(scores_BR[:, whole:], least_B, start + whole)])


def _at(scores_BR: Floats, least_B: Floats, start: int) -> Found:
    queries, columns, scores = _where(scores_BR, scores_BR >= least_B[:, None])
    return queries, (columns + start).astype(np.int32), scores


def _where(scores: Floats, mask: NDArray[np.bool_]) -> tuple[Places, Places, Floats]:
    """Rows, columns and scores; NumPy's own way takes many times as long."""
    rows, columns = np.divmod(np.flatnonzero(mask), scores.shape[1])
    return rows, columns, scores[rows, columns]


def _kth_of_each(queries: Places, scores: Floats, count: int, k: int) -> Floats:
    """[B] the K-th best score of each query's candidates, -inf for a query with fewer."""
    # A number each, by query and then from the best: these are sorted many times as fast as pairs.
    keys = np.sort((queries.astype(np.uint64) << np.uint64(32)) | (LARGEST ^ _rank(scores)))
    starts = np.searchsorted(keys, np.arange(count + 1, dtype=np.uint64) << np.uint64(32))
    kth_B = np.full(count, -np.inf, np.float32)
    has = np.diff(starts) >= k
    kth_B[has] = _of_rank(LARGEST ^ keys[starts[:-1][has] + k - 1].astype(np.uint32))
    return kth_B


def _rank(scores: Floats) -> NDArray[np.uint32]:
    """Whole numbers in the order of the scores: a float's bits are, but for its sign."""
    bits = scores.view(np.uint32)
    return bits ^ np.where(bits >= SIGN, LARGEST, SIGN)


def _of_rank(ranks: NDArray[np.uint32]) -> Floats:
    """The scores of these ranks."""
    return (ranks ^ np.where(ranks >= SIGN, SIGN, LARGEST)).view(np.float32)


def _nothing(count: int) -> Seen:
    """Hidden from so many queries."""
    return np.zeros(count + 1, np.int64), np.zeros(0, np.int32)


def of_queries(seen: Seen, queries: Places) -> Seen:
    """What is hidden from some queries."""
    offsets, items = seen
    parts = [items[offsets[query] : offsets[query + 1]] for query in queries]
    return np.cumsum([0, *map(len, parts)]), np.concatenate(parts)


def _by_block(hidden: Seen, rows: int, items: int) -> Iterator[tuple[Places, Items]]:
    """What some queries must not get, by block of items: (query, item)."""
    offsets, hidden_items = hidden
    queries = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    blocks = (hidden_items // rows).astype(np.uint16)
    by_block = np.argsort(blocks, kind="stable")
    ends = np.cumsum(np.bincount(blocks, minlength=-(-items // rows)))
    for first, last in zip([0, *ends], ends, strict=False):
        yield queries[by_block[first:last]], hidden_items[by_block[first:last]]


def _among(queries_BD: Floats, items_ND: Floats, k: int, seen: Seen | None, allowed: Items) -> tuple[Items, Floats]:
    if seen is not None:
        keep = np.isin(seen[1], allowed)
        offsets = np.concatenate([[0], np.cumsum(keep)])[seen[0]]
        seen = offsets, np.searchsorted(allowed, seen[1][keep]).astype(np.int32)
    places_BK, scores_BK = top_k(queries_BD, items_ND[allowed], k, seen=seen)
    ids_BK = np.where(places_BK == NOTHING, NOTHING, allowed[places_BK] if len(allowed) else NOTHING).astype(np.int32)
    return ids_BK, scores_BK
