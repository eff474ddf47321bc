"""Ingest: dataset folder → shuffled tensors in a worker, against Ray Data's stock iterator; pyarrow alone is the limit.

python benchmarks/bench_ingest.py [--events 20000000] [--runs 5] [--memory-events 1000000 20000000 200000000]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray
import ray.data
from common import publish, spread, table

from cluster import ingest
from cluster.ahead import ahead
from cluster.held import HeldShards
from cluster.session import session
from recsys.config import ClusterConfig
from recsys.data import schema, userfiles
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.data.histories import Histories
from recsys.data.plan import MacroBatch, epoch_plan, step_sizes

BATCH, BUFFER = 8192, 200_000
USER_EVENTS, ITEMS = 145, 62_000
GIGABYTE = 1e9
OURS = ["ours", "ours_streaming"]  # in memory, and by Ray Data
Source = Callable[[Sequence[MacroBatch]], Iterator[pa.Table]]


def main() -> None:
    options = arguments()
    if options.watch_memory:
        print(json.dumps(streamed(Path(options.watch_memory), options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speeds = compare(Path(folder), options)
        sizes = {str(events): streamed_in_a_process(events, Path(folder), options) for events in options.memory_events}
    figures = {"events_per_second": speeds, "ratios": ratios(speeds), "sizes": sizes}
    if options.events < 1_000_000:  # a trial, not a figure
        print(json.dumps(figures))
    else:
        publish("ingest", "Ingest: shuffled tensors in a training worker", describe(options, figures), figures, vars(options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--later", type=int, default=2, help="epochs after the first, in each run")
    parser.add_argument("--memory-events", type=int, nargs="*", default=[1_000_000, 20_000_000, 200_000_000])
    parser.add_argument("--window-events", type=int, default=ClusterConfig().window_events)
    parser.add_argument("--readers", type=int, default=ClusterConfig().readers_on(os.cpu_count() or 1))
    parser.add_argument("--prefetch", type=int, default=ClusterConfig().readers_on(os.cpu_count() or 1))
    parser.add_argument("--only-ours", action="store_true", help="leave the peers out, to choose settings")
    parser.add_argument("--folder", help="where to put the generated events; by default the system's temporary folder")
    parser.add_argument("--watch-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Events a second of each contender, first epoch and later ones apart; Ray and a worker anew each time, A B C A B C."""
    generate(folder / "speed", options.events, flat=not options.only_ours)
    contenders = OURS if options.only_ours else [*OURS, "ray_local_shuffle", "pyarrow"]
    first: dict[str, list[float]] = {name: [] for name in contenders}
    later: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.runs):
        for name in contenders:
            with session(cluster_config(options)):
                rates = ray.get(worker_rates.remote(name, folder / "speed", options))
            first[name].append(rates[0])
            later[name].extend(rates[1:])
    return {name: {"first_epoch": spread(first[name], 0), "later": spread(later[name], 0)} for name in contenders}


