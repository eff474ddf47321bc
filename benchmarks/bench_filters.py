"""A filter that leaves a share of the catalogue: over-fetching from the index, FAISS's own selector, and exact search.

python benchmarks/bench_filters.py [--items 100000] [--queries 200] [--smoke]

One query at a time, one thread, HNSW with the settings of a bundle. The allowed items are drawn at random (`even`), or those
nearest to a direction that has nothing to do with the query (`lumpy`, as a genre is), of which over-fetching finds fewer.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from common import publish, table
from threadpoolctl import threadpool_limits
from vectors import clustered

from recsys.config import IndexConfig
from recsys.retrieval import ann
from recsys.retrieval.filters import bucket, intersection
from recsys.retrieval.topk import NOTHING, order, top_k

K = 10
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
SPARE = 1.5  # times the candidates that allowed items would take if they lay evenly


def main() -> None:
    options = arguments()
    if options.smoke:
        options.items, options.queries = 5_000, 20
    faiss.omp_set_num_threads(1)
    items, queries = data(options)
    everything = np.arange(len(items), dtype=np.int32)
    index, report = ann.build(items, everything, IndexConfig(kind="hnsw"))
    rows = []
    with threadpool_limits(1):
        for kind in ("even", "lumpy"):
            for share in SHARES:
                allowed = drawn(kind, share, items)
                rows.append((kind, share, *measured(index, report, items, queries, allowed)))
    figures = {"rows": rows}
    publish("filters", "Filtered search", describe(rows, options), figures, vars(options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def data(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """As in bench_exact."""
    items, queries = clustered(np.random.default_rng(0), (options.items, options.queries), options.dim)
    return items, queries


def drawn(kind: str, share: float, items: np.ndarray) -> np.ndarray:
    """[.] ascending: the allowed items."""
    rng = np.random.default_rng(1)
    wanted = max(K, int(share * len(items)))
    if kind == "even":
        return np.sort(rng.permutation(len(items))[:wanted]).astype(np.int32)
    direction = rng.standard_normal(items.shape[1])
    return np.sort(np.argsort(-(items @ direction), kind="stable")[:wanted]).astype(np.int32)


def measured(index: Any, report: Any, items: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> list[float]:
    """Milliseconds of each way, then recall@10 of the first two, and how often over-fetching came out short."""
    exact, exact_ms = timed(lambda query: top_k(query[None], items, K, allowed=allowed)[0][0], queries)
    fetched, fetched_ms = timed(over_fetched(index, report, items, allowed), queries)
    selected, selected_ms = timed(by_selector(index, report, items, allowed), queries)
    recalls = [
        np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, exact, strict=True)]) for found in (fetched, selected)
    ]
    short = float(np.mean([len(found) < K for found in fetched]))
    return [exact_ms, fetched_ms, selected_ms, *map(float, recalls), short]


def over_fetched(index: Any, report: Any, items: np.ndarray, allowed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """More candidates than are wanted, and what is not allowed dropped."""
    size = min(len(items), bucket(int(ann.candidates(report, K) * SPARE * len(items) / len(allowed)) + 1))

    def search(query: np.ndarray) -> np.ndarray:
        found = ann.search(index, report, query[None], size)[0]
        kept = intersection(np.unique(found[found != NOTHING]).astype(np.int32), allowed)
        return order(query, items, kept, K)[0]

    return search


def by_selector(index: Any, report: Any, items: np.ndarray, allowed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """As `recsys.retrieval.searcher` does it: FAISS walks the graph through all items and keeps the allowed ones."""

    def search(query: np.ndarray) -> np.ndarray:
        may = np.zeros(len(items), bool)
        may[allowed] = True
        found = ann.search(index, report, query[None], ann.candidates(report, K), only_N=may)[0]
        return order(query, items, np.unique(found[found != NOTHING]).astype(np.int32), K)[0]

    return search


def timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> tuple[list[np.ndarray], float]:
    """What each query found, and the median milliseconds."""
    found, taken = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(search(query))
        taken.append(1000 * (time.perf_counter() - began))
    return found, float(np.median(taken))


def describe(rows: list[tuple[Any, ...]], options: argparse.Namespace) -> str:
    headers = ("allowed", "share", "exact ms", "over-fetch ms", "selector ms", "its recall@10", "selector's", "short")
    shown = [(kind, share, *(round(value, 3) for value in rest)) for kind, share, *rest in rows]
    return f"""
`python benchmarks/bench_filters.py`: top {K} of the allowed among {options.items:,} items of {options.dim} dimensions, one
query at a time on one thread, medians of {options.queries}. Over-fetching asks HNSW for {SPARE} times what the share says and
drops the rest; `short` is how often fewer than {K} were left, which exact search then completes. The selector is what is
served: FAISS keeps only the allowed, and looks as much further as they are fewer. `even` items are drawn at random, `lumpy`
ones lie on one side, as a genre's do. Below a quarter the searcher goes exactly, which costs what the selector does.

{table(headers, shown)}
"""


if __name__ == "__main__":
    main()
