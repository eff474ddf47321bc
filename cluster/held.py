"""A worker's shards in its own memory, read once: the macro-batches that Ray Data streams, without its start and its copies."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa

from cluster import reading
from recsys.data import schema
from recsys.data.dataset import UserFile
from recsys.data.plan import MacroBatch
from recsys.training.machine import memory

# An event's item and rating; whole rows hold its time, too. Ids and segment bounds of users come on top.
PAIR_BYTES, ROW_BYTES, USER_BYTES = 8, 16, 24
# What training may hold of a host's free memory, where no limit is set.
SHARE_OF_MEMORY = 0.25
SHARE_READ_AHEAD, SHARE_OF_STORE = 1 / 16, 1 / 4


class HeldShards:
    """Row groups of a worker, read from their files the first time they are asked for and held from then on."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[UserFile],
        own: Collection[UserFile],
        *,
        readers: int,
        prefetch: int,
        whole_rows: bool = False,
        border: str = schema.VALID,
    ) -> None:
        """folder: users/ of a dataset; files: all that a plan may name, own: those that are held. Of others' files a worker
        reads where an epoch was begun by another number of workers. The rest as in `ingest.macro_batches`."""
        self.readers, self.prefetch = readers, prefetch
        held = reading.Held(frozenset(file.name for file in own))
        self._read = partial(
            reading.read_macro_batch,
            folder,
            {file.name: file for file in files},
            whole_rows=whole_rows,
            border=border,
            held=held,
        )

    def macro_batches(self, entries: Sequence[MacroBatch]) -> Iterator[pa.Table]:
        """Tables as `ingest.macro_batches` yields them, bit for bit, by `readers` threads, `prefetch` of them ahead.

        Raises DataError as it does.
        """
        tasks = (partial(self._read, entry) for entry in entries)
        return _in_order(tasks, self.readers, self.prefetch + 1)


def fit_in_memory(files: Iterable[UserFile], limit: int | None, workers_on_host: int, *, whole_rows: bool) -> bool:
    """Whether a worker may hold these files: at most `limit` bytes, by default its part of a quarter of what is free."""
    needed = sum(file.events * (ROW_BYTES if whole_rows else PAIR_BYTES) + file.rows * USER_BYTES for file in files)
    return needed <= (fair_share(memory().free, workers_on_host) if limit is None else limit)


def ahead_room(free: int, store: int | None, workers_on_host: int) -> int:
    """Bytes of macro-batches that one of a host's workers may read ahead, of so many free and, where Ray Data streams them, of
    an object store of so many."""
    room = free * SHARE_READ_AHEAD if store is None else min(free * SHARE_READ_AHEAD, store * SHARE_OF_STORE)
    return int(room / workers_on_host)


def fair_share(free: int, workers_on_host: int) -> int:
    """Bytes of shards that one of a host's workers may hold of so many that are free."""
    return int(free * SHARE_OF_MEMORY / workers_on_host)


def _in_order(tasks: Iterable[Callable[[], pa.Table]], threads: int, ahead: int) -> Iterator[pa.Table]:
    """Results of tasks in their order, `ahead` of them begun or waiting at any time."""
    pending: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="held-shards") as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
