"""A catalogue of ten million items: whether it can be published and served, what memory that takes, and what is found.

python benchmarks/bench_large.py [--items 10000000] [--storage int8] [--folder FOLDER]

Vectors as in bench_ann: resampled with noise from a truncated SVD of ml-1m. Each step is a process of its own, whose peak of
resident memory is told, with and without mapped files. FOLDER keeps what was made, so that a step is not done again; it takes
10 GB of disk.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import publish, spread, table
from numpy.lib.format import open_memmap

DIM, PIECE, USERS = 64, 250_000, 10_000
NOISE = 0.5
WARM = 10
STEPS = ("vectors", "bundle", "serve")

TEXT = """
`python benchmarks/bench_large.py --storage {storage}`: a bundle of {items:,} items of {dim} dimensions and
{users:,} users, {size:.1f} GB on disk, its index `{kind}` ({storage}: {parameters}).
Vectors are resampled with noise from a truncated SVD of ml-1m, those of users likewise. Each step is a process of its own;
peak is its largest resident memory, mapped files included; pages of these the kernel takes back where memory is short.

{steps}

**recall@10 {recall:.4f}** (at least {low:.4f}) against exact search, over {audited:,} users. By the audit at export one user
of 64 takes the index {ann_ms:.2f} ms and exact search {exact_ms:.0f} ms on one thread. Requests to the `Recommender`, {threads}
threads:

{requests}
"""


class OwnMemory(threading.Thread):
    """The most memory of this process that is not pages of files, which the kernel takes back where others want it."""

    EVERY_S = 0.02

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = max(self.peak, 1024 * int(told["RssAnon"].split()[0]))
            time.sleep(self.EVERY_S)


def main() -> None:
    options = arguments()
    if options.step:
        own = OwnMemory()
        own.start()
        told = globals()[options.step](options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        told |= {"peak_gb": round(peak, 2), "own_gb": round(own.peak / 1e9, 2)}
        (options.folder / f"{options.step}.json").write_text(json.dumps(told))
        return
    if options.folder is not None:
        run(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        run(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--storage", default="int8", help="of the index (index.storage)")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """The steps that are not done yet, then the page. Raises SystemExit for a folder of other settings."""
    options.folder.mkdir(parents=True, exist_ok=True)
    kept, asked = options.folder / "settings.json", {"items": options.items, "storage": options.storage, "runs": options.runs}
    if kept.exists() and json.loads(kept.read_text()) != asked:
        raise SystemExit(f"{options.folder}: holds steps of {kept.read_text()}. Give another --folder, or the same settings.")
    kept.write_text(json.dumps(asked))
    environment = os.environ | {"RECSYS_CACHE": str(options.folder / "cache")}
    for step in STEPS:
        if not (options.folder / f"{step}.json").exists():
            print(f"{time.strftime('%H:%M')} {step}", flush=True)
            subprocess.run([sys.executable, __file__, "--step", step, *as_arguments(options)], check=True, env=environment)
    figures = {step: json.loads((options.folder / f"{step}.json").read_text()) for step in STEPS}
    settings = asked | {"dim": DIM, "users": USERS}
    publish("large", "Ten million items", describe(figures, options), figures, settings)


def as_arguments(options: argparse.Namespace) -> list[str]:
    told = {"--items": options.items, "--storage": options.storage, "--runs": options.runs, "--folder": options.folder}
    return [part for name, value in told.items() for part in (name, str(value))]


def vectors(options: argparse.Namespace) -> dict[str, Any]:
    """Items and users, piece after piece."""
    from bench_ann import resampled, trained

    item_vectors, user_vectors = trained(DIM)
    rng, began = np.random.default_rng(0), time.perf_counter()
    made = open_memmap(options.folder / "items.npy", "w+", np.float32, (options.items, DIM))
    for first in range(0, options.items, PIECE):
        count = min(PIECE, options.items - first)
        made[first : first + count] = resampled(item_vectors, count, NOISE, rng)
    made.flush()
    np.save(options.folder / "users.npy", resampled(user_vectors, USERS, NOISE, rng))
    return {"seconds": time.perf_counter() - began}


def bundle(options: argparse.Namespace) -> dict[str, Any]:
    """Build the index, write the bundle, and measure it, as `recsys export` does."""
    from bench_open import contents_of

    from recsys.bundle.write import write_bundle
    from recsys.config import IndexConfig
    from recsys.retrieval import ann
    from recsys.retrieval.measure import measure

    items, began = np.load(options.folder / "items.npy", mmap_mode="r"), time.perf_counter()
    indexed = np.arange(options.items, dtype=np.int32)
    built, report = ann.build(items, indexed, IndexConfig(storage=options.storage))
    built_after = time.perf_counter() - began
    print(f"{time.strftime('%H:%M')} built after {built_after:.0f} s", flush=True)
    contents = contents_of(items, built, report, USERS, users(options))
    write_bundle(options.folder / "bundles", "large", contents, finish=lambda made: measure(made, 1000))
    return {"build_seconds": built_after, "seconds": time.perf_counter() - began}


def users(options: argparse.Namespace) -> Iterator[Any]:
    """One block of them."""
    from bench_open import blocks

    (block,) = blocks(USERS, options.items, np.random.default_rng(1))
    block.vectors[:] = np.load(options.folder / "users.npy")
    yield block


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Open it, and ask: one user at a time and 64 at once, by the index, exactly, and with a filter."""
    from recsys.bundle import store
    from recsys.bundle.read import open_bundle
    from recsys.retrieval.recommender import Recommender
    from recsys.retrieval.requests import Condition, Request

    began = time.perf_counter()
    opened = open_bundle(store.resolve(options.folder / "bundles"))
    recommender = Recommender(opened)
    told: dict[str, Any] = {"seconds": time.perf_counter() - began}
    asked = {
        "one user": [Request(user="u0", k=10)],
        "64 users": [Request(user=f"u{user}", k=10) for user in range(64)],
        "one user, exact": [Request(user="u0", k=10, mode="exact")],
        "one user, two decades": [Request(user="u0", k=10, filters=(Condition("year", min=1960, max=1979),))],
    }
    told["ms"] = {name: spread(times(recommender, requests, options.runs), 2) for name, requests in asked.items()}
    report = opened.manifest.index
    assert report is not None
    size = sum(file.stat().st_size for file in opened.folder.rglob("*") if file.is_file()) / 1e9
    return told | {"index": report.model_dump(mode="json"), "size_gb": size}


