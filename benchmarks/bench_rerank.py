"""What diversity, the dials and explanations cost: milliseconds and NDCG@10, and what they bring.

python benchmarks/bench_rerank.py BUNDLE [--users 2000]

BUNDLE: of data with times, exported without --refit, so that its test events were learnt by nobody, for example of
  recsys prepare movietweetings.zip DATA --set data.split=time && recsys train DATA --set model.name=ials --name run
  recsys export runs/run --out BUNDLES
Each user with test events is asked for as he was before them, one at a time on one thread.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import publish, table
from threadpoolctl import threadpool_limits

from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.data import schema
from recsys.evaluation import metrics
from recsys.retrieval.recommender import Answer, Recommender
from recsys.retrieval.requests import Request

K = 10
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"diversity {much}": {"diversity": much} for much in (0.1, 0.3, 0.5, 0.7)},
    **{f"popularity {turned:+}": {"popularity": turned} for turned in (-1.0, -0.5, 0.5, 1.0)},
    **{f"recency {turned:+}": {"recency": turned} for turned in (-1.0, -0.5, 0.5, 1.0)},
    "explain": {"explain": True},
}


def main() -> None:
    options = arguments()
    recommender = Recommender(open_bundle(store.resolve(options.bundle)), known_until=schema.TEST)
    rows = users_of(recommender, options.users)
    with threadpool_limits(1):
        for fields in ASKED.values():  # what is made once
            ask(recommender, rows[0], fields)
        figures = {name: measured(recommender, rows, fields) for name, fields in ASKED.items()}
    manifest = recommender.bundle.manifest
    told = {"users": len(rows), "model": manifest.model, "items": manifest.items, "events": manifest.events}
    publish("rerank", "Diversity, dials and explanations", describe(figures, told), figures, told)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--users", type=int, default=2000)
    return parser.parse_args()


def users_of(recommender: Recommender, most: int) -> list[int]:
    """Rows of users, drawn by a seed, who have test events and some before them."""
    rows = [row for row in range(recommender.bundle.manifest.users) if all(map(len, before_and_held(recommender, row)))]
    return [int(row) for row in np.random.default_rng(0).permutation(rows)[:most]]


def before_and_held(recommender: Recommender, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of a user's events before test, and of test."""
    histories = recommender.bundle.histories
    before, whole = (histories.events(row, until) for until in (schema.TEST, schema.END))
    return histories.item[before], histories.item[before.stop : whole.stop]


def ask(recommender: Recommender, row: int, fields: dict[str, Any]) -> Answer:
    (answer,) = recommender.recommend([Request(user=recommender.bundle.users.id(row), k=K, **fields)])
    assert isinstance(answer, Answer), answer
    return answer


def measured(recommender: Recommender, rows: list[int], fields: dict[str, Any]) -> dict[str, float]:
    """NDCG@10, likeness (mean cosine of two items of a list), mean standing by popularity and arrival, median milliseconds."""
    items, vectors = recommender.items, recommender.bundle.learnt_vectors
    about = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    taken, found = [], []
    for row in rows:
        began = time.perf_counter()
        answer = ask(recommender, row, fields)
        taken.append(1000 * (time.perf_counter() - began))
        found.append(answer.items)
    tests = [before_and_held(recommender, row)[1] for row in rows]
    relevant = torch.tensor(np.array([np.isin(listed, test) for listed, test in zip(found, tests, strict=True)]))
    counts = torch.tensor([len(test) for test in tests])
    pairs = np.triu_indices(K, 1)
    assert items.by_arrival is not None
    return {
        "ndcg@10": float(metrics.ndcg(relevant, counts).mean()),
        "likeness": float(np.mean([(about[listed] @ about[listed].T)[pairs].mean() for listed in found])),
        "popularity": float(np.mean([items.by_popularity[listed].mean() for listed in found])),
        "arrival": float(np.mean([items.by_arrival[listed].mean() for listed in found])),
        "coverage": len(np.unique(np.concatenate(found))) / len(recommender.bundle.popular),
        "ms": statistics.median(taken),
    }


def describe(figures: dict[str, dict[str, float]], told: dict[str, Any]) -> str:
    headers = ("asked", "NDCG@10", "likeness", "popularity", "arrival", "coverage", "ms")
    rows = [
        (name, f"{f['ndcg@10']:.4f}", *(f"{f[key]:.3f}" for key in ("likeness", "popularity", "arrival", "coverage", "ms")))
        for name, f in figures.items()
    ]
    return f"""
`python benchmarks/bench_rerank.py BUNDLE`: {told["users"]:,} users who have test events, `{told["model"]}`, {told["items"]:,}
items, top {K}, one user at a time on one thread, median milliseconds in process. Likeness: the mean cosine of two items of
a list; popularity, arrival: where its items stand in the catalogue, from -1 (least popular, oldest) to 1 (most popular, by
logarithms; newest, by rank); coverage: the share of the catalogue that is in any list.

{table(headers, rows)}
"""


if __name__ == "__main__":
    main()
