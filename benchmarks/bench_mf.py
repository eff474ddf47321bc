"""Matrix factorisation: positives a second and held-out NDCG@10, ours against RecBole's BPR and SimpleX and implicit's BPR.

python benchmarks/bench_mf.py [--source FILE] [--epochs 100] [--patience 10] [--minutes 20] [--threads 2] [--smoke]

All learn from the same train events and are ranked by the same code. Peers have environments of their own, made on first use.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import contest
import pinned
from common import publish, table
from contest import Contender, OfVectors, Training
from held_out import HeldOut, prepare
from ours import Ours
from pinned import Peer

from recsys.config import Config, load_config
from recsys.data import schema

OURS, FEW, BPR, SIMPLEX, IMPLICIT = "ours", "ours, 256 negatives", "RecBole BPR", "RecBole SimpleX", "implicit BPR"
VERSIONS = {"recbole": ("recbole", "torch", "numpy"), "implicit": ("implicit", "numpy")}
MUST = {BPR: 20.0, SIMPLEX: 20.0, IMPLICIT: 1.0}  # times as fast
SMOKE = {"epochs": 3, "prepared": ["data.sample=0.05"]}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    if options.smoke:
        print(describe(options, figures), file=sys.stderr)
        print(json.dumps(figures))
    else:
        settings = vars(options) | {"source": Path(options.source).name, "environments": list(VERSIONS)}
        publish("mf", "Matrix factorisation against peers", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("RECSYS_DATA", ".")) / "ml-1m.zip" / "ml-1m" / "ml-1m.txt"
    parser.add_argument("--source", default=str(default), help="raw data, or a dataset folder")
    parser.add_argument("--peers", nargs="*", default=list(MUST), choices=list(MUST))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], help="a setting of ours, as in recsys train")
    parser.add_argument("--recbole", nargs="*", default=[], help="settings of RecBole's, each as key=value")
    parser.add_argument("--smoke", action="store_true", help="a twentieth of the users, to see that it works; no page")
    contest.arguments(parser, epochs=100, minutes=20)
    options = parser.parse_args()
    options.prepared = []
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = prepare(options.source, folder / "dataset", options.prepared)
    data.save(folder / "train.npz")
    makers = makers_of(options, data, folder)
    trainings, failed = contest.run({name: makers[name] for name in (OURS, FEW, *options.peers)}, options)
    try:
        figures = contest.figures_of(trainings, ["events"])
    finally:
        contest.close(trainings)
    rates = {name: made["events_per_second"]["median"] for name, made in figures.items()}
    return {
        "contenders": figures,
        "times_as_fast": {
            own: {name: round(rates[own] / rates[name], 2) for name in options.peers if name in rates} for own in (OURS, FEW)
        },
        "seconds_to_equal_ndcg": {own: against(trainings, own) for own in (OURS, FEW)},
        "popularity": {metric: round(data.popularity(schema.TEST)[metric], 4) for metric in (contest.METRIC, "hr@10")},
        "not_run": failed,
        "ours": trainings[OURS].contender.described(),
        "peers": {name: pinned.versions(name, packages) for name, packages in VERSIONS.items()},
    }


def makers_of(options: argparse.Namespace, data: HeldOut, folder: Path) -> dict[str, Callable[[], Contender]]:
    common = {"threads": options.threads, "folder": options.environments}

    def peer(environment: str, script: str, model: str, *more: object, **limits: int) -> Contender:
        out = folder / f"{environment}-{model}.npz"
        words = ("--threads", options.threads, "--seed", options.seed, *more)
        return OfVectors(Peer(environment, script, model, folder / "train.npz", out, *words, **common, **limits), out, data)

    recbole = functools.partial(peer, "recbole", "recbole_mf.py")
    settings = [word for setting in (f"embedding_size={options.dim}", *options.recbole) for word in ("--set", setting)]
    return {
        OURS: lambda: Ours(data, config_of(options)),
        FEW: lambda: Ours(data, config_of(options, "model.negatives=256")),
        BPR: lambda: recbole("BPR", *settings),
        SIMPLEX: lambda: recbole("SimpleX", *settings),
        # Its own threads share the work; BLAS is asked to leave it alone, as it asks for.
        IMPLICIT: lambda: peer("implicit", "implicit_factors.py", "bpr", "--dim", options.dim, blas_threads=1),
    }


def against(trainings: Mapping[str, Training], own: str) -> dict[str, dict[str, float]]:
    """Of one of ours, against the peers alone."""
    other = FEW if own == OURS else OURS
    return contest.against({name: training for name, training in trainings.items() if name != other}, own)


def config_of(options: argparse.Namespace, *more: str) -> Config:
    told = [f"model.dim={options.dim}", f"train.seed={options.seed}", f"train.threads={options.threads}"]
    fixed = ["model.name=mf", "train.metric_ks=[10]", f"train.metric={contest.METRIC}", "cluster.num_workers=1"]
    return load_config(overrides=[*fixed, *told, *options.set, *more])


def speeds(figures: dict[str, Any]) -> str:
    """Of each contender: its rate, its best epoch and what that is worth."""
    rows = [
        (
            name,
            f"{made['events_per_second']['median']:,.0f}",
            f"{made['events_per_second']['min']:,.0f} to {made['events_per_second']['max']:,.0f}",
            made["seconds_an_epoch"]["median"],
            f"{made['best_epoch']} of {made['epochs']}",
            f"{made['valid']:.4f}",
            f"{made['test'][contest.METRIC]:.4f}",
            f"{made['test']['hr@10']:.4f}",
        )
        for name, made in figures["contenders"].items()
    ]
    rows.append(("most popular", *[""] * 5, *(f"{value:.4f}" for value in figures["popularity"].values())))
    headers = (
        "",
        "positives/s, median",
        "min to max",
        "s an epoch",
        "best epoch",
        "valid NDCG@10",
        "test NDCG@10",
        "test HR@10",
    )
    return table(headers, rows)


def seconds_to_equal(figures: dict[str, Any]) -> str:
    """Of each of ours against each peer."""
    rows = [
        (own, name, figures["times_as_fast"][own][name], MUST[name], told["valid"], told["theirs"], told["ours"], told["times"])
        for own, peers in figures["seconds_to_equal_ndcg"].items()
        for name, told in peers.items()
    ]
    headers = ("", "against", "times its positives/s", "goal", "valid NDCG@10", "its seconds to that", "ours", "times")
    return table(headers, rows)


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    versions = "; ".join(figures["peers"].values())
    timed = min(made["timed_epochs"] for made in figures["contenders"].values())
    return f"""
`python benchmarks/bench_mf.py` trains on `{Path(options.source).name}`: the last event of each user tests, the last but one
validates; all items with a train event are ranked, seen ones left out, by one code for all. {options.dim} dimensions. An
epoch each in turn, {options.threads} threads for whoever's turn it is, while the others wait. Everybody trains until
{options.patience} epochs have brought no better validation NDCG@10, {options.epochs} at most and none after
{options.minutes:g} minutes, and the best of them is scored on test, once. Rates are of the {timed} epochs in which all were
still training, the first left out; reading and shuffling count, ranking does not.

`ours` is the core that `recsys train` runs, without Ray: by default the softmax over 1,024 negatives that the positives of a
step share ({figures["ours"]["precision"]}), a mean of the tables over many steps; and the same with 256 negatives. Peers have
their own settings ({versions}). RecBole draws one negative a positive. So does implicit, and leaves both out where the user has
watched the negative: these do not count.

{speeds(figures)}

Seconds of training until validation NDCG@10 is what the worse of the two reaches at its best:

{seconds_to_equal(figures)}
{pinned.missing(figures["not_run"])}"""


if __name__ == "__main__":
    main()
