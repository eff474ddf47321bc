"""Scaling: the same training by 1, 2 and 4 workers that share this machine's cores: speed, steps, metric.

python benchmarks/bench_scaling.py [--source FILE] [--workers 1 2 4] [--epochs 2] [--seeds 2] [--set section.key=value]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import publish, spread, table, training_options

from cluster.prepare import prepare
from cluster.runs import read_rows
from cluster.session import session
from cluster.trainer import train
from recsys.config import Config, load_config

Run = dict[str, Any]


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(options, Path(folder))
    figures = {str(workers): figures_of(done) for workers, done in runs.items()}
    settings = vars(options) | {"source": Path(options.source).name}
    publish("scaling", "Training by more workers", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(seeds=2)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[int, list[Run]]:
    """Runs by number of workers, in turn, each on a Ray of its own."""
    settings = config_of(options, folder, 1, 0)
    with session(settings.cluster):
        prepare([options.source], folder / "dataset", settings)
    runs: dict[int, list[Run]] = {workers: [] for workers in options.workers}
    for seed in range(options.seeds):
        for workers, done in runs.items():
            done.append(one_run(folder, config_of(options, folder, workers, seed), f"{workers}-{seed}"))
            print(f"seed {seed + 1} of {options.seeds}, {workers} workers: {done[-1]}", file=sys.stderr, flush=True)
    return runs


def one_run(folder: Path, config: Config, name: str) -> Run:
    result = train(folder / "dataset", config, name=name)
    rows = read_rows(result.folder)
    seconds = sum(row["seconds"] for row in rows)
    return {
        "events_per_second": sum(row["events"] for row in rows) / seconds,
        "waiting": sum(row["wait_share"] * row["seconds"] for row in rows) / seconds,
        "gigabytes": max(row["peak_bytes"] for row in rows) / 1e9,
        "steps": rows[0]["steps"],
        "metric": result.metrics[config.train.metric],
    }


def config_of(options: argparse.Namespace, folder: Path, workers: int, seed: int) -> Config:
    ours = [f"train.epochs={options.epochs}", f"train.seed={seed}", f"cluster.num_workers={workers}"]
    return load_config(overrides=[*options.set, *ours, f"cluster.storage={folder / 'runs'}"])


def figures_of(runs: list[Run]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: spread([run[name] for run in runs], 4) for name in runs[0] if name != "steps"}
    return figures | {"steps": sorted({run["steps"] for run in runs})}


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    names = ("events a second", "waiting for data", "GB of rank 0", "steps an epoch", "validation metric")
    rows = [
        (
            workers,
            f"{row['events_per_second']['median']:,.0f}",
            f"{row['waiting']['median']:.1%}",
            f"{row['gigabytes']['median']:.2f}",
            ", ".join(map(str, row["steps"])),
            f"{row['metric']['min']:.4f} to {row['metric']['max']:.4f}",
        )
        for workers, row in figures.items()
    ]
    return f"""
`python benchmarks/bench_scaling.py` trains on `{Path(options.source).name}` for {options.epochs} epochs with each number of
workers on one machine of {os.cpu_count()} cores, by each of {options.seeds} seeds, in turn. The effective batch, the steps and
the negatives are those of one worker whatever their number. More workers than cores is a test of equal work, not of speed:
each step then waits for the slowest, and every worker exchanges the item rows it touched.

{table(("workers", *names), rows)}
"""


if __name__ == "__main__":
    main()