def times(recommender: Any, requests: list[Any], runs: int) -> list[float]:
    """Milliseconds of each of some runs, after some that do not count: they read the files."""
    taken = []
    for _ in range(runs + WARM):
        began = time.perf_counter()
        answers = recommender.recommend(requests)
        taken.append(1000 * (time.perf_counter() - began))
        assert all(len(answer.items) == 10 for answer in answers)
    return taken[WARM:]


def describe(figures: dict[str, Any], options: argparse.Namespace) -> str:
    index = figures["serve"]["index"]
    named = {
        "vectors": "making vectors",
        "bundle": f"building the index ({figures['bundle']['build_seconds']:.0f} s of it), writing and measuring the bundle",
        "serve": "opening it, and all requests below (time is that of opening)",
    }
    told = ("seconds", "peak_gb", "own_gb")
    steps = [(name, *(f"{figures[step][figure]:.4g}" for figure in told)) for step, name in named.items()]
    requests = [(name, *(ms[key] for key in ("median", "min", "max"))) for name, ms in figures["serve"]["ms"].items()]
    return TEXT.format(
        storage=options.storage,
        items=options.items,
        dim=DIM,
        users=USERS,
        size=figures["serve"]["size_gb"],
        kind=index["kind"],
        parameters=", ".join(f"{name} {value:,}" for name, value in index["parameters"].items()),
        steps=table(("step", "seconds", "peak GB", "without pages of files"), steps),
        recall=index["recall_at_10"],
        low=index["recall_low"],
        audited=index["users"],
        ann_ms=index["ann_ms"],
        exact_ms=index["exact_ms"],
        threads=os.cpu_count(),
        requests=table(("ms", "median", "min", "max"), requests),
    )


if __name__ == "__main__":
    main()
