"""Invariant 3: the number of workers changes speed, not quality. Paired seeds through the real trainer.

python benchmarks/bench_workers.py [--source FILE] [--seeds 5] [--workers 1 2 4]
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from common import publish, table, training_options

from cluster.prepare import prepare
from cluster.session import session
from cluster.trainer import train
from recsys.config import Config, load_config

METRIC = "ndcg@10"
# Two-sided 95% quantiles of Student's t by degrees of freedom.
T95 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093, 29: 2.045}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        scores, seconds = measure(options, Path(folder))
    first, *others = options.workers
    comparisons = {workers: compare(scores[first], scores[workers]) for workers in others}
    figures = {
        "test_ndcg@10": {str(workers): values for workers, values in scores.items()},
        "seconds": {str(workers): values for workers, values in seconds.items()},
        "difference": {str(workers): comparison for workers, comparison in comparisons.items()},
    }
    publish(
        "workers",
        "Workers change speed, not quality",
        describe(options, scores, comparisons),
        figures,
        vars(options) | {"source": Path(options.source).name},
    )


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Test metric and seconds by number of workers, a value for each seed; the workers take turns within a seed."""
    scores: dict[int, list[float]] = {workers: [] for workers in options.workers}
    seconds: dict[int, list[float]] = {workers: [] for workers in options.workers}
    with session(settings(options, folder, 0, max(options.workers)).cluster):
        prepare([options.source], folder / "dataset", Config())
        for seed in range(options.seeds):
            for workers in options.workers:
                run = train(folder / "dataset", settings(options, folder, seed, workers), name=f"{workers}-{seed}")
                scores[workers].append(run.test[METRIC])
                seconds[workers].append(round(run.seconds, 1))
    return scores, seconds


def settings(options: argparse.Namespace, folder: Path, seed: int, workers: int) -> Config:
    ours = [f"train.seed={seed}", f"cluster.num_workers={workers}", f"cluster.storage={folder / 'runs'}"]
    return load_config(overrides=[*options.set, *ours])


def compare(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Mean paired difference as a share of the value, with its 95% interval (Student's t)."""
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    value, n = mean(ours), len(ours)
    half = T95[n - 1] * stdev(differences) / n**0.5
    return {
        name: round(x / value, 5)
        for name, x in (("low", mean(differences) - half), ("mean", mean(differences)), ("high", mean(differences) + half))
    }


def describe(options: argparse.Namespace, scores: dict[int, list[float]], comparisons: dict[int, dict[str, float]]) -> str:
    rows = [(w, f"{mean(v):.4f}", *(f"{x:.4f}" for x in v)) for w, v in scores.items()]
    shares = [(w, *(f"{100 * c[name]:+.2f}%" for name in ("low", "mean", "high"))) for w, c in comparisons.items()]
    return f"""
`python benchmarks/bench_workers.py` trains on `{Path(options.source).name}` (leave-last-out, full ranking, seen items
removed) with the same effective batch and the same seeds by different numbers of workers. Test {METRIC}:

{table(("workers", "mean", *(f"seed {s}" for s in range(options.seeds))), rows)}

Paired difference to {options.workers[0]} worker, as a share of the value, with its 95% interval. Equal means inside ±2%.

{table(("workers", "low", "mean", "high"), shares)}
"""


if __name__ == "__main__":
    main()