@ray.remote(num_cpus=1)
def worker_rates(contender: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """Events a second of an epoch and of later ones, in a process that has loaded what a training worker loads."""
    manifest = read_manifest(folder)
    source = our_source(folder, manifest, options, holds=contender == OURS[0])
    epochs: dict[str, Callable[[int], Iterator[int]]] = {
        "ray_local_shuffle": lambda _: stock_epoch(folder),
        "pyarrow": lambda _: bare_epoch(folder),
    }
    epoch = epochs.get(contender, lambda number: our_epoch(source, manifest, number, options))
    return [rate(epoch(number), manifest) for number in range(1 + options.later)]


def cluster_config(options: argparse.Namespace) -> ClusterConfig:
    return ClusterConfig(
        readers=options.readers, prefetch=options.prefetch, window_events=options.window_events, object_store_bytes=1 << 29
    )


def rate(batches: Iterator[int], manifest: DatasetManifest) -> float:
    """Events a second; every train event must have come."""
    start = time.perf_counter()
    events = sum(batches)
    seconds = time.perf_counter() - start
    assert events == manifest.segments[schema.TRAIN], f"{events} of {manifest.segments[schema.TRAIN]} events came"
    return events / seconds


def our_source(folder: Path, manifest: DatasetManifest, options: argparse.Namespace, *, holds: bool) -> Source:
    """As a training worker reads its shards, where they fit in memory and where they do not."""
    reads = {"readers": options.readers, "prefetch": options.prefetch}
    if holds:
        return HeldShards(folder / schema.USERS_FOLDER, manifest.user_files, manifest.user_files, **reads).macro_batches
    return partial(ingest.macro_batches, folder, manifest, **reads)


def our_epoch(source: Source, manifest: DatasetManifest, epoch: int, options: argparse.Namespace) -> Iterator[int]:
    """Sizes of the batches of an epoch as a worker gets them: checked against hashes, permuted, tensors."""
    plan = epoch_plan(0, epoch, 1, manifest, window_events=options.window_events, mix_shards=8)
    parts = ahead(ingest.pair_parts(source(plan.ranks[0])))
    return map(len, ingest.pair_batches(parts, step_sizes(plan.amounts(), 0, BATCH)))


def stock_epoch(folder: Path) -> Iterator[int]:
    """The same events as flat rows through Ray Data's own iterator."""
    rows = ray.data.read_parquet(str(folder / "flat"))
    batches = rows.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=BUFFER)
    return (len(batch[schema.USER]) for batch in batches)


def bare_epoch(folder: Path) -> Iterator[int]:
    """The flat rows through pyarrow alone, not shuffled: nobody can be faster from this disk."""
    batches = pyarrow.dataset.dataset(folder / "flat").to_batches(batch_size=BATCH)
    return (len(batch) for batch in batches)


