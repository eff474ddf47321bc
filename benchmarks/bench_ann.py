"""Approximate against exact search as the catalogue grows, at recall@10 ≥ .99, with usearch and plain FAISS HNSW beside ours.

python benchmarks/bench_ann.py [--items 30000 100000 300000 1000000] [--dim 64] [--k 10] [--threads 1] [--runs 5]

Vectors: a truncated SVD of ml-1m gives item and user vectors; catalogues of any size are resampled from them with noise.
usearch is measured where it is installed (`pip install usearch`).
"""

import argparse
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import scipy.sparse
from common import interleave, publish, spread, table
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from recsys.config import IndexConfig
from recsys.retrieval import ann
from recsys.retrieval.products import Int8Products
from recsys.retrieval.topk import orders, top_k

BATCH, RECALL = 64, 0.99
EFS = (16, 32, 64, 128, 256, 512, 1024, 2048)
Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    options = arguments()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    results = {str(items): measure(items, options) for items in options.items}
    wins = {f"ann_wins_{key}_from": wins_from(results, key) for key in ("ms", "alone_ms")}
    figures = {"sizes": results} | wins
    if not options.page:
        print(describe(figures, options))
        return
    publish(options.page, "Approximate search", describe(figures, options), figures, vars(options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--k", type=int, default=10, help="length of the lists")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--noise", type=float, default=0.5, help="share of a vector's length that is noise")
    parser.add_argument("--threads", type=int, default=1, help="while searching; building takes all cores")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--page", default="ann", help="name of the page under docs/benchmarks; empty: none is written")
    return parser.parse_args()


def measure(items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a query in batches of 64 and alone, recall, effort and build seconds of each contender on one catalogue."""
    vectors, queries = data(items, options)
    truth = top_k(queries, vectors, options.k)[0]
    built = {name: build(vectors, options.k) for name, build in BUILDERS.items() if build is not None}
    results, searches = {}, {}
    with threadpool_limits(options.threads):
        for name, (seconds, at_effort) in built.items():
            effort, recall = least_effort(at_effort, queries, truth)
            results[name] = {"effort": effort, "recall": round(recall, 4), "build_s": round(seconds, 1)}
            searches[name] = at_effort(effort)
        for key, batch in (("ms", BATCH), ("alone_ms", 1)):
            contenders = {name: in_batches(search, queries, batch) for name, search in searches.items()}
            for name, values in interleave(contenders, runs=options.runs).items():
                results[name][key] = spread([1000 * value / len(queries) for value in values])
    return results


def data(items: int, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    item_vectors, user_vectors = trained(options.dim)
    rng = np.random.default_rng(0)
    return tuple(
        resampled(base, count, options.noise, rng) for base, count in ((item_vectors, items), (user_vectors, options.queries))
    )


def resampled(base: np.ndarray, count: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors near those of `base`, so that clusters, popularity and the spread over dimensions stay as they were."""
    chosen = base[rng.integers(0, len(base), count)]
    lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
    scattered = chosen + noise * rng.standard_normal(chosen.shape) * lengths / base.shape[1] ** 0.5
    return (scattered / np.linalg.norm(scattered, axis=1, keepdims=True)).astype(np.float32)


def trained(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Item and user vectors of ml-1m.txt by truncated SVD."""
    with zipfile.ZipFile(Path(os.environ["RECSYS_DATA"]) / "ml-1m.zip") as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("/ml-1m.txt")))
    pairs = np.array(text.split(), np.int64).reshape(-1, 2)
    matrix = scipy.sparse.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])))
    users, strength, items = svds(matrix, dim, random_state=0)
    users, items = users * np.sqrt(strength), items.T * np.sqrt(strength)
    return tuple(vectors[np.linalg.norm(vectors, axis=1) > 1e-6] for vectors in (items, users))


def least_effort(at_effort: Callable[[int], Search], queries: np.ndarray, truth: np.ndarray) -> tuple[int, float]:
    """The smallest search effort that reaches the recall, or the largest there is."""
    for effort in EFS:
        found = at_effort(effort)(queries)
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(truth, found, strict=True)]))
        if recall >= RECALL:
            break
    return effort, recall


def wins_from(results: dict[str, Any], key: str) -> int | None:
    """The smallest size at which ours takes less time than exact search."""
    return min((int(n) for n, of in results.items() if of["ours"][key]["median"] < of["exact"][key]["median"]), default=None)


def in_batches(search: Search, queries: np.ndarray, batch: int) -> Callable[[], Any]:
    return lambda: [search(queries[first : first + batch]) for first in range(0, len(queries), batch)]


def build_exact(vectors: np.ndarray, k: int) -> tuple[float, Callable[[int], Search]]:
    began = time.perf_counter()
    products = Int8Products(vectors)
    return time.perf_counter() - began, lambda effort: lambda queries: top_k(queries, vectors, k, products=products)[0]


def build_ours(vectors: np.ndarray, k: int) -> tuple[float, Callable[[int], Search]]:
    """As the Recommender searches: over-fetched, rescored one by one, sorted by (-score, item)."""
    began = time.perf_counter()
    index, report = ann.build(vectors, np.arange(len(vectors), dtype=np.int32), IndexConfig(kind="hnsw"))
    seconds = time.perf_counter() - began

    def at_effort(effort: int) -> Search:
        tuned = report.model_copy(update={"parameters": report.parameters | {"ef_search": effort}})

        def search(queries: np.ndarray) -> np.ndarray:
            return orders(queries, vectors, ann.search(index, tuned, queries, ann.candidates(tuned, k)), k)[0]

        return search

    return seconds, at_effort


def build_faiss(vectors: np.ndarray, k: int) -> tuple[float, Callable[[int], Search]]:
    """The same graph by FAISS alone, as its wiki shows it."""
    began = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], IndexConfig().hnsw_m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = IndexConfig().hnsw_ef_construction
    index.add(vectors)
    seconds = time.perf_counter() - began
    return (
        seconds,
        lambda effort: lambda queries: index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=effort))[1],
    )


def build_usearch(vectors: np.ndarray, k: int) -> tuple[float, Callable[[int], Search]]:
    from usearch.index import Index

    began = time.perf_counter()
    config = IndexConfig()
    more = {"connectivity": config.hnsw_m, "expansion_add": config.hnsw_ef_construction}
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", **more)
    index.add(np.arange(len(vectors)), vectors)
    seconds = time.perf_counter() - began

    def at_effort(effort: int) -> Search:
        def search(queries: np.ndarray) -> np.ndarray:
            index.expansion_search = effort
            return index.search(queries, k, threads=1).keys.astype(np.int64)

        return search

    return seconds, at_effort


def usearch_or_none() -> Callable[[np.ndarray, int], Any] | None:
    try:
        import usearch  # noqa: F401
    except ImportError:
        return None
    return build_usearch


BUILDERS = {"exact": build_exact, "ours": build_ours, "faiss hnsw": build_faiss, "usearch": usearch_or_none()}


def describe(figures: dict[str, Any], options: argparse.Namespace) -> str:
    rows = [
        (
            f"{int(items):,}",
            name,
            *(value["ms"][key] for key in ("median", "min", "max")),
            value["alone_ms"]["median"],
            value["recall"],
            value["effort"],
            value["build_s"],
        )
        for items, result in figures["sizes"].items()
        for name, value in result.items()
    ]
    absent = "" if BUILDERS["usearch"] else "usearch was not installed, so it was not measured."
    won = " ".join(
        f"{of}, ours beats exact search from {wins:,} items on." if wins else f"{of}, exact search beats ours at every size."
        for of, wins in (("In batches", figures["ann_wins_ms_from"]), ("Alone", figures["ann_wins_alone_ms_from"]))
    )
    return f"""
`python benchmarks/bench_ann.py`: milliseconds a query, in batches of {BATCH} and alone, {options.threads} thread(s),
{options.dim} dimensions, lists of {options.k}, in turn. Each graph searches with the least effort (ef) that reaches a recall
of {RECALL} against exact search.
Vectors are resampled with noise from a truncated SVD of ml-1m. {absent}

{table(("items", "", "median", "min", "max", "alone, median", "recall", "effort", "build s"), rows)}

{won}
"""


if __name__ == "__main__":
    main()
