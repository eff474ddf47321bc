"""Growing data: how soon a run that begins from an earlier one is as good as one from scratch.

python benchmarks/bench_warm.py [--source FILE] [--seeds 3] [--held-back 0.1]
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import publish, table, training_options

from cluster.prepare import prepare
from cluster.runs import read_rows
from cluster.session import session
from cluster.trainer import RunResult, train
from recsys.config import Config, load_config
from recsys.data.sources.files import list_files, read_all

METRIC = "ndcg@10"


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(options, Path(folder))
    figures = {"runs": runs, "share_of_seconds": round(median(run["warm_seconds"] / run["scratch_seconds"] for run in runs), 3)}
    settings = vars(options) | {"source": Path(options.source).name}
    publish("warm", "Beginning from an earlier run", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__)
    parser.set_defaults(seeds=3)
    parser.add_argument("--held-back", type=float, default=0.1, help="share of each user's events, the latest, that come later")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Per seed: epochs and seconds to the best validation metric from scratch, and to as much from the earlier run."""
    before = folder / "before.txt"
    hold_back(options.source, before, options.held_back)
    found = []
    with session(Config().cluster):
        for name, source in (("old", str(before)), ("new", options.source)):
            prepare([source], folder / name, Config())
        for seed in range(options.seeds):
            config = load_config(overrides=[*options.set, f"train.seed={seed}", f"cluster.storage={folder / 'runs'}"])
            old = train(folder / "old", config, name=f"old-{seed}")
            scratch = train(folder / "new", config, name=f"scratch-{seed}")
            warm = train(folder / "new", config, name=f"warm-{seed}", begin_from=old.folder)
            found.append(compared(scratch, warm))
    return found


def hold_back(source: str, target: Path, share: float) -> None:
    """Write `user item` lines in time order without each user's latest. source: one file, inside a .zip, too."""
    (file,) = list_files(source)
    lines = read_all(file).decode().splitlines(keepends=True)
    total: dict[str, int] = {}
    for line in lines:
        user = line.split()[0]
        total[user] = total.get(user, 0) + 1
    seen: dict[str, int] = {}
    with target.open("w") as file:
        for line in lines:
            user = line.split()[0]
            seen[user] = seen.get(user, 0) + 1
            if seen[user] <= round(total[user] * (1 - share)):
                file.write(line)


def compared(scratch: RunResult, warm: RunResult) -> dict[str, Any]:
    goal = scratch.metrics[METRIC]
    return {
        "goal": goal,
        **{f"scratch_{name}": value for name, value in reached(scratch, goal).items()},
        **{f"warm_{name}": value for name, value in reached(warm, goal).items()},
        "warm_best": warm.metrics[METRIC],
        "scratch_test": scratch.test[METRIC],
        "warm_test": warm.test[METRIC],
    }


def reached(run: RunResult, goal: float) -> dict[str, Any]:
    """Epochs and seconds of training until validation was as good as `goal`; of all of them where it never was."""
    rows = read_rows(run.folder)
    place = next((n for n, row in enumerate(rows) if row["metrics"][METRIC] >= goal), len(rows) - 1)
    return {"epochs": rows[place]["epoch"], "seconds": round(sum(row["seconds"] for row in rows[: place + 1]), 2)}


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    columns = (
        "goal",
        "scratch_epochs",
        "warm_epochs",
        "scratch_seconds",
        "warm_seconds",
        "warm_best",
        "scratch_test",
        "warm_test",
    )
    rows = [(seed, *(round(run[name], 4) for name in columns)) for seed, run in enumerate(figures["runs"])]
    return f"""
`python benchmarks/bench_warm.py` leaves out the latest {options.held_back:.0%} of each user's events of
`{Path(options.source).name}`, trains on the rest, then on all of it: from scratch, and as `recsys train --from` does.
The goal is the best validation {METRIC} from scratch; epochs and seconds of training are until it is reached, or all of them
where it is not. The earlier run's own time is not counted.

{table(("seed", *columns), rows)}

Median share of the seconds: {figures["share_of_seconds"]}.
"""


if __name__ == "__main__":
    main()
