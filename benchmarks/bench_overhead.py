"""Overhead: `recsys train`, cold, from the command to its result, against the same learning by a plain script without Ray.

python benchmarks/bench_overhead.py [--source FILE] [--epochs 3] [--seeds 3] [--set section.key=value] [--smoke]

Meant for a dataset the size of MovieLens 1M. The rule: total ≤ 1.15 × plain + 10 s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from common import publish, spread, table, training_options

from cluster.runs import read_json, read_rows
from recsys.config import Config, load_config

RECSYS = Path(sys.executable).with_name("recsys")
PLAIN = Path(__file__).with_name("plain_training.py")
OURS, THEIRS = "recsys train", "plain script"
SHARE, SECONDS = 1.15, 10.0  # the rule
SAME = 0.02  # of the validation metric: more apart, and the two do not learn the same
SMOKE = {"epochs": 1, "seeds": 1, "set": ["data.sample=0.05"]}

Run = dict[str, Any]


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(options, Path(folder))
    figures = figures_of(runs, config_of(options, 0).train.metric)
    if options.smoke:
        print(describe(options, figures), file=sys.stderr)
        print(json.dumps(figures))
    else:
        settings = vars(options) | {"source": Path(options.source).name}
        publish("overhead", "What Ray and the run folder add to training", describe(options, figures), figures, settings)


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(seeds=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a twentieth of the users, once, to see that it works; no page")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Run]]:
    """Runs of each way, in turn, on a dataset prepared once."""
    dataset, runs = folder / "dataset", {OURS: [], THEIRS: []}
    tell(f"preparing {Path(options.source).name}")
    timed([RECSYS, "prepare", options.source, dataset, *set_options(options.set)], folder / "cache")
    for seed in range(options.seeds):
        for way, once in ((OURS, train), (THEIRS, train_plainly)):
            runs[way].append(once(dataset, folder / f"{way}-{seed}", options, seed))
            tell(f"seed {seed + 1} of {options.seeds}, {way}: {runs[way][-1]['total']:.1f} s")
        check_same(runs[OURS][-1], runs[THEIRS][-1])
    return runs


def train(dataset: Path, out: Path, options: argparse.Namespace, seed: int) -> Run:
    """`recsys train` in a process of its own, on a Ray of its own."""
    settings = [*overrides(options, seed), f"cluster.storage={out}"]
    seconds = timed([RECSYS, "train", dataset, "--name", "run", *set_options(settings)], out / "cache")
    result, rows = read_json(out / "run" / "result.json") or {}, read_rows(out / "run")
    metric, hardware = config_of(options, seed).train.metric, (read_json(out / "run" / "environment.json") or {})["hardware"]
    return {
        "total": seconds,
        "training": sum(row["seconds"] for row in rows),
        "validation": sum(row["validation_seconds"] for row in rows),
        "valid": result["metrics"][metric],
        "test": result["test"][metric],
        "precision": hardware["precision"],
    }


def train_plainly(dataset: Path, out: Path, options: argparse.Namespace, seed: int) -> Run:
    """The plain script in a process of its own."""
    out.mkdir()
    seconds = timed([sys.executable, PLAIN, dataset, out, *set_options(overrides(options, seed))], out / "cache")
    result = json.loads((out / "result.json").read_bytes())
    parts = {"training": result.pop("training_seconds"), "validation": result.pop("validation_seconds")}
    return {"total": seconds, **parts, **result}


def overrides(options: argparse.Namespace, seed: int) -> list[str]:
    return [*options.set, "cluster.num_workers=1", f"train.epochs={options.epochs}", f"train.seed={seed}"]


def config_of(options: argparse.Namespace, seed: int) -> Config:
    return load_config(overrides=overrides(options, seed))


def set_options(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def timed(command: Sequence[str | Path], cache: Path) -> float:
    """Seconds of a command, which must succeed; with a cache of its own, so that nothing is remembered from runs before.

    What matplotlib knows of this machine's fonts it keeps: finding them takes long, and is done once a machine.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", matplotlib.get_cachedir())}
    began = time.perf_counter()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds


def check_same(ours: Run, theirs: Run) -> None:
    """Raises SystemExit where the times would be of different learning."""
    if abs(ours["valid"] - theirs["valid"]) > SAME * theirs["valid"]:
        raise SystemExit(f"The validation metrics are more than {SAME:.0%} apart ({ours}, {theirs}). Nothing is published.")


def figures_of(runs: Mapping[str, list[Run]], metric: str) -> dict[str, Any]:
    seconds = {
        way: {
            **{name: spread([run[name] for run in done], 2) for name in ("total", "training", "validation")},
            "rest": spread([run["total"] - run["training"] - run["validation"] for run in done], 2),
        }
        for way, done in runs.items()
    }
    ours, theirs = (seconds[way]["total"]["median"] for way in (OURS, THEIRS))
    allowed = SHARE * theirs + SECONDS
    return {
        "seconds": seconds,
        "ratio": round(ours / theirs, 3),
        "difference_seconds": round(ours - theirs, 2),
        "allowed_seconds": round(allowed, 2),
        "met": ours <= allowed,
        "metric": metric,
        "scores": {way: {name: [run[name] for run in done] for name in ("valid", "test")} for way, done in runs.items()},
        "precision": {way: sorted({run["precision"] for run in done}) for way, done in runs.items()},
    }


def describe(options: argparse.Namespace, figures: Mapping[str, Any]) -> str:
    names = ("total", "training", "validation", "rest")
    rows = [(way, *(cell(seconds[name]) for name in names)) for way, seconds in figures["seconds"].items()]
    apart = [
        abs(ours - theirs) / theirs
        for ours, theirs in zip(*(figures["scores"][way]["valid"] for way in (OURS, THEIRS)), strict=True)
    ]
    rule = f"{SHARE} × plain + {SECONDS:g} s = {figures['allowed_seconds']} s"
    return f"""
`python benchmarks/bench_overhead.py` trains on `{Path(options.source).name}` (leave-last-out, full ranking, seen items
removed) for {options.epochs} epochs with one worker, once each way by each of {options.seeds} seeds, in turn. `{OURS}` is the
command, in a process of its own that starts a Ray of its own: checkpoints, progress, curves, the search for a micro-batch, and
validation of the best epoch once more included. `{THEIRS}` is `benchmarks/plain_training.py`, a process without Ray: the same
files, plan, loop, ranking and settings, with the whole batch at once, and the best weights written at the end. Both measure
test once and end with a result; total is from the command to the end of its process. Nothing is remembered from one run to the
next but what the kernel caches of files, and what matplotlib knows of fonts.

{table(("seconds: median (min to max)", *names), rows)}

In all, `{OURS}` takes {figures["ratio"]} times as long as the plain script, {figures["difference_seconds"]:+} s. The rule,
{rule}, is {"met" if figures["met"] else "not met"}.

The validation {figures["metric"]} of the two differs by at most {100 * max(apart):.2g}% at the same seed.
"""


def cell(seconds: Mapping[str, float]) -> str:
    return f"{seconds['median']} ({seconds['min']} to {seconds['max']})"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
