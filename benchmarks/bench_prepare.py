"""Prepare: ml-1m-sized text and generated rows to a dataset folder; seconds, and the most memory all processes held.

    python benchmarks/bench_prepare.py [--rows 20000000] [--source PATH] [--memory-gib 4]

Memory is the sum of the proportional set sizes (shared pages split between their users) of this process and of Ray's, and
what lies in Ray's object store, looked at ten times a second.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pv
from common import publish

from cluster.prepare import prepare
from cluster.session import session
from recsys.config import ClusterConfig, Config, DataConfig

USERS_PER_ROW, ITEMS = 1 / 145, 27_000


def write_ratings(path: Path, rows: int, seed: int = 0) -> None:
    """ratings.csv of ml-20m's shape: popularity and activity fall off like a power, times over 20 years, users in order."""
    rng = np.random.default_rng(seed)
    users = max(1, int(rows * USERS_PER_ROW))
    user = np.sort((users * rng.random(rows) ** 1.5).astype(np.int64))
    with path.open("wb") as file:
        file.write(b"userId,movieId,rating,timestamp\n")
        for first in range(0, rows, 1_000_000):
            size = min(1_000_000, rows - first)
            columns = {
                "user": user[first : first + size] + 1,
                "item": (ITEMS * rng.random(size) ** 3).astype(np.int64) + 1,
                "rating": rng.integers(1, 11, size) / 2,
                "time": rng.integers(789_652_004, 1_427_784_002, size),
            }
            pv.write_csv(pa.table(columns), file, pv.WriteOptions(include_header=False))


class Peak:
    """The most memory that this process and its descendants held at once, in bytes."""

    def __init__(self) -> None:
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.bytes = max(self.bytes, sum(map(_held, _family())))


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # it has ended meanwhile


def measure(source: Path, dataset: Path, **settings: object) -> dict[str, float]:
    """Seconds and peak GiB of one preparation on a Ray of its own."""
    cluster = ClusterConfig(num_workers=1, object_store_bytes=300 << 20)
    config = Config(data=DataConfig(**settings))  # type: ignore[arg-type]
    with Peak() as before_and_all, session(cluster):
        idle = before_and_all.bytes
        stages: dict[str, float] = {}
        start = time.perf_counter()
        manifest = prepare(
            [str(source)], dataset, config, progress=lambda stage, *_: stages.update({stage: time.perf_counter() - start})
        )
        seconds = time.perf_counter() - start
    return {
        "rows": manifest.rows_in,
        "events": manifest.events,
        "seconds": round(seconds, 2),
        "rows_per_second": round(manifest.rows_in / seconds),
        "peak_gib": round(before_and_all.bytes / 2**30, 2),
        "ray_idle_gib": round(idle / 2**30, 2),
        **{f"until_{stage}": round(at, 2) for stage, at in stages.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_209, 20_000_000], help="rows to generate, one run each")
    parser.add_argument("--source", type=Path, help="a real source to prepare as well")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {}
        if options.source:
            figures[options.source.name] = measure(options.source, folder / "dataset")
        for rows in options.rows:
            raw = folder / f"rows-{rows}"
            raw.mkdir()
            write_ratings(raw / "ratings.csv", rows)
            figures[f"{rows} generated rows"] = measure(raw, folder / "dataset")
            print(json.dumps(figures), flush=True)
    if not options.dry:
        text = "ratings.csv of ml-20m's shape to a dataset folder (leave_last_out), by `python benchmarks/bench_prepare.py`."
        publish("prepare", "Prepare", text, figures, {"targets": "ml-1m-sized text < 30 s; 20M rows < 4 GiB"})


if __name__ == "__main__":
    main()
