"""Sequences: events a second of `sasrec` in training, and held-out NDCG@10, ours against RecTools' SASRec of the same shape.

python benchmarks/bench_sequences.py [--source FILE] [--epochs 12] [--patience 10] [--threads 2] [--minutes 20] [--smoke]

RecTools has an environment of its own, made on first use.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
import numpy as np
import pinned
from common import publish, table
from contest import Contender
from held_out import HeldOut, prepare
from numpy.typing import NDArray
from ours import Ours
from pinned import Peer

from recsys.config import Config, load_config
from recsys.data import schema
from recsys.evaluation.sums import RankingSums

OURS, FULL, MIXED = "ours", "RecTools", "RecTools, bf16"
PRECISIONS = {FULL: "32-true", MIXED: "bf16-mixed"}
MUST = 3.0  # times as fast
SMOKE = {"epochs": 3, "prepared": ["data.sample=0.03"]}


class OfLists:
    """A peer that leaves everybody's lists after each epoch."""

    def __init__(self, peer: Peer, out: Path, data: HeldOut) -> None:
        self.peer, self.out, self.data = peer, out, data
        self.close = peer.close

    def epoch(self) -> dict[str, float]:
        told = self.peer.epoch()
        with np.load(self.out) as arrays:
            self.now: dict[str, NDArray[np.int32]] = dict(arrays)
        return told

    def validate(self) -> dict[str, float]:
        return self.data.judge(self.now[schema.VALID], schema.VALID).metrics()

    def keep(self) -> None:
        self.kept = self.now

    def test(self) -> RankingSums:
        return self.data.judge(self.kept[schema.TEST], schema.TEST)


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    if options.smoke:
        print(describe(options, figures), file=sys.stderr)
        print(json.dumps(figures))
    else:
        settings = vars(options) | {"source": Path(options.source).name, "environments": ["rectools"]}
        publish("sequences", "Sequences against RecTools", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("RECSYS_DATA", ".")) / "ml-1m.zip" / "ml-1m" / "ml-1m.txt"
    parser.add_argument("--source", default=str(default), help="raw data, or a dataset folder")
    parser.add_argument("--peers", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--set", action="append", default=[], help="a setting of ours, as in recsys train")
    parser.add_argument("--smoke", action="store_true", help="a few users, to see that it works; no page")
    contest.arguments(parser, epochs=12, minutes=20)
    options = parser.parse_args()
    options.prepared = []
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = prepare(options.source, folder / "dataset", options.prepared)
    data.save(folder / "train.npz")
    data.save_valid(folder / "valid.npz")
    makers = makers_of(options, data, folder)
    trainings, failed = contest.run({name: makers[name] for name in (OURS, *options.peers)}, options)
    try:
        figures = contest.figures_of(trainings, ["events", "places"])
    finally:
        contest.close(trainings)
    rate = figures[OURS]["events_per_second"]["median"]
    return {
        "contenders": figures,
        "times_as_fast": {
            name: {of: round(rate / made[f"{of}_per_second"]["median"], 2) for of in ("events", "places")}
            for name, made in figures.items()
            if name != OURS
        },
        "seconds_to_equal_ndcg": contest.against(trainings, OURS),
        "popularity": {metric: round(data.popularity(schema.TEST)[metric], 4) for metric in (contest.METRIC, "hr@10")},
        "not_run": failed,
        "ours": trainings[OURS].contender.described(),
        "peers": pinned.versions("rectools", ("rectools", "pytorch-lightning", "torch", "numpy")),
    }


def makers_of(options: argparse.Namespace, data: HeldOut, folder: Path) -> dict[str, Callable[[], Contender]]:
    config = config_of(options)
    shape = {
        "dim": config.model.dim,
        "blocks": config.model.blocks,
        "heads": config.model.heads,
        "length": config.model.max_length,
        "dropout": config.model.dropout,
        "batch": config.train.batch_size,
        "threads": options.threads,
        "seed": options.seed,
    }
    words = [word for name, value in shape.items() for word in (f"--{name}", value)]

    def rectools(precision: str) -> Contender:
        out = folder / f"{precision}.npz"
        files = (folder / "train.npz", folder / "valid.npz", out)
        limits = {"threads": options.threads, "folder": options.environments}
        peer = Peer("rectools", "rectools_sasrec.py", *files, *words, "--precision", precision, **limits)
        return OfLists(peer, out, data)

    return {OURS: lambda: Ours(data, config)} | {
        name: lambda precision=precision: rectools(precision) for name, precision in PRECISIONS.items()
    }


def config_of(options: argparse.Namespace) -> Config:
    told = [f"train.seed={options.seed}", f"train.threads={options.threads}"]
    fixed = [
        "model.name=sasrec",
        "train.batch_size=128",
        "train.metric_ks=[10]",
        f"train.metric={contest.METRIC}",
        "cluster.num_workers=1",
    ]
    return load_config(overrides=[*fixed, *told, *options.set])


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    config, ours = config_of(options), figures["ours"]
    model, batch = config.model, config.train.batch_size
    rows = [
        (
            name,
            f"{made['events_per_second']['median']:,.0f}",
            f"{made['events_per_second']['min']:,.0f} to {made['events_per_second']['max']:,.0f}",
            f"{made['places_per_second']['median']:,.0f}" if "places_per_second" in made else "",
            made["seconds_an_epoch"]["median"],
            f"{made['best_epoch']} of {made['epochs']}",
            f"{made['valid']:.4f}",
            f"{made['test'][contest.METRIC]:.4f}",
            f"{made['test']['hr@10']:.4f}",
        )
        for name, made in figures["contenders"].items()
    ]
    rows.append(("most popular", *[""] * 6, *(f"{value:.4f}" for value in figures["popularity"].values())))
    headers = (
        "",
        "events/s, median",
        "min to max",
        "with padding",
        "s an epoch",
        "best",
        "valid NDCG@10",
        "test NDCG@10",
        "test HR@10",
    )
    equal = [
        (name, *figures["times_as_fast"][name].values(), MUST, told["valid"], told["theirs"], told["ours"], told["times"])
        for name, told in figures["seconds_to_equal_ndcg"].items()
    ]
    equal_headers = (
        "against",
        "times its events/s",
        "times its places/s, padding and all",
        "goal",
        "valid NDCG@10",
        "its seconds to that",
        "ours",
        "times",
    )
    timed = min(made["timed_epochs"] for made in figures["contenders"].values())
    return f"""
`python benchmarks/bench_sequences.py` trains SASRec on `{Path(options.source).name}`: the last event of each user tests, the
last but one validates; all items with a train event are ranked, seen ones left out, by one code for all. {model.dim}
dimensions, {model.blocks} blocks, {model.heads} head, windows of {model.max_length}, batches of {batch} users, dropout
{model.dropout}, softmax over all items. An epoch each in turn, {options.threads} threads for whoever's turn it is, while the
others wait. An event counts where it is to be told from those before it. Everybody trains until {options.patience} epochs
have brought no better validation NDCG@10, {options.epochs} at most and none after {options.minutes:g} minutes, and the best
of them is scored on test, once. Rates are of the {timed} epochs in which all were still training, the first left out.

Ours ({ours["precision"]}, pieces of {ours["micro_batch"]} tokens) learns from the whole of a long history, in several
windows, and pads windows of like lengths to the longest of them; reading and shuffling count. RecTools ({figures["peers"]})
learns from the last {model.max_length} events of each user and pads all to as many; its time is that of Lightning's epochs,
without what it prepares before. Its learning rate, initialisation and layers are its own.

{table(headers, rows)}

Seconds of training until validation NDCG@10 is what the worse of the two reaches at its best:

{table(equal_headers, equal)}
{pinned.missing(figures["not_run"])}"""


if __name__ == "__main__":
    main()
