"""A gathered shard to its user files: core, split, repeats, one row a user, row groups of even size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.config import DataConfig
from recsys.data import schema, split
from recsys.data.dataset import RowGroup, UserFile, file_sha256
from recsys.data.hashing import uniform
from recsys.data.histories import Histories
from recsys.data.split import Events
from recsys.data.staging import Shard

REPEATING = [f"{name}.list.element" for name in (schema.ITEM, schema.RATING)]


@dataclass(frozen=True)
class SplitPlan:
    """How every shard is cut. split: one of config.Split but `auto`; times: of the split `time`.

    item_segment: [N] of the split `items`; has_valid: the published split brings a validation set.
    """

    split: str
    config: DataConfig
    valid_time: int = 0
    test_time: int = 0
    item_segment: NDArray[np.int8] | None = None
    has_valid: bool = False


@dataclass(frozen=True)
class Written:
    """What a shard became."""

    files: list[UserFile]
    train_counts: NDArray[np.int64]
    segments: dict[str, int]
    dropped_repeats: int
    rating_sum: float
    first_time: int
    last_time: int


def cored(shard: Shard, alive: NDArray[np.bool_], core: int) -> Shard:
    """The shard without dropped items and users; users and items numbered anew. alive: [N] items."""
    if alive.all() and core <= 1:
        return shard
    users = split.core_users(shard.events, alive, len(shard.user_ids), core)
    events = shard.events.take(users[shard.events.user] & alive[shard.events.item])
    numbers, items = (np.cumsum(mask, dtype=np.int32) - 1 for mask in (users, alive))
    events = replace(events, user=numbers[events.user], item=items[events.item])
    return Shard(events, shard.user_ids.filter(pa.array(users)), shard.user_hashes[users])


def write_users(shard: Shard, number: int, plan: SplitPlan, items: int, first_user: int, folder: Path) -> Written:
    """Split one shard and write its files, users numbered from `first_user` on."""
    roles = _roles(shard, plan)
    events, segment = _split(shard, roles, plan)
    keep = split.kept(events, segment, plan.config.repeats)
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((segment[rows], events.user[rows]))]
    table = _table(shard, events.take(rows), segment[rows])
    files, number_from = [], first_user
    for role, users in _of_roles(roles, plan):
        if len(users):
            part = table.take(pa.array(users))
            part = part.set_column(0, schema.USER, pa.array(np.arange(number_from, number_from + len(users), dtype=np.int32)))
            files.append(_write(part, role, number, plan.config.row_group_events, folder))
            number_from += len(users)
    return _written(files, events.take(rows), segment[rows], roles, items, int((~keep).sum()), plan)


def _roles(shard: Shard, plan: SplitPlan) -> NDArray[np.int8]:
    """[U] the segment each user is held out for, by the split `users`."""
    if plan.split != "users":
        return np.zeros(len(shard.user_ids), np.int8)
    drawn = uniform(shard.user_ids.to_pylist(), f"users {plan.config.seed}")
    return split.held_out(drawn, plan.config.valid_fraction, plan.config.test_fraction)


def _split(shard: Shard, roles: NDArray[np.int8], plan: SplitPlan) -> tuple[Events, NDArray[np.int8]]:
    events, users = shard.events, len(shard.user_ids)
    match plan.split:
        case "time":
            return events, split.by_time(events, plan.valid_time, plan.test_time)
        case "leave_last_out":
            return events, split.leave_last_out(events, users)
        case "users":
            return events, split.by_shown(events, users, plan.config.shown_fraction, roles)
        case "items":
            assert plan.item_segment is not None
            return events, split.by_item(events, plan.item_segment)
        case _:
            return events, split.given(events, users, 0.0 if plan.has_valid else plan.config.valid_fraction)


def _of_roles(roles: NDArray[np.int8], plan: SplitPlan) -> Iterator[tuple[str, NDArray[np.int64]]]:
    if plan.split != "users":
        yield schema.ALL, np.arange(len(roles))
        return
    for code, role in enumerate(schema.SEGMENTS):
        yield role, np.flatnonzero(roles == code)


def _table(shard: Shard, events: Events, segment: NDArray[np.int8]) -> pa.Table:
    users = len(shard.user_ids)
    counts = np.stack([np.bincount(events.user[segment == code], minlength=users) for code in range(3)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts.sum(axis=0))]).astype(np.int32))
    columns = [
        pa.array(np.zeros(users, np.int32)),
        shard.user_ids,
        *(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (events.item, events.rating, events.time)),
        pa.array(counts[0].astype(np.int32)),
        pa.array((counts[0] + counts[1]).astype(np.int32)),
    ]
    return pa.table(columns, schema=schema.USERS)


def _write(table: pa.Table, role: str, shard: int, row_group_events: int, folder: Path) -> UserFile:
    path = folder / f"{role}-{shard:05d}.parquet"
    lengths = Histories.from_arrow(table.select(schema.USERS.names)).lengths
    groups = []
    # Measured on rows like ml-20m's: dictionaries decode twice as fast as plain values under compression (90M events/s a
    # core), and zstd halves the file that snappy leaves for a tenth of the speed. Times are nearly all different.
    with pq.ParquetWriter(path, schema.USERS, compression="zstd", compression_level=1, use_dictionary=REPEATING) as writer:
        for first, last in row_groups(lengths, row_group_events):
            part = table.slice(first, last - first)
            writer.write_table(part, row_group_size=last - first)
            groups.append(_row_group(part, role))
    return UserFile(
        name=path.name,
        role=role,
        shard=shard,
        rows=len(table),
        events=int(lengths.sum()),
        first_user=table.column(schema.USER)[0].as_py(),
        row_groups=tuple(groups),
        size=path.stat().st_size,
        sha256=file_sha256(path),
    )


def row_groups(lengths: NDArray[np.int64], events: int) -> list[tuple[int, int]]:
    """Bounds of runs of users who have about `events` events together."""
    ends = np.cumsum(lengths)
    groups = max(1, round(int(ends[-1]) / events))
    targets = ends[-1] * np.arange(1, groups) / groups
    cuts = np.unique(np.concatenate([[0], np.searchsorted(ends, targets) + 1, [len(lengths)]]))
    return [(int(first), int(last)) for first, last in pairwise(cuts)]


def _row_group(part: pa.Table, role: str) -> RowGroup:
    events = int(Histories.from_arrow(part).lengths.sum())
    trains = role in (schema.ALL, schema.TRAIN)
    train_events = int(part.column(schema.VALID_FROM).to_numpy().sum()) if trains else 0
    return RowGroup(rows=len(part), events=events, train_events=train_events)


def _written(
    files: list[UserFile],
    events: Events,
    segment: NDArray[np.int8],
    roles: NDArray[np.int8],
    items: int,
    dropped: int,
    plan: SplitPlan,
) -> Written:
    trains = roles[events.user] == split.TRAIN
    train = trains & (segment == split.TRAIN)
    segments = {name: int((trains & (segment == code)).sum()) for code, name in enumerate(schema.SEGMENTS)}
    if plan.split == "users":
        held = {name: int((~trains & (segment == code)).sum()) for code, name in enumerate(schema.SEGMENTS)}
        segments = {schema.TRAIN: segments[schema.TRAIN], "shown": held.pop(schema.TRAIN), **held}
    return Written(
        files=files,
        train_counts=np.bincount(events.item[train], minlength=items),
        segments=segments,
        dropped_repeats=dropped,
        rating_sum=float(events.rating[train].sum(dtype=np.float64)),
        first_time=int(events.time.min()) if len(events) else 0,
        last_time=int(events.time.max()) if len(events) else 0,
    )