def generate(folder: Path, events: int, *, flat: bool) -> DatasetManifest:
    """A dataset folder as `recsys prepare` lays it out, a shard at a time, and with `flat` its train events as rows."""
    shards = 20 + events // 1_000_000
    (folder / schema.USERS_FOLDER).mkdir(parents=True)
    (folder / "flat").mkdir()
    files, first_user, rng = [], 0, np.random.default_rng(0)
    for shard in range(shards):
        users = events // shards // USER_EVENTS
        histories = random_histories(rng, first_user, users, events // shards)
        files.append(userfiles._write(as_table(histories), schema.ALL, shard, 131_072, folder / schema.USERS_FOLDER))
        if flat:
            pairs = histories.segment(schema.TRAIN).pairs()
            rows = pa.table({schema.USER: pairs.user, schema.ITEM: pairs.item, schema.RATING: pairs.rating})
            pq.write_table(rows, folder / "flat" / f"{shard:05d}.parquet", row_group_size=131_072, compression="zstd")
        first_user += users
    manifest = DatasetManifest(
        sources=(), config={}, split="leave_last_out", repeats="last", has_rating=True, has_time=True, rows_in=events,
        users=first_user, items=ITEMS, events=sum(file.events for file in files),
        segments={schema.TRAIN: sum(file.train_events for file in files), schema.VALID: first_user, schema.TEST: first_user},
        dropped={}, rejects={}, first_time=0, last_time=0, mean_rating=3.5, items_sha256="", items_size=0,
        user_files=tuple(files),
    )  # fmt: skip
    (folder / schema.DATASET_FILE).write_text(manifest.model_dump_json())
    return manifest


def random_histories(rng: np.random.Generator, first_user: int, users: int, events: int) -> Histories:
    """Users of very different activity on items of very different popularity."""
    share = rng.lognormal(sigma=1.0, size=users)
    lengths = np.maximum((share / share.sum() * events).astype(np.int64), 3)
    total = int(lengths.sum())
    item = (ITEMS * rng.random(total, np.float32) ** 3).astype(np.int32)
    return Histories(
        user=np.arange(first_user, first_user + users, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item=np.minimum(item, ITEMS - 1),
        rating=(rng.integers(1, 11, total) / 2).astype(np.float32),
        time=rng.integers(8 * 10**8, 17 * 10**8, total),
        valid_from=(lengths - 2).astype(np.int32),
        test_from=(lengths - 1).astype(np.int32),
    )


def as_table(histories: Histories) -> pa.Table:
    offsets = pa.array(histories.offsets.astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(c)) for c in (histories.item, histories.rating, histories.time)]
    ids = pa.array([str(user) for user in histories.user])
    return pa.table([histories.user, ids, *lists, histories.valid_from, histories.test_from], schema=schema.USERS)


def streamed_in_a_process(events: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """`streamed` of a dataset made for it, in a process of its own."""
    generate(folder / str(events), events, flat=False)
    command = [sys.executable, __file__, "--watch-memory", str(folder / str(events)), "--readers", str(options.readers)]
    command += ["--prefetch", str(options.prefetch), "--window-events", str(options.window_events)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(folder / str(events))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def streamed(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of two streamed epochs; the most gigabytes of all processes with the object store, and open files, over both."""
    peak, over = {"gigabytes": 0.0, "open_files": 0.0}, threading.Event()
    with session(cluster_config(options)):
        watcher = threading.Thread(target=watch, args=(peak, over))
        watcher.start()
        manifest = read_manifest(folder)
        source = our_source(folder, manifest, options, holds=False)
        rates = [rate(our_epoch(source, manifest, epoch, options), manifest) for epoch in range(2)]
        over.set()
        watcher.join()
    seconds = {
        f"seconds_{when}": manifest.segments[schema.TRAIN] / r for when, r in zip(("first", "later"), rates, strict=True)
    }
    return {name: round(value, 2) for name, value in (peak | seconds).items()}


def watch(peak: dict[str, float], over: threading.Event) -> None:
    """Proportional set sizes, so that what processes share is counted once; files of the dataset open in any process."""
    while not over.wait(0.1):
        members = family()
        peak["gigabytes"] = max(peak["gigabytes"], sum(map(proportional_size, members)) / GIGABYTE)
        peak["open_files"] = max(peak["open_files"], sum(map(open_parquet, members)))


def family() -> list[psutil.Process]:
    return [psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children(recursive=True)]


def proportional_size(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it ended meanwhile
        return 0


def open_parquet(process: psutil.Process) -> int:
    try:
        return sum(file.path.endswith(".parquet") for file in process.open_files())
    except (psutil.Error, OSError):
        return 0


def ratios(speeds: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of ours as multiples of the others'."""
    return {
        f"{mine} / {other}": {w: round(speeds[mine][w]["median"] / speeds[other][w]["median"], 2) for w in speeds[mine]}
        for mine in OURS
        for other in speeds
        if other not in OURS
    }


def describe(options: argparse.Namespace, figures: dict) -> str:
    speeds = figures["events_per_second"]
    rows = [(n, *(f"{s[w]['median'] / 1e6:.1f}" for w in ("first_epoch", "later"))) for n, s in speeds.items()]
    names = ("seconds_first", "seconds_later", "gigabytes", "open_files")
    sizes = [(f"{int(events):,}", *(row[name] for name in names)) for events, row in figures["sizes"].items()]
    return f"""
`python benchmarks/bench_ingest.py` reads {options.events:,} generated events in one worker, {options.runs} runs in turn, Ray
and the worker started anew for each. `ours`: macro-batches of {options.window_events:,} events by the epoch plan, every file
hashed against the manifest, permuted, cut to tensors of {BATCH}, by threads of a worker whose shards fit in its memory: read
in the first epoch, held for later ones; `ours_streaming`: the same by Ray Data, as where they do not fit.
`ray_local_shuffle`: Ray Data's stock iterator over the same train events as flat rows, `iter_torch_batches(batch_size={BATCH},
local_shuffle_buffer_size={BUFFER:,})`. `pyarrow`: the flat rows, read only.

{table(("million events/s, medians", "first epoch", "later epochs"), rows)}

As multiples: {_multiples(figures["ratios"])}.

Datasets of different sizes, all epochs streamed; gigabytes and open files are the most over both epochs and all processes, the
object store included.

{table(("events", "first epoch, s", "second epoch, s", "GB", "dataset files open"), sizes)}
"""


def _multiples(ratios: dict[str, dict[str, float]]) -> str:
    return "; ".join(f"{pair} {r['first_epoch']}× in the first epoch, {r['later']}× later" for pair, r in ratios.items())


if __name__ == "__main__":
    main()
