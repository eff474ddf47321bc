"""Between raw ranges and user files: events of a range dealt to shards, then gathered shard by shard.

A staging folder holds, for each range, `range-*.arrow` (a record batch a shard; items coded within the range) and
`items-*.arrow` (the ids of those codes); for each shard, `events-*.arrow` (sorted, coded over the whole source) and
`users-*.arrow`.
"""

import math
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.config import DataConfig
from recsys.data import schema
from recsys.data.hashing import hash_ids, mixed, shard_of, uniform
from recsys.data.sources.base import Parsed
from recsys.data.split import Events, fresh_events

HASH = "hash"
COLUMNS = tuple(column.name for column in fields(Events))
CODED = pa.schema(
    [
        (schema.USER_ID, pa.string()),
        (schema.ITEM, pa.int32()),
        (schema.RATING, pa.float32()),
        (schema.TIME, pa.int64()),
        (schema.ORDER, pa.int64()),
        (schema.ROLE, pa.int8()),
    ]
)


class Dealt(NamedTuple):
    """What became of a range's rows."""

    events: int
    dropped_rating: int
    dropped_sample: int


class Shard(NamedTuple):
    """A gathered shard: its events, and its users' ids and hashes, sorted by id."""

    events: Events
    user_ids: pa.Array
    user_hashes: NDArray[np.uint64]


def deal(parsed: Parsed, config: DataConfig, shards: int, staging: Path, index: int) -> Dealt:
    """Filter a range's events (rating, sample) and write them, a record batch for each shard."""
    events = parsed.events
    rated = _rated(events, config)
    users = rated.column(schema.USER_ID).combine_chunks().dictionary_encode()
    users = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
    names = users.dictionary.to_pylist()
    codes = users.indices.to_numpy()
    sampled = _sampled(names, config)[codes]
    shard = shard_of(names, shards)[codes]
    rows = np.flatnonzero(sampled)
    rows = rows[np.argsort(shard[rows], kind="stable")]
    bounds = np.searchsorted(shard[rows], np.arange(shards + 1))
    _write_range(rated.take(pa.array(rows)), bounds, staging, index)
    return Dealt(len(rows), len(events) - len(rated), len(rated) - len(rows))


def range_items(staging: Path, index: int) -> pa.Array:
    """Ids of the items in a range, by code."""
    return _read_arrow(staging / f"items-{index:05d}.arrow").column(schema.ITEM_ID).combine_chunks()


def write_codes(staging: Path, ranges: int, item_ids: pa.Array) -> None:
    """For each range, the number over the whole source of each of its items. item_ids: sorted."""
    for index in range(ranges):
        codes = pc.index_in(range_items(staging, index), item_ids).to_numpy(zero_copy_only=False)
        np.save(staging / f"codes-{index:05d}.npy", codes.astype(np.int32))


def gather(staging: Path, ranges: int, shard: int, config: DataConfig, *, ordered: bool) -> tuple[int, int]:
    """Sort one shard's events of all ranges. Returns its users and events.

    ordered: events come by role, time and place in the source; else by a permutation that depends on the seed, the
    user and the item alone, so that one event never moves another.
    """
    table = pa.concat_tables([_range_batch(staging, index, shard) for index in range(ranges)])
    user_ids, user = _user_numbers(table.column(schema.USER_ID))
    hashes = hash_ids(user_ids.to_pylist())
    item, rating, time, order, role = (table.column(name).to_numpy() for name in CODED.names[1:])
    if not ordered:
        order = mixed(hashes[user], mixed(item.astype(np.uint64), np.full(len(item), config.seed, np.uint64)))
    rows = np.lexsort((order, time, role, user))
    fresh = np.ones(len(rows), bool) if config.repeats == "keep" else fresh_events(user[rows], item[rows])
    columns = (*(column[rows] for column in (user, item, rating, time, role)), fresh)
    _write_arrow(staging / f"events-{shard:05d}.arrow", pa.table(dict(zip(COLUMNS, columns, strict=True))))
    _write_arrow(staging / f"users-{shard:05d}.arrow", pa.table({schema.USER_ID: user_ids, HASH: hashes}))
    return len(user_ids), len(rows)


def drop_files(staging: Path, pattern: str) -> None:
    """Free the disk of what was read for the last time."""
    for path in staging.glob(pattern):
        path.unlink()


def read_shard(staging: Path, shard: int) -> Shard:
    """A gathered shard."""
    events = _read_arrow(staging / f"events-{shard:05d}.arrow")
    users = _read_arrow(staging / f"users-{shard:05d}.arrow")
    columns = Events(*(events.column(name).to_numpy() for name in COLUMNS))
    return Shard(columns, users.column(schema.USER_ID).combine_chunks(), users.column(HASH).to_numpy())


def choose_shards(config: DataConfig, rows: int) -> int:
    """Number of user files: as asked, else 20 and one more for each further million rows."""
    return config.shards or 20 + rows // 1_000_000


def _rated(events: pa.Table, config: DataConfig) -> pa.Table:
    if config.min_rating is None:
        return events
    return events.filter(pc.greater_equal(events.column(schema.RATING), pa.scalar(config.min_rating, pa.float32())))


def _sampled(user_ids: list[str], config: DataConfig) -> NDArray[np.bool_]:
    if math.isclose(config.sample, 1.0):
        return np.ones(len(user_ids), bool)
    return uniform(user_ids, f"sample {config.seed}") < config.sample


def _write_range(events: pa.Table, bounds: NDArray[np.int64], staging: Path, index: int) -> None:
    items = events.column(schema.ITEM_ID).combine_chunks().dictionary_encode()
    items = items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items
    _write_arrow(staging / f"items-{index:05d}.arrow", pa.table({schema.ITEM_ID: items.dictionary}))
    columns = {name: events.column(name) for name in CODED.names if name != schema.ITEM} | {schema.ITEM: items.indices}
    coded = pa.table(columns).select(CODED.names).cast(CODED).combine_chunks()
    with _writer(staging / f"range-{index:05d}.arrow", CODED) as writer:
        for first, last in pairwise(bounds):
            part = coded.slice(first, last - first).combine_chunks()
            writer.write_batch(part.to_batches()[0] if len(part) else pa.RecordBatch.from_pylist([], CODED))


def _range_batch(staging: Path, index: int, shard: int) -> pa.Table:
    with pa.memory_map(str(staging / f"range-{index:05d}.arrow")) as source, pa.ipc.open_file(source) as reader:
        table = pa.Table.from_batches([reader.get_batch(shard)])
    if not len(table):
        return table
    codes = np.load(staging / f"codes-{index:05d}.npy", mmap_mode="r")
    return table.set_column(1, schema.ITEM, pa.array(codes[table.column(schema.ITEM).to_numpy()]))


def _user_numbers(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """Sorted ids, and each event's number among them."""
    encoded = pa.array(column.combine_chunks().dictionary_encode()) if column.num_chunks == 1 else _encoded(column)
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _write_arrow(path: Path, table: pa.Table) -> None:
    with _writer(path, table.schema) as writer:
        writer.write_table(table)


def _writer(path: Path, kind: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
    return pa.ipc.new_file(str(path), kind, options=pa.ipc.IpcWriteOptions(compression="lz4"))


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()
