"""From a vector to a list, by approximate or exact search: which of the two, and that the list is never short.

Shapes: B queries, N items, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.read import Bundle
from recsys.retrieval import ann
from recsys.retrieval.filters import Items, bucket, compressed, contains, intersection, without
from recsys.retrieval.requests import ServedBy
from recsys.retrieval.topk import NOTHING, largest_norm, order, top_k

FEW = 4096  # so many allowed items are scored one by one, faster than anything cleverer
MOST_FETCHED = 4096  # candidates the index is asked for; a request that hides more is answered exactly
LEAST_SHARE = 8  # ... or more than an eighth of the index
BROAD = 2  # ... or whose allowed items are less than half: more of the best may be filtered out (docs/benchmarks/filters.md)
SPARE = 1.5  # times the candidates that allowed items would take if they lay evenly
NARROWED = "so long or so narrowed a list is searched for exactly"


@dataclass(frozen=True)
class Query:
    """vector: [D], None for whom nothing personal is known; hidden, allowed: ascending items never, or only, to find."""

    vector: NDArray[np.float32] | None
    k: int
    hidden: Items
    allowed: Items | None = None
    mode: str = "auto"


@dataclass(frozen=True)
class Found:
    """A list by (-score, item), the path that made it, and why not the path that was asked for."""

    items: Items
    scores: NDArray[np.float32]
    path: ServedBy
    reason: str | None = None


class Searcher:
    """Answers queries with a vector from the item vectors and the index of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.item_vectors is not None and bundle.indexed is not None and bundle.manifest.index is not None
        self._index, self._report, self._indexed = bundle.index, bundle.manifest.index, bundle.indexed
        self._vectors_ND = bundle.item_vectors
        self._never = without(np.arange(len(self._vectors_ND)), self._indexed)
        self._largest = largest_norm(self._vectors_ND)
        self._why_exact = _why_exact(bundle)

    def search(self, queries: Sequence[Query]) -> list[Found]:
        """A list for each query. If `k` eligible items exist, `k` are found, and no list depends on the other queries."""
        found: dict[int, Found] = {}
        for size, places in self._by_fetch(queries).items():
            found |= self._ann(queries, places, size)
        for place, query in enumerate(queries):
            if query.allowed is not None and place not in found:
                found[place] = self._among(query)
        missing = [place for place in range(len(queries)) if place not in found]
        for size, places in _grouped(missing, [bucket(queries[place].k) for place in missing]).items():
            found |= self._exact(queries, places, size)
        return [found[place] for place in range(len(queries))]

    def _by_fetch(self, queries: Sequence[Query]) -> dict[int, list[int]]:
        """Queries for the index, by how many candidates each needs, which depends on nothing but the query."""
        if self._why_exact is not None:
            return {}
        wanted = [place for place, query in enumerate(queries) if query.mode != "exact" and self._is_broad(query)]
        sizes = {place: bucket(self._wanted(queries[place])) for place in wanted}
        most = min(MOST_FETCHED, len(self._indexed) // LEAST_SHARE)
        fit = [place for place in wanted if sizes[place] <= most]
        return _grouped(fit, [sizes[place] for place in fit])

    def _is_broad(self, query: Query) -> bool:
        return query.allowed is None or BROAD * len(query.allowed) >= len(self._indexed)

    def _wanted(self, query: Query) -> int:
        """Candidates that most likely hold enough of what may be listed."""
        candidates = ann.candidates(self._report, query.k) + len(query.hidden)
        return candidates if query.allowed is None else int(candidates * SPARE * len(self._indexed) / len(query.allowed)) + 1

    def _ann(self, queries: Sequence[Query], places: list[int], size: int) -> dict[int, Found]:
        """Lists from the index; without those that came out short, which exact search then completes."""
        vectors_BD = _stacked(queries, places)
        found = {}
        for place, candidates in zip(places, ann.search(self._index, self._report, vectors_BD, size), strict=True):
            query = queries[place]
            kept = without(np.unique(candidates[candidates != NOTHING]), query.hidden)
            if query.allowed is not None:
                kept = intersection(kept, query.allowed)
            if len(kept) >= min(query.k, self._eligible(query)):
                found[place] = Found(*order(_vector(query), self._vectors_ND, kept, query.k), "ann")
        return found

    def _eligible(self, query: Query) -> int:
        if query.allowed is not None:
            return len(without(intersection(query.allowed, self._indexed), query.hidden))
        return len(self._indexed) - int(contains(self._indexed, query.hidden).sum())

    def _exact(self, queries: Sequence[Query], places: list[int], size: int) -> dict[int, Found]:
        seen = compressed([queries[place].hidden for place in places])
        vectors_BD = _stacked(queries, places)
        ids_BK, scores_BK = top_k(vectors_BD, self._vectors_ND, size, seen=seen, never=self._never, largest=self._largest)
        return {
            place: self._cut(queries[place], ids, scores) for place, ids, scores in zip(places, ids_BK, scores_BK, strict=True)
        }

    def _cut(self, query: Query, ids: Items, scores: NDArray[np.float32]) -> Found:
        end = min(query.k, int((ids != NOTHING).sum()))
        return Found(ids[:end], scores[:end], "exact", self._reason(query))

    def _among(self, query: Query) -> Found:
        """The best of the allowed items: the fewer they are, the less it costs, which no index can say."""
        assert query.allowed is not None
        candidates = without(intersection(query.allowed, self._indexed), query.hidden)
        if len(candidates) <= FEW:
            return Found(*order(_vector(query), self._vectors_ND, candidates, query.k), "exact", self._reason(query))
        ids_BK, scores_BK = top_k(_vector(query)[None], self._vectors_ND, query.k, allowed=candidates)
        return self._cut(query, ids_BK[0], scores_BK[0])

    def _reason(self, query: Query) -> str | None:
        """Why the exact path, where that needs saying: not to who asked for it, nor where it is simply the better one."""
        if query.mode == "exact" or (query.mode == "auto" and ann.is_exact(self._report)):
            return None
        return self._why_exact or (NARROWED if query.mode == "ann" else None)


def _why_exact(bundle: Bundle) -> str | None:
    """Why the index is not asked at all; None if it is."""
    report = bundle.manifest.index
    assert report is not None
    if ann.is_exact(report):
        return "the catalogue is small enough for exact search"
    if report.recall_low < bundle.manifest.recall_floor:
        return f"the index missed too much at its audit: recall@10 at least {report.recall_low:.3f}, below the floor"
    return None


def _stacked(queries: Sequence[Query], places: list[int]) -> NDArray[np.float32]:
    return np.stack([_vector(queries[place]) for place in places])


def _vector(query: Query) -> NDArray[np.float32]:
    assert query.vector is not None
    return query.vector


def _grouped(places: Sequence[int], sizes: Sequence[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for place, size in zip(places, sizes, strict=True):
        groups.setdefault(size, []).append(place)
    return groups
