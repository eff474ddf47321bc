"""Shards of users between parsing and writing: gathered, brought down to a k-core, and measured for the split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster import prepare_steps as steps
from cluster.prepare_steps import Job
from recsys.config import DataConfig
from recsys.data import schema, split, staging
from recsys.data.hashing import uniform
from recsys.data.userfiles import SplitPlan, cored
from recsys.errors import ConfigError, DataError

HOUR = 3600


@dataclass(frozen=True)
class Shards:
    """The gathered shards, with what k-core left. alive: [N] items; users: [S] of each shard; events: before k-core."""

    folder: Path
    alive: NDArray[np.bool_]
    users: NDArray[np.int64]
    events: int
    core: int

    @property
    def numbers(self) -> range:
        """One for each shard."""
        return range(len(self.users))

    def read(self, shard: int) -> staging.Shard:
        """One shard, cored."""
        return cored(staging.read_shard(self.folder, shard), self.alive, self.core)


def gather_shards(job: Job, ranges: int, count: int, items: int) -> Shards:
    """Sort the staged events of all ranges by shard, and drop what k-core drops."""
    ordered = job.source.has_time or job.source.ordered
    work = partial(_gather, job.staging, ranges, job.config, ordered)
    found = np.array(steps.in_order(job, "gather", work, range(count)))
    staging.drop_files(job.staging, "range-*")
    shards = Shards(job.staging, np.ones(items, bool), found[:, 0], int(found[:, 1].sum()), job.config.core)
    return _core(job, shards) if job.config.core > 1 else shards


def plan_split(job: Job, items: pa.Table, shards: Shards) -> SplitPlan:
    """How every shard is to be cut. items: those alive."""
    plan = SplitPlan(job.split, job.config, has_valid=job.source.has_valid)
    if job.split == "time":
        valid_time, test_time = _time_cuts(job, shards)
        return replace(plan, valid_time=valid_time, test_time=test_time)
    if job.split == "items":
        drawn = uniform(items.column(schema.ITEM_ID).to_pylist(), f"items {job.config.seed}")
        return replace(plan, item_segment=split.held_out(drawn, job.config.valid_fraction, job.config.test_fraction))
    return plan


def _gather(folder: Path, ranges: int, config: DataConfig, ordered: bool, shard: int) -> tuple[int, int]:
    return staging.gather(folder, ranges, shard, config, ordered=ordered)


def _core(job: Job, shards: Shards) -> Shards:
    """Drop items and users with fewer than `core` events until none is left to drop."""
    while True:
        counts, users = np.zeros(len(shards.alive), np.int64), np.zeros_like(shards.users)
        for shard, (item_counts, user_count) in steps.stream(job, "core", partial(_core_counts, shards), shards.numbers):
            counts[shards.alive] += item_counts
            users[shard] = user_count
        alive = counts >= shards.core
        settled = bool((alive == shards.alive).all())
        shards = replace(shards, alive=alive, users=users)
        if not alive.any():
            raise DataError(f"data.core = {shards.core}: no user and item has that many events. Lower it.")
        if settled:
            return shards


def _core_counts(shards: Shards, shard: int) -> tuple[NDArray[np.int64], int]:
    left = shards.read(shard)
    counts = np.bincount(left.events.item[left.events.fresh], minlength=int(shards.alive.sum()))
    return counts, len(left.user_ids)


def _time_cuts(job: Job, shards: Shards) -> tuple[int, int]:
    """Unix seconds at which validation and test begin: as asked, else by the shares of all events."""
    config = job.config
    test = config.test_time if config.test_time is not None else _quantile(job, shards, 1 - config.test_fraction)
    valid = config.valid_time
    if valid is None:
        valid = min(test, _quantile(job, shards, 1 - config.test_fraction - config.valid_fraction))
    if valid > test:
        raise ConfigError(f"data.valid_time = {valid} is after the test begins ({test}).")
    return valid, test


def _quantile(job: Job, shards: Shards, share: float) -> int:
    """The time of the event that `share` of all events come before: found by the hour first, then by the second."""
    hours = _count_times(job, shards, HOUR, None)
    wanted = int(share * sum(hours.values()))
    hour, before = _reached(hours, wanted)
    second, _ = _reached(_count_times(job, shards, 1, hour), wanted - before)
    return second


def _reached(counts: Mapping[int, int], wanted: int) -> tuple[int, int]:
    """The first key whose running count passes `wanted`, and the count before it; the key after the last if none does."""
    before, key = 0, -1
    for key in sorted(counts):
        if before + counts[key] > wanted:
            return key, before
        before += counts[key]
    return key + 1, before


def _count_times(job: Job, shards: Shards, unit: int, hour: int | None) -> Counter[int]:
    counts = Counter[int]()
    for _, part in steps.stream(job, "times", partial(_shard_times, shards, unit, hour), shards.numbers):
        counts.update(part)
    return counts


def _shard_times(shards: Shards, unit: int, hour: int | None, shard: int) -> dict[int, int]:
    time = shards.read(shard).events.time
    time = time if hour is None else time[time // HOUR == hour]
    units, counts = np.unique(time // unit, return_counts=True)
    return dict(zip(units.tolist(), counts.tolist(), strict=True))
