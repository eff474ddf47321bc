"""How soon a replica can answer from a large bundle whose files were hashed before, and what memory it takes for it.

python benchmarks/bench_open.py [--users 1000000] [--items 62000] [--runs 5]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import publish, spread

from recsys.bundle import store
from recsys.bundle.manifest import FoldIn, IndexReport
from recsys.bundle.users import UserBlock
from recsys.bundle.write import BundleContents, write_bundle
from recsys.config import IndexConfig
from recsys.data import schema
from recsys.data.histories import Histories
from recsys.retrieval import ann
from recsys.retrieval.fold_in import gram_of
from recsys.retrieval.measure import measure

DIM, EVENTS, BLOCK = 64, 20, 50_000

# What a replica does before its first answer, beside one that does nothing.
OPEN = """
import json, sys, time, numpy, psutil
from pathlib import Path
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.retrieval.products import Int8Products
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
import serve.http
numpy.ones((64, 64), numpy.float32) @ numpy.ones((64, 60000), numpy.float32)  # BLAS keeps what it works in
Int8Products(numpy.ones((64, 64), numpy.float32))  # and ONNX Runtime is loaded
process = psutil.Process()
empty, began = process.memory_info().rss, time.perf_counter()
recommender = Recommender(open_bundle(store.resolve(Path(sys.argv[1]))))
seconds, opened = time.perf_counter() - began, process.memory_info().rss
recommender.recommend([Request(user=f"u{user}", k=10) for user in range(64)])
answered = process.memory_info().rss
print(json.dumps({"seconds": seconds, "open_mb": (opened - empty) / 1e6, "answers_mb": (answered - empty) / 1e6}))
"""

TEXT = """
`python benchmarks/bench_open.py`: a bundle of {users:,} users and {items:,} items of {dim} dimensions, {events} events a user,
{size:.0f} MB on disk, its index `{kind}`; a new process opens it {runs} times, its files hashed once before.

Until it can answer: **{seconds} s**. Resident memory above a process that has loaded the code and ONNX Runtime:
**{open_mb} MB**, where index and item vectors are {held:.0f} MB; after 64 answers {answers_mb} MB, since what is
touched of the mapped files counts, 64 KB around each row, though all replicas of a host share it.
"""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RECSYS_CACHE"] = str(Path(folder) / "cache")
        write(Path(folder) / "bundles", options.users, options.items)
        bundle = store.resolve(Path(folder) / "bundles")
        report = store.read_manifest(bundle).index
        assert report is not None
        runs = [opened(bundle) for _ in range(options.runs + 1)][1:]  # the first hashes
        figures: dict[str, Any] = {name: spread([run[name] for run in runs], 3) for name in runs[0]}
        figures |= {"held_mb": held(bundle), "size_mb": sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) / 1e6}
    text = TEXT.format(
        **vars(options),
        dim=DIM,
        events=EVENTS,
        size=figures["size_mb"],
        kind=report.kind,
        seconds=of(figures["seconds"]),
        open_mb=of(figures["open_mb"]),
        answers_mb=of(figures["answers_mb"]),
        held=figures["held_mb"],
    )
    publish("open", "Opening a bundle", text, figures, vars(options) | {"dim": DIM, "events": EVENTS})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=62_000)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def opened(bundle: Path) -> dict[str, float]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # as a replica
    command = [sys.executable, "-c", OPEN, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | one_thread)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def held(bundle: Path) -> float:
    """MB of index and item vectors."""
    return sum(path.stat().st_size for path in bundle.iterdir() if path.name.startswith(("index", "item_vectors"))) / 1e6


def write(root: Path, users: int, items: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, DIM)).astype(np.float32)
    indexed = np.arange(items, dtype=np.int32)
    built, report = ann.build(vectors, indexed, IndexConfig())
    contents = contents_of(vectors, built, report, users, blocks(users, items, rng))
    write_bundle(root, "large", contents, finish=lambda bundle: measure(bundle, 200))


def contents_of(
    vectors: np.ndarray, built: Any, report: IndexReport, users: int, of_users: Iterable[UserBlock]
) -> BundleContents:
    """Of a made model with a table of users, all items indexed. built, report: as `ann.build` returns."""
    indexed = np.arange(len(vectors), dtype=np.int32)
    return BundleContents(
        model="mf",
        items=catalogue(len(vectors)),
        popular=indexed,
        users=users,
        events=users * EVENTS,
        blocks=of_users,
        dataset="made",
        item_vectors=vectors,
        index=built,
        report=report,
        known_user="table",
        fold_in=FoldIn(kind="ridge", parameters={"free": DIM, "weight": 0.1, "ridge": 1.0, "unit": 1}),
        gram=gram_of(vectors, indexed),
    )


def catalogue(items: int) -> pa.Table:
    columns = {
        schema.ITEM: range(items),
        schema.ITEM_ID: [f"i{item}" for item in range(items)],
        schema.TITLE: [f"Film {item}" for item in range(items)],
        schema.YEAR: [1920 + item % 100 for item in range(items)],
        schema.GENRES: [["Drama", "Comedy"][: 1 + item % 2] for item in range(items)],
        schema.COUNT: [EVENTS] * items,
    }
    return pa.table(columns, schema=schema.ITEMS.append(pa.field(schema.COUNT, pa.int64())))


def blocks(users: int, items: int, rng: np.random.Generator) -> Iterator[UserBlock]:
    for first in range(0, users, BLOCK):
        count = min(BLOCK, users - first)
        offsets = np.arange(count + 1, dtype=np.int64) * EVENTS
        chosen = (rng.integers(0, items, (count, 1)) + np.arange(EVENTS) * 7) % items  # no item twice
        ones = np.ones(count * EVENTS, np.float32)
        bounds = np.full(count, EVENTS, np.int32)
        numbers = np.arange(first, first + count, dtype=np.int32)
        histories = Histories(
            numbers, offsets, chosen.astype(np.int32).ravel(), ones, np.zeros(len(ones), np.int64), bounds, bounds
        )
        vectors = rng.standard_normal((count, DIM)).astype(np.float32)
        yield UserBlock(pa.array([f"u{user}" for user in range(first, first + count)]), histories, vectors)


def of(figure: dict[str, float]) -> str:
    return f"{figure['median']} ({figure['min']}–{figure['max']})"


if __name__ == "__main__":
    main()
