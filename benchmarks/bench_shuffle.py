"""Does shuffling by windows cost quality? The same training in macro-batches, and with all events permuted together.

python benchmarks/bench_shuffle.py [--source FILE] [--seeds 5] [--windows 20]
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
from recsys.data import schema

METRIC = "ndcg@10"
# As 20 million events look to the default settings: 20 windows, each of eight row groups of eight shards.
GROUPS_A_WINDOW = 8


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        scores = measure(options, Path(folder))
    noise = {
        name: {"mean": round(mean(v), 5), "stdev": round(stdev(v) if len(v) > 1 else 0.0, 5)} for name, v in scores.items()
    }
    figures = {"test_ndcg@10": scores, "summary": noise}
    publish(
        "shuffle",
        "Shuffling by windows",
        describe(options, scores),
        figures,
        vars(options) | {"source": Path(options.source).name},
    )


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__)
    parser.add_argument("--windows", type=int, default=20, help="macro-batches an epoch")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Test metric of each way to shuffle, a value for each seed; the ways take turns."""
    scores: dict[str, list[float]] = {"windows": [], "everything": []}
    with session(Config().cluster):
        manifest = prepare([options.source], folder / "dataset", Config())
        window = manifest.segments[schema.TRAIN] // options.windows
        cut = load_config(overrides=[f"data.row_group_events={max(window // GROUPS_A_WINDOW, 1)}"])
        prepare([options.source], folder / "small-groups", cut)
        for seed in range(options.seeds):
            for name, events in (("windows", window), ("everything", 1 << 40)):
                run = train(folder / "small-groups", settings(options, folder, seed, events), name=f"{name}-{seed}")
                scores[name].append(run.test[METRIC])
    return scores


def settings(options: argparse.Namespace, folder: Path, seed: int, window: int) -> Config:
    ours = [f"train.seed={seed}", f"cluster.window_events={window}", f"cluster.storage={folder / 'runs'}"]
    return load_config(overrides=[*options.set, *ours])


def describe(options: argparse.Namespace, scores: dict[str, list[float]]) -> str:
    rows = [(name, f"{mean(v):.4f}", *(f"{x:.4f}" for x in v)) for name, v in scores.items()]
    return f"""
`python benchmarks/bench_shuffle.py` trains on `{Path(options.source).name}` with {options.windows} macro-batches an epoch,
each of {GROUPS_A_WINDOW} row groups of at least eight shards, and with all events of an epoch permuted together. Test {METRIC}:

{table(("shuffled", "mean", *(f"seed {s}" for s in range(options.seeds))), rows)}
"""


if __name__ == "__main__":
    main()
