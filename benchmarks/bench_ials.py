"""Alternating least squares: seconds of training until Recall@20 on test reaches a figure, ours against implicit's, in turn.

python benchmarks/bench_ials.py [--source FILE] [--target 0.172] [--runs 5] [--epochs 20] [--threads 2] [--smoke]

Both minimise the same function from starts of their own. Ranking everybody after each epoch is not counted, nor is reading.
implicit has an environment of its own, made on first use.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pinned
import torch
from common import publish, spread, table
from held_out import HeldOut, Vectors, prepare
from pinned import Peer, PeerError

from recsys.config import ModelConfig
from recsys.data import schema
from recsys.models import Catalogue, build
from recsys.training import alternating
from recsys.training.sparse_events import SparseEvents

# After each epoch: its seconds, and what there is then.
Epochs = Iterator[tuple[float, Vectors]]

OURS, IMPLICIT = "ours", "implicit"
# The published split has no validation events: all of its train part is learnt from.
PREPARED = ["data.valid_fraction=0"]
SMOKE = {"prepared": [*PREPARED, "data.sample=0.05"], "target": 0.05, "runs": 2, "epochs": 3, "dim": 32}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    if options.smoke:
        print(describe(options, figures), file=sys.stderr)
        print(json.dumps(figures))
    else:
        settings = vars(options) | {"source": Path(options.source).name, "environments": [IMPLICIT]}
        publish("ials", "Alternating least squares", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("RECSYS_DATA", ".")) / "gowalla-lightgcn.zip"
    parser.add_argument("--source", default=str(default), help="raw data, or a dataset folder without validation events")
    parser.add_argument("--ways", nargs="*", default=[IMPLICIT, OURS], choices=[IMPLICIT, OURS])
    parser.add_argument("--target", type=float, default=0.172)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--confidence", type=float, default=40.0, help="weight of an event, others having 1")
    parser.add_argument("--penalty", type=float, default=20.0)
    parser.add_argument("--frequency-power", type=float, default=0.0, help="ours; with another than 0, give --ridge")
    parser.add_argument("--ridge", type=float, help="ours; by default what the penalty comes to")
    parser.add_argument("--smoke", action="store_true", help="a twentieth of the users, to see that it works; no page")
    pinned.options(parser)
    options = parser.parse_args()
    options.prepared = PREPARED
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs of each way, in turn."""
    data = prepare(options.source, folder / "dataset", options.prepared)
    data.save(folder / "train.npz")
    ways = {
        IMPLICIT: lambda seed: implicit_epochs(folder, options, seed),
        OURS: lambda seed: our_epochs(data, options, seed),
    }
    told: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    failed: dict[str, str] = {}
    for seed in range(options.runs):
        for way in [way for way in told if way not in failed]:
            try:
                told[way].append(until(ways[way](seed), data, options))
                print(f"run {seed + 1} of {options.runs}, {way}: {told[way][-1]}", file=sys.stderr, flush=True)
            except PeerError as error:
                failed[way] = str(error)
    popular = data.popularity(schema.TEST, (20,))
    return {
        "ways": {way: {"runs": runs, **summary(runs)} for way, runs in told.items() if way not in failed},
        "popularity": {name: round(popular[name], 4) for name in ("recall@20", "ndcg@20")},
        "not_run": failed,
        "peers": pinned.versions(IMPLICIT, (IMPLICIT, "numpy", "scipy")),
    }


def our_epochs(data: HeldOut, options: argparse.Namespace, seed: int) -> Epochs:
    """The product's own epochs. An event's 1 and α elsewhere are c and 1 divided by c − 1; the vectors differ by a factor."""
    train = data.train
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
    model = build(config, Catalogue(len(train), data.items, data.counts), seed)
    events = SparseEvents.of([(train.lengths, train.item)], data.items, torch.device("cpu"))
    for _ in range(options.epochs):
        alternating.train_epoch(model, events)
        yield time.perf_counter() - began, Vectors(model.user_table, model.item_table)
        began = time.perf_counter()


def implicit_epochs(folder: Path, options: argparse.Namespace, seed: int) -> Epochs:
    """Its own iterations; what it does before the first, such as transposing the matrix, counts as ours does."""
    settings = {"--dim": options.dim, "--weight": options.confidence, "--penalty": options.penalty, "--seed": seed}
    words = [word for setting in settings.items() for word in setting]
    out = folder / "implicit.npz"
    files = (folder / "train.npz", out)
    # Its own threads call BLAS, which it asks to have one.
    limits = {"threads": options.threads, "blas_threads": 1, "folder": options.environments}
    peer = Peer(IMPLICIT, "implicit_factors.py", "als", *files, *words, "--threads", options.threads, **limits)
    try:
        for _ in range(options.epochs):
            yield peer.epoch()["seconds"], Vectors.saved(out)
    finally:
        peer.close()


def until(epochs: Epochs, data: HeldOut, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of training until the target, None where the epochs did not suffice, and the metrics then."""
    seconds, done, metrics = 0.0, 0, {"recall@20": 0.0}
    for spent, vectors in epochs:
        seconds, done = seconds + spent, done + 1
        metrics = data.rank(vectors, schema.TEST, (20,)).metrics()
        if metrics["recall@20"] >= options.target:
            break
    reached = metrics["recall@20"] >= options.target
    return {
        "seconds": round(seconds, 2) if reached else None,
        "epochs": done,
        "seconds_an_epoch": round(seconds / done, 3),
        **{name: round(metrics[name], 4) for name in ("recall@20", "ndcg@20")},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    reached = [run["seconds"] for run in runs if run["seconds"] is not None]
    return {"reached": len(reached), "seconds": spread(reached, 2) if reached else None}


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    rows = [
        (way, *seconds_of(told), f"{told['reached']} of {options.runs}", *list(told["runs"][-1].values())[1:])
        for way, told in figures["ways"].items()
    ]
    rows.append(("most popular", *[""] * 5, *figures["popularity"].values()))
    headers = ("", "seconds, median", "min to max", "runs that did", "epochs", "s an epoch", "Recall@20", "NDCG@20")
    return f"""
`python benchmarks/bench_ials.py` trains on the train part of `{Path(options.source).name}` until Recall@20 on test is
{options.target}: {options.dim} dimensions, an event's weight {options.confidence:g} and all else 1, penalty
{options.penalty:g}. All items with a train event are ranked, train items left out, by the same code for both; {options.runs}
runs of each in turn, {options.threads} threads for whoever's turn it is. Seconds are of training and of what must be done
before it with the events in memory; ranking after each epoch is not counted. implicit has, but for these, settings of its own
({figures["peers"]}). Epochs and what is right of them are of the last run.

{table(headers, rows)}
{verdict(figures["ways"])}{pinned.missing(figures["not_run"])}"""


def seconds_of(told: dict[str, Any]) -> tuple[Any, str]:
    taken = told["seconds"]
    return ("not reached", "") if taken is None else (taken["median"], f"{taken['min']} to {taken['max']}")


def verdict(ways: dict[str, Any]) -> str:
    medians = {way: told["seconds"]["median"] for way, told in ways.items() if told["seconds"]}
    if set(medians) != {OURS, IMPLICIT}:
        return ""
    return f"\nOurs takes {medians[OURS] / medians[IMPLICIT]:.2f} times as long as implicit.\n"


if __name__ == "__main__":
    main()
