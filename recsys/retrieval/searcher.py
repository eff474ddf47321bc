"""From a vector to a list, by approximate or exact search: which of the two, and that the list is never short.

Shapes: B queries, N items, D dimensions.
"""

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.manifest import IndexReport
from recsys.bundle.read import Bundle
from recsys.errors import ConfigError
from recsys.retrieval import ann
from recsys.retrieval.audit import Audit
from recsys.retrieval.catalogue import NO_ITEMS
from recsys.retrieval.filters import Items, bucket, compressed, contains, without
from recsys.retrieval.requests import ServedBy
from recsys.retrieval.topk import NOTHING, order, orders, top_k

if TYPE_CHECKING:
    from recsys.retrieval.gpu import GpuSearch

FEW = 4096  # so many allowed items are scored one by one, faster than anything cleverer
MOST_FETCHED = 4096  # candidates the index is asked for; a request that hides more is answered exactly
LEAST_SHARE = 8  # ... or more than an eighth of what it may find
BROAD = 4  # ... or that allows less than a quarter: the index would miss more, and cost as much (docs/benchmarks/filters.md)
MISSES = "the index has missed too much of late"
DEGRADED = "the index has missed too much of late, and there is no time to search exactly"
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
    """A list by (-score, item), the path that made it, and why not the path that was asked for, or why it is a worse one."""

    items: Items
    scores: NDArray[np.float32]
    path: ServedBy
    reason: str | None = None
    degraded: bool = False


class _Told(NamedTuple):
    """For the time of one search: why the index is not asked at all, and why it is though it misses too much."""

    why_exact: str | None = None
    degraded: str | None = None
    prefers_exact: bool = False  # the index is asked by who names it alone


