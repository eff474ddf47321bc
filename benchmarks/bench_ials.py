"""Alternating least squares: seconds of training until Recall@20 on test reaches a figure, ours against implicit's, in turn.

recsys prepare gowalla-lightgcn.zip data/gowalla --set data.valid_fraction=0
python benchmarks/bench_ials.py data/gowalla [--target 0.172] [--runs 3] [--epochs 20] [--threads 2] [--ways implicit ours]

Both minimise the same function from starts of their own. Ranking everybody after each epoch is not counted, nor is reading.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import publish, spread, table
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from recsys.config import ModelConfig
from recsys.data import schema
from recsys.data.dataset import read_manifest
from recsys.data.histories import Histories
from recsys.evaluation import ranking
from recsys.models import Catalogue, build
from recsys.training import alternating
from recsys.training.sparse_events import SparseEvents

# After each epoch: its seconds, users' vectors [U, D] and items' [N, D].
Epochs = Iterator[tuple[float, Tensor, Tensor]]


class Vectors:
    """What the ranking asks of a model."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items = users, items

    def user_vectors(self, histories: Histories) -> Tensor:
        return self.users[torch.from_numpy(histories.user.astype(np.int64))]

    def item_vectors(self) -> Tensor:
        return self.items


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    histories, items = read(options.dataset)
    ways: dict[str, Callable[[int], Epochs]] = {
        "implicit": lambda seed: implicit_epochs(histories, items, options, seed),
        "ours": lambda seed: our_epochs(histories, items, options, seed),
    }
    told: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for seed in range(options.runs):
        for way in options.ways:
            told[way].append(until(ways[way](seed), histories, items, options))
            print(way, told[way][-1], flush=True)
    figures = {way: {"runs": each, **summary(each)} for way, each in told.items()}
    if options.publish:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        publish("ials", "Alternating least squares", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--ways", nargs="*", default=["implicit", "ours"], choices=["implicit", "ours"])
    parser.add_argument("--target", type=float, default=0.172)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--confidence", type=float, default=40.0, help="weight of an event, others having 1")
    parser.add_argument("--penalty", type=float, default=20.0)
    parser.add_argument("--frequency-power", type=float, default=0.0, help="ours; with another than 0, give --ridge")
    parser.add_argument("--ridge", type=float, help="ours; by default what the penalty comes to")
    parser.add_argument("--no-publish", dest="publish", action="store_false")
    return parser.parse_args()


def read(dataset: Path) -> tuple[Histories, int]:
    """Everybody's history, users by number, and how many items there are."""
    manifest = read_manifest(dataset)
    files = sorted(manifest.user_files, key=lambda file: file.first_user)
    parts = [pq.read_table(dataset / schema.USERS_FOLDER / file.name) for file in files]
    return Histories.from_arrow(pa.concat_tables(parts)), manifest.items


def counts_of(histories: Histories, items: int) -> NDArray[np.int64]:
    return np.bincount(histories.segment(schema.TRAIN).item, minlength=items).astype(np.int64)


def our_epochs(histories: Histories, items: int, options: argparse.Namespace, seed: int) -> Epochs:
    """The product's own epochs. An event's 1 and α elsewhere are c and 1 divided by c − 1; the vectors differ by a factor."""
    train = histories.segment(schema.TRAIN)
    ridge = options.penalty / options.confidence if options.ridge is None else options.ridge
    config = ModelConfig(
        name="ials",
        loss="squares",
        dim=options.dim,
        unobserved_weight=1 / (options.confidence - 1),
        ridge=ridge,
        frequency_power=options.frequency_power,
    )
    began = time.perf_counter()
    model = build(config, Catalogue(len(train), items, counts_of(histories, items)), seed)
    events = SparseEvents.of([(train.lengths, train.item)], items, torch.device("cpu"))
    for _ in range(options.epochs):
        alternating.train_epoch(model, events)
        yield time.perf_counter() - began, model.user_table, model.item_table
        began = time.perf_counter()


def implicit_epochs(histories: Histories, items: int, options: argparse.Namespace, seed: int) -> Epochs:
    """Fits of a single iteration, each of which goes on from the vectors that are there, and transposes the matrix anew: some
    hundredths of a second of each epoch."""
    import scipy.sparse
    from implicit.cpu.als import AlternatingLeastSquares

    train = histories.segment(schema.TRAIN)
    ones = np.full(len(train.item), options.confidence, np.float32)
    matrix = scipy.sparse.csr_matrix((ones, train.item, train.offsets), shape=(len(train), items))
    model = AlternatingLeastSquares(
        factors=options.dim, regularization=options.penalty, iterations=1, num_threads=options.threads, random_state=seed
    )
    for _ in range(options.epochs):
        began = time.perf_counter()
        with threadpool_limits(1, "blas"):  # as it asks for: its own threads call BLAS
            model.fit(matrix, show_progress=False)
        yield time.perf_counter() - began, *(torch.from_numpy(part) for part in (model.user_factors, model.item_factors))


def until(epochs: Epochs, histories: Histories, items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of training until the target, None where the epochs did not suffice, and the metrics then."""
    seconds, counts = 0.0, counts_of(histories, items)
    metrics: dict[str, float] = {}
    done = 0
    for done, (spent, users, vectors) in enumerate(epochs, 1):  # noqa: B007 - told below
        seconds += spent
        model = Vectors(users, vectors * torch.from_numpy(counts > 0)[:, None])
        metrics = ranking.evaluate(model, histories, segment=schema.TEST, ks=(20,), item_counts=counts).metrics()
        if metrics["recall@20"] >= options.target:
            break
    reached = metrics["recall@20"] >= options.target
    told = {name: round(metrics[name], 4) for name in ("recall@20", "ndcg@20")}
    return {
        "seconds": round(seconds, 2) if reached else None,
        "epochs": done,
        "seconds_an_epoch": round(seconds / done, 3),
        **told,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    reached = [run["seconds"] for run in runs if run["seconds"] is not None]
    return {"reached": len(reached), "seconds": spread(reached, 2) if reached else None}


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    rows = [
        (way, "not reached" if told["seconds"] is None else told["seconds"]["median"], *last.values())
        for way, told in figures.items()
        for last in told["runs"][-1:]
    ]
    return f"""
Seconds of training until Recall@20 on test is {options.target}, {options.dim} dimensions, {options.threads} threads,
{options.runs} runs in turn. Ranking after each epoch is not counted.

{table(("way", "seconds, median", "seconds of the last run", "its epochs", "an epoch", "Recall@20", "NDCG@20"), rows)}
"""


if __name__ == "__main__":
    main()
