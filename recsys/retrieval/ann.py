"""Approximate search by FAISS: build the index that suits the catalogue, search it, measure what it misses.

Shapes: B queries, N items, M of them indexed, D dimensions.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recsys.bundle.manifest import IndexReport
from recsys.config import IndexConfig
from recsys.retrieval import indexes
from recsys.retrieval.filters import contains
from recsys.retrieval.indexes import Floats, Kind
from recsys.retrieval.products import Float32Products, Int8Products, Products
from recsys.retrieval.topk import NOTHING, rescore, top_k

AUDIT_K = 10
AUDIT_BATCH = 64
OVER_FETCH = 16  # candidates beyond k, so that rounding inside the index cannot move the border of a list
FEWEST = 2  # items that there is anything to be learnt from
CODES_UNTIL = 20_000  # items up to which codes are scanned: the scan is FAISS's, which gains nothing from a batch
PROBES = 8  # items that an index is asked for by their own vectors


def choose(items: int, config: IndexConfig) -> Kind:
    """Which index suits a catalogue of this size."""
    if config.kind != "auto":
        return config.kind
    flat_until = config.flat_until if config.storage == "fp32" else min(config.flat_until, CODES_UNTIL)
    return "flat" if items <= flat_until else "hnsw" if items <= config.hnsw_until else "ivf"


def build(item_vectors_ND: Floats, indexed: NDArray[np.int32], config: IndexConfig) -> tuple[Any, IndexReport]:
    """An inner-product index of the `indexed` items (ascending), its ids item numbers, and a report not yet measured."""
    whole = len(indexed) == len(item_vectors_ND)  # a copy of ten million vectors is gigabytes
    vectors_MD = np.ascontiguousarray(item_vectors_ND if whole else item_vectors_ND[indexed], np.float32)
    kind, storage = choose(len(indexed), config), config.storage
    if len(indexed) < FEWEST:
        kind, storage = "flat", "fp32"
    index, parameters = indexes.build(vectors_MD, indexed.astype(np.int64), kind, storage, config)
    apart = 0.0 if storage == "fp32" else difference(index, item_vectors_ND, indexed)
    unmeasured = {"recall_at_10": 0.0, "recall_low": 0.0, "users": 0, "ann_ms": 0.0, "exact_ms": 0.0}
    made = {"kind": kind, "storage": storage, "parameters": parameters, "difference": apart, "indexed": len(indexed)}
    return index, IndexReport.model_validate(made | unmeasured)


def is_exact(report: IndexReport) -> bool:
    """Whether the index leaves nothing out and rounds nothing, so that exact search says the same, and faster."""
    return report.kind == "flat" and report.storage == "fp32"


def candidates(report: IndexReport, k: int) -> int:
    """How many items the index is asked for, to be rescored with the full vectors, for a list of `k`."""
    return k * report.parameters.get("rerank", 1) + OVER_FETCH


def difference(index: Any, item_vectors_ND: Floats, indexed: NDArray[np.int32]) -> float:
    """How far scores by the index are from those of the vectors by the same ids, asked for a few of its own items.

    The largest, as a share of the list's largest score or, where that is below 1, as it is. Infinite where an id is none of
    the `indexed` (ascending).
    """
    probes = indexed[np.linspace(0, len(indexed) - 1, min(PROBES, len(indexed))).astype(int)]
    queries_BD = np.ascontiguousarray(item_vectors_ND[probes], np.float32)
    furthest = 0.0
    for query_D, scores, ids in zip(queries_BD, *index.search(queries_BD, min(AUDIT_K, len(indexed))), strict=True):
        scores, ids = scores[ids != NOTHING], ids[ids != NOTHING]
        if not contains(indexed, ids).all():
            return math.inf
        expected = rescore(query_D, item_vectors_ND[ids])
        furthest = max(furthest, float(np.abs(scores - expected).max(initial=0) / np.abs(expected).max(initial=1)))
    return furthest


def can_narrow(report: IndexReport) -> bool:
    """Whether `search` takes `only_N`. FAISS scans codes of product quantization without a graph or cells as a whole."""
    return not (report.kind == "flat" and report.storage == "pq")


def search(
    index: Any, report: IndexReport, queries_BD: Floats, k: int, *, only_N: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """[B, k] items that are probably among the best, in no promised order, padded with NOTHING.

    A query's result depends on it, `k` and `only_N` alone, not on the batch. only_N: [N] the items that may be found, where
    not all; the fewer of them, the more of the index is looked at. For an index that `can_narrow`.
    """
    queries_BD = np.ascontiguousarray(queries_BD, np.float32)
    # FAISS reads the bits where they lie: they must outlast the search.
    bits = None if only_N is None else np.packbits(only_N, bitorder="little")
    widened = 1.0 if only_N is None else report.indexed / max(int(np.count_nonzero(only_N)), 1)
    found: NDArray[np.int64] = index.search(queries_BD, k, params=_search_parameters(report, k, bits, widened))[1]
    return found


def audit(
    index: Any, report: IndexReport, queries_BD: Floats, item_vectors_ND: Floats, indexed: NDArray[np.int32]
) -> IndexReport:
    """The report with recall@10 against exact search, its 95% lower bound over users, and both latencies.

    queries_BD: vectors of real users, one row a user.
    """
    k = min(AUDIT_K, len(indexed))
    never = np.setdiff1d(np.arange(len(item_vectors_ND), dtype=np.int32), indexed)
    products = products_of(item_vectors_ND, indexed, report)
    exact_BK, exact_ms = _timed(lambda part: top_k(part, item_vectors_ND, k, never=never, products=products)[0], queries_BD)
    ann_BK, ann_ms = _timed(lambda part: search(index, report, part, candidates(report, k)), queries_BD)
    hits_B = [len(np.intersect1d(exact, ann)) / max(k, 1) for exact, ann in zip(exact_BK, ann_BK, strict=True)]
    measured = {"recall_at_10": float(np.mean(hits_B)), "recall_low": lower_bound(np.array(hits_B)), "users": len(queries_BD)}
    return report.model_copy(update=measured | {"ann_ms": ann_ms, "exact_ms": exact_ms})


def products_of(item_vectors_ND: Floats, indexed: NDArray[np.int32], report: IndexReport) -> Products:
    """What exact search multiplies by: bytes, which are held beside the vectors, where all of it is always searched."""
    return Int8Products(item_vectors_ND, indexed) if is_exact(report) else Float32Products(item_vectors_ND)


def lower_bound(recalls_B: NDArray[np.float64]) -> float:
    """95% one-sided lower bound of the mean recall over users.

    By Wilson's score interval with each user's recall as a share of successes: it stays below 1 where every user had all,
    unlike a bound from the spread between users, which would be 0 wide there. A share varies less than a coin, so the
    bound is on the safe side.
    """
    users, mean, z = len(recalls_B), float(recalls_B.mean()), 1.6449
    centre = mean + z * z / (2 * users)
    spread = z * math.sqrt(mean * (1 - mean) / users + z * z / (4 * users * users))
    return max(0.0, (centre - spread) / (1 + z * z / users))


def _timed(search_part: Callable[[Floats], NDArray[Any]], queries_BD: Floats) -> tuple[NDArray[Any], float]:
    """Results in batches, and the median milliseconds a query on one thread."""
    parts, took = [], []
    with threadpool_limits(1):
        for start in range(0, len(queries_BD), AUDIT_BATCH):
            part, began = queries_BD[start : start + AUDIT_BATCH], time.perf_counter()
            parts.append(search_part(part))
            took.append((time.perf_counter() - began) * 1000 / len(part))
    return np.concatenate(parts), float(np.median(took))


def _search_parameters(report: IndexReport, k: int, bits: NDArray[np.uint8] | None, widened: float) -> Any:
    """Settings of one search; among the items of `bits` alone, it goes `widened` times as far as among all."""
    made: Any = faiss  # its type stubs lack what SWIG wraps
    selected = {} if bits is None else {"sel": made.IDSelectorBitmap(bits)}
    if report.kind == "hnsw":
        return made.SearchParametersHNSW(efSearch=max(round(report.parameters["ef_search"] * widened), k), **selected)
    if report.kind == "ivf":
        probes = min(round(report.parameters["probes"] * widened), report.parameters["lists"])
        cells = made.SearchParametersHNSW(efSearch=4 * probes)
        return made.SearchParametersIVF(nprobe=probes, quantizer_params=cells, **selected)
    return made.SearchParameters(**selected) if selected else None


__all__ = ["NOTHING", "audit", "build", "can_narrow", "candidates", "choose", "difference", "is_exact", "lower_bound", "search"]
