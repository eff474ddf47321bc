"""Streaming ingest: the dataset folder as shuffled tensors for one training worker, by the epoch plan.

Ray Data reads macro-batches in parallel tasks and keeps their order; what a task does is in `reading.py`. Where a worker's
shards fit in its memory it reads them there itself, once (`held.py`): the same tables in the same order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import ray.data
import torch

from cluster import reading
from cluster.reading import ERROR, PAIRS
from cluster.session import execution
from recsys.data import schema
from recsys.data.dataset import DatasetManifest
from recsys.data.histories import Histories, Pairs
from recsys.data.plan import MacroBatch
from recsys.errors import DataError

T = TypeVar("T", bound=Sized)


def pair_parts(tables: Iterator[pa.Table], device: torch.device | str = "cpu", *, skip: int = 0) -> Iterator[Pairs]:
    """Tables of PAIRS as tensors on `device`, without the first `skip` events."""
    return (_to_tensors(table, device) for table in _skipping(tables, skip))


def pair_batches(parts: Iterator[Pairs], sizes: Iterable[tuple[int, int]]) -> Iterator[Pairs]:
    """Pairs of the sizes that `plan.step_sizes` gives; what is left of one part goes on in the next batch. `total` of a
    batch is the size of the step over all workers; a batch may be empty.

    Raises DataError where the parts hold fewer or more events than the sizes.
    """
    empty = _to_tensors(PAIRS.empty_table(), "cpu")
    for (_, total), batch in _cut(parts, sizes, empty, _slice_pairs, _join_pairs):
        yield Pairs(batch.user, batch.item, batch.rating, total=total)


def history_parts(tables: Iterator[pa.Table], *, skip: int = 0) -> Iterator[Histories]:
    """Tables of user rows as histories, only their train segments, without the first `skip` users."""
    return map(_train_segment, _skipping(tables, skip))


def history_batches(parts: Iterator[Histories], sizes: Iterable[tuple[int, int]]) -> Iterator[Histories]:
    """As `pair_batches`."""
    empty = Histories.from_arrow(schema.USERS.empty_table())
    for _, batch in _cut(parts, sizes, empty, _slice_histories, _join_histories):
        yield batch


def macro_batches(
    dataset: Path,
    manifest: DatasetManifest,
    entries: Sequence[MacroBatch],
    *,
    readers: int,
    prefetch: int,
    reader_cpus: float = 1,
    whole_rows: bool = False,
    border: str = schema.VALID,
) -> Iterator[pa.Table]:
    """Read a rank's part of the plan, in its order, `readers` macro-batches at once and `prefetch` ahead.

    Yields tables of PAIRS, or with `whole_rows` users' rows; one a macro-batch, except that Ray Data splits what is larger
    than its blocks. border: what is before it is train, and `manifest` is of `reading.trained_until`.
    Raises DataError, by the file's name, where a file is missing, altered or short.
    """
    if not entries:
        return
    names = {name for entry in entries for name, _ in entry.row_groups}
    files = {file.name: file for file in manifest.user_files if file.name in names}
    at_once = ray.data.TaskPoolStrategy(size=min(readers, len(entries)))
    read = partial(
        reading.read_planned, folder=dataset / schema.USERS_FOLDER, files=files, whole_rows=whole_rows, border=border
    )
    planned = ray.data.from_items([reading.as_row(entry) for entry in entries], override_num_blocks=len(entries))
    planned.context.execution_options.preserve_order = True
    planned.context.enable_progress_bars = False
    planned.context.print_on_execution_start = False
    tables = planned.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=reader_cpus, compute=at_once)
    with execution(tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch)) as stream:
        for table in cast(Iterator[pa.Table], stream):
            if ERROR in table.column_names:
                raise DataError(table.column(ERROR)[0].as_py())
            yield table


def _skipping(tables: Iterator[pa.Table], skip: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(skip)
        skip = max(0, skip - len(table))


def _to_tensors(table: pa.Table, device: torch.device | str) -> Pairs:
    # Copied: the buffers belong to Ray's object store, are read-only, and are given back the sooner.
    columns = (torch.from_numpy(column.to_numpy().copy()) for column in table.columns)
    if torch.device(device).type == "cuda":  # from pinned memory a GPU copies while it computes
        columns = (column.pin_memory() for column in columns)
    return Pairs(*(column.to(device, non_blocking=True) for column in columns))


def _train_segment(table: pa.Table) -> Histories:
    return Histories.from_arrow(table).segment(schema.TRAIN)


def _cut(
    parts: Iterator[T],
    sizes: Iterable[tuple[int, int]],
    empty: T,
    cut: Callable[[T, int, int], T],
    join: Callable[[list[T]], T],
) -> Iterator[tuple[tuple[int, int], T]]:
    """Cut a stream of parts into given sizes, whatever the parts' own. Yields each size with its piece."""
    held, start = empty, 0
    for size in sizes:
        pieces, wanted = [], size[0]
        while wanted > len(held) - start:
            pieces.append(cut(held, start, len(held)))
            wanted -= len(pieces[-1])
            held, start = _next(parts), 0
        pieces.append(cut(held, start, start + wanted))
        start += wanted
        yield size, join(pieces)
    if start < len(held) or any(map(len, parts)):
        raise DataError("The dataset holds more than its plan. Prepare the dataset again.")


def _next(parts: Iterator[T]) -> T:
    for part in parts:
        return part
    raise DataError("The dataset holds less than its plan: the epoch would be short. Prepare the dataset again.")


def _slice_pairs(pairs: Pairs, first: int, last: int) -> Pairs:
    return Pairs(pairs.user[first:last], pairs.item[first:last], pairs.rating[first:last])


def _join_pairs(pieces: list[Pairs]) -> Pairs:
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    if len(pieces) == 1:
        return pieces[0]
    return Pairs(*(torch.cat(columns) for columns in zip(*(piece.columns for piece in pieces), strict=True)))


def _slice_histories(histories: Histories, first: int, last: int) -> Histories:
    return histories.take(np.arange(first, last))


def _join_histories(pieces: list[Histories]) -> Histories:
    lengths = np.concatenate([piece.lengths for piece in pieces])
    names = [schema.USER, schema.ITEM, schema.RATING, schema.TIME, schema.VALID_FROM, schema.TEST_FROM]
    columns = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    return Histories(offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), **columns)