class Searcher:
    """Answers queries with a vector from the item vectors and the index of a bundle."""

    def __init__(self, bundle: Bundle, audit: Audit | None = None, device: str | None = None) -> None:
        """audit: watches what the index misses; without, it is trusted as it was measured at export. device: where exact
        search multiplies, PyTorch's name for it: then the index, which misses things, is left to who names it. Raises
        ConfigError where there is none such."""
        assert bundle.item_vectors is not None and bundle.indexed is not None and bundle.manifest.index is not None
        self._index, self._report, self._indexed = bundle.index, bundle.manifest.index, bundle.indexed
        self._vectors_ND = bundle.item_vectors
        self._never = without(np.arange(len(self._vectors_ND)), self._indexed)
        self._listed_N = np.zeros(len(self._vectors_ND), bool)
        self._listed_N[self._indexed] = True
        self._gpu = None if device is None else _gpu_search(self._vectors_ND, self._never, device)
        self._told = _Told(_why_exact(bundle), prefers_exact=self._gpu is not None)
        self._products = ann.products_of(self._vectors_ND, self._indexed, self._report) if self._gpu is None else None
        self.audit = None if self._told.why_exact or self._gpu is not None else audit

    def search(self, queries: Sequence[Query]) -> list[Found]:
        """A list for each query. If `k` eligible items exist, `k` are found, and no list depends on the other queries."""
        if self.audit is None:
            return self._search(queries, self._told)
        asked = [query for query in queries if query.mode != "exact"]
        told, began = self._judged(self.audit, len(asked)), time.perf_counter()
        found = self._search(queries, told)
        if told.why_exact is not None and asked:
            self.audit.took((time.perf_counter() - began) * len(asked) / len(queries))
        if asked:
            self.audit.offer(partial(self._recall, asked[0]))
        return found

    def _judged(self, audit: Audit, queries: int) -> _Told:
        """What the audit says."""
        if audit.trusted:
            return self._told
        if audit.may_go_exact(queries):
            return _Told(why_exact=MISSES)
        return _Told(degraded=DEGRADED)

    def _recall(self, query: Query) -> float | None:
        return self.recalls([query])[0]

    def recalls(self, queries: Sequence[Query]) -> list[float | None]:
        """Of each query the share of its exact list that the index finds, trusted or not; None where it is not asked."""
        if self._index is None:
            return [None] * len(queries)
        by_index = self._search(queries, _Told())
        asked = [place for place, found in enumerate(by_index) if found.path == "ann"]
        exact = self._search([replace(queries[place], mode="exact") for place in asked], _Told())
        recalls: list[float | None] = [None] * len(queries)
        for place, found in zip(asked, exact, strict=True):
            if len(found.items):
                recalls[place] = len(np.intersect1d(by_index[place].items, found.items)) / len(found.items)
        return recalls

    def tuned(self, report: IndexReport) -> "Searcher":
        """This one with other settings of its index."""
        other = copy(self)
        other._report = report
        return other

    def _search(self, queries: Sequence[Query], told: _Told) -> list[Found]:
        found = {place: self._narrowed(query, told) for place, query in enumerate(queries) if query.allowed is not None}
        for size, places in self._by_fetch(queries, told).items():
            found |= self._ann(queries, places, size, told)
        missing = [place for place in range(len(queries)) if place not in found]
        for size, places in _grouped(missing, [bucket(queries[place].k) for place in missing]).items():
            found |= self._exact(queries, places, size, told)
        return [found[place] for place in range(len(queries))]

    def _by_fetch(self, queries: Sequence[Query], told: _Told) -> dict[int, list[int]]:
        """Queries for all of the index, by how many candidates each needs, which depends on nothing but the query."""
        wanted = [place for place, query in enumerate(queries) if query.allowed is None and _asks_index(query, told)]
        sizes = {place: bucket(self._candidates(queries[place]) + len(queries[place].hidden)) for place in wanted}
        fit = [place for place in wanted if _is_worth(sizes[place], len(self._indexed))]
        return _grouped(fit, [sizes[place] for place in fit])

    def _candidates(self, query: Query) -> int:
        return ann.candidates(self._report, query.k)

    def _ann(self, queries: Sequence[Query], places: list[int], size: int, told: _Told) -> dict[int, Found]:
        """Lists from the index; without those that came out short, which exact search then completes."""
        vectors_BD = _stacked(queries, places)
        candidates_BC = ann.search(self._index, self._report, vectors_BD, size)
        seen = compressed([queries[place].hidden for place in places])
        longest = max(queries[place].k for place in places)
        found = {}
        for place, ids, scores in zip(places, *orders(vectors_BD, self._vectors_ND, candidates_BC, longest, seen), strict=True):
            query = queries[place]
            end = min(query.k, int((ids != NOTHING).sum()))
            if end >= min(query.k, self._eligible(query)):
                found[place] = _by_index(ids[:end], scores[:end], told)
        return found

    def _eligible(self, query: Query) -> int:
        return len(self._indexed) - int(contains(self._indexed, query.hidden).sum())

    def _narrowed(self, query: Query, told: _Told) -> Found:
        """The best of the allowed items: by the index where they are many; the fewer they are, the less exact search costs."""
        may_N = self._may(query)
        eligible = int(np.count_nonzero(may_N))
        if _asks_index(query, told) and self._suits_index(query, eligible):
            candidates = ann.search(self._index, self._report, _vector(query)[None], self._candidates(query), only_N=may_N)[0]
            kept = np.unique(candidates[candidates != NOTHING]).astype(np.int32)
            if len(kept) >= min(query.k, eligible):
                return _by_index(*order(_vector(query), self._vectors_ND, kept, query.k), told)
        return self._among(query, may_N, told)

    def _may(self, query: Query) -> NDArray[np.bool_]:
        """[N] what may be listed: marks, since they cost less than looking up a hundred thousand items in one another."""
        may_N = np.zeros(len(self._vectors_ND), bool)
        may_N[query.allowed] = True
        may_N &= self._listed_N
        may_N[query.hidden] = False
        return may_N

    def _suits_index(self, query: Query, eligible: int) -> bool:
        is_broad = BROAD * eligible >= len(self._indexed)
        return is_broad and _is_worth(self._candidates(query), eligible) and ann.can_narrow(self._report)

    def _exact(self, queries: Sequence[Query], places: list[int], size: int, told: _Told) -> dict[int, Found]:
        seen = compressed([queries[place].hidden for place in places])
        vectors_BD = _stacked(queries, places)
        if self._gpu is not None:
            ids_BK, scores_BK = self._gpu.top_k(vectors_BD, size, seen)
        else:
            ids_BK, scores_BK = top_k(vectors_BD, self._vectors_ND, size, seen=seen, never=self._never, products=self._products)
        return dict(zip(places, self._cut([queries[place] for place in places], ids_BK, scores_BK, told), strict=True))

    def _cut(self, queries: Sequence[Query], ids_BK: Items, scores_BK: NDArray[np.float32], told: _Told) -> list[Found]:
        ends = (ids_BK != NOTHING).sum(axis=1).tolist()
        ends = [min(query.k, end) for query, end in zip(queries, ends, strict=True)]
        return [
            Found(ids[:end], scores[:end], "exact", self._reason(query, told))
            for query, end, ids, scores in zip(queries, ends, ids_BK, scores_BK, strict=True)
        ]

    def _among(self, query: Query, may_N: NDArray[np.bool_], told: _Told) -> Found:
        candidates = np.flatnonzero(may_N).astype(np.int32)
        if len(candidates) <= FEW:
            return Found(*order(_vector(query), self._vectors_ND, candidates, query.k), "exact", self._reason(query, told))
        if self._gpu is not None:
            ids_BK, scores_BK = self._gpu.top_k(_vector(query)[None], query.k, compressed([NO_ITEMS]), may_N)
        else:
            ids_BK, scores_BK = top_k(_vector(query)[None], self._vectors_ND, query.k, allowed=candidates)
        return self._cut([query], ids_BK, scores_BK, told)[0]

    def _reason(self, query: Query, told: _Told) -> str | None:
        """Why the exact path, where that needs saying: not to who asked for it, nor where it is simply the better one."""
        if query.mode == "exact" or (query.mode == "auto" and (told.prefers_exact or ann.is_exact(self._report))):
            return None
        return told.why_exact or (NARROWED if query.mode == "ann" else None)


def _gpu_search(items_ND: NDArray[np.float32], never: Items, device: str) -> "GpuSearch":
    """Exact search on a device. Raises ConfigError where it cannot be."""
    try:
        from recsys.retrieval.gpu import GpuSearch  # loads torch, which nothing else here needs

        return GpuSearch(items_ND, never, device)
    except (ImportError, RuntimeError, AssertionError) as error:  # PyTorch's, of devices that are not there or full
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"search on {device}: {why}. Free it, or serve without it: --gpus 0.") from None


def _by_index(items: Items, scores: NDArray[np.float32], told: _Told) -> Found:
    return Found(items, scores, "ann", told.degraded, told.degraded is not None)


def _asks_index(query: Query, told: _Told) -> bool:
    return told.why_exact is None and (query.mode == "ann" or (query.mode == "auto" and not told.prefers_exact))


def _is_worth(candidates: int, items: int) -> bool:
    """Whether an index is asked for so many of so many items."""
    return candidates <= min(MOST_FETCHED, items // LEAST_SHARE)


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
