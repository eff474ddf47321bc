"""Reading a dataset folder to train on it: checked, only what may be learnt from, permuted. Plain functions of pyarrow.

Ray's reading tasks import this file, so it does without torch, which takes seconds to load.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.dataset import DatasetManifest, UserFile, check_file, read_items
from recsys.data.histories import Histories
from recsys.data.plan import Cut, MacroBatch, order
from recsys.data.recent import RecentCounts
from recsys.errors import DataError

PAIRS = pa.schema([(schema.USER, pa.int32()), (schema.ITEM, pa.int32()), (schema.RATING, pa.float32())])
ERROR = "error"
_ROW_COLUMNS = [schema.USER, schema.ITEM, schema.RATING, schema.TIME, schema.VALID_FROM, schema.TEST_FROM]
_PAIR_COLUMNS = [schema.USER, schema.ITEM, schema.RATING, schema.VALID_FROM]

NEVER = np.iinfo(np.int64).max


@dataclass
class Held:
    """Row groups of some files that stay in memory, by (file, number)."""

    files: frozenset[str]
    groups: dict[tuple[str, int], pa.Table] = field(default_factory=dict)

    def get(self, key: tuple[str, int], read: Callable[[], pa.Table]) -> pa.Table:
        """A row group, read if it is not there."""
        if key[0] not in self.files:
            return read()
        if key not in self.groups:
            self.groups[key] = read().combine_chunks()
        return self.groups[key]


def trained_until(dataset: Path, manifest: DatasetManifest, border: str) -> DatasetManifest:
    """The manifest as if everything before a border were train: as it is (`valid`), validation too (`test`: what the users held
    out for test are shown stays untrained), or all segments of all users (`end`)."""
    if border == schema.VALID:
        return manifest
    files = tuple(_with_more_train(dataset / schema.USERS_FOLDER, file, border) for file in manifest.user_files)
    return manifest.model_copy(update={"user_files": files})


def stream_histories(dataset: Path, file: UserFile, border: str = schema.VALID) -> Iterator[Histories]:
    """A user file's histories, all segments, a row group at a time; as if everything before `border` were train."""
    for group in range(len(file.row_groups)):
        rows = _read_file(dataset / schema.USERS_FOLDER, file, [group], _ROW_COLUMNS)
        yield Histories.from_arrow(rows).trained_until(border)


def item_counts(dataset: Path, manifest: DatasetManifest, files: Sequence[UserFile], border: str) -> NDArray[np.int64]:
    """[N] events of each item before `border` that are trained on: up to `valid` those of all users, as the catalogue has them,
    else those of some files of `trained_until`."""
    check_file(dataset / schema.ITEMS_FILE, manifest.items_size, manifest.items_sha256)
    if border == schema.VALID:
        kept: NDArray[np.int64] = read_items(dataset).column(schema.COUNT).to_numpy()
        return kept
    counts = np.zeros(manifest.items, np.int64)
    for file in files:
        for histories in stream_histories(dataset, file, border) if file.train_events else ():
            counts += np.bincount(histories.segment(schema.TRAIN).item, minlength=manifest.items)
    return counts


def arrivals(dataset: Path, manifest: DatasetManifest, files: Sequence[UserFile], border: str) -> pa.Array:
    """[N] Unix seconds of each item's first event before `border` in some files of `trained_until`; null without any."""
    first = np.full(manifest.items, NEVER, np.int64)
    for file in files:
        for histories in stream_histories(dataset, file, border) if file.train_events else ():
            train = histories.segment(schema.TRAIN)
            np.minimum.at(first, train.item, train.time)
    return pa.array(first, mask=first == NEVER)


def add_recent(counted: RecentCounts, dataset: Path, files: Sequence[UserFile], border: str) -> Iterator[None]:
    """Count the events of some files of `trained_until` that are trained on, a row group at a time."""
    for file in files:
        for histories in stream_histories(dataset, file, border) if file.train_events else ():
            train = histories.segment(schema.TRAIN)
            counted.add(train.item, train.time)
            yield


def read_macro_batch(
    folder: Path,
    files: dict[str, UserFile],
    entry: MacroBatch,
    *,
    whole_rows: bool = False,
    border: str = schema.VALID,
    held: Held | None = None,
) -> pa.Table:
    """Read an entry of the plan, check it against the manifest, keep the train segment and permute its events.

    folder: users/ of a dataset. border: what is before it is train. held: taken from there what is there, and put there
    what is read. Returns PAIRS; with `whole_rows` permuted rows of users, all segments.
    """
    columns = _ROW_COLUMNS if whole_rows else _PAIR_COLUMNS
    read = partial(_read_to_train, folder, columns=columns, border=border)
    if held is None:
        parts = [read(files[name], groups) for name, groups in _by_file(entry.row_groups)]
    else:
        parts = [held.get((name, group), partial(read, files[name], [group])) for name, group in entry.row_groups]
    rows = pa.concat_tables(parts)
    told = [files[name].row_groups[group] for name, group in entry.row_groups]
    places = order([group.rows if whole_rows else group.train_events for group in told], entry.seed, entry.cuts)
    return rows.take(places) if whole_rows else _pairs_at(rows, places)


def read_planned(batch: pa.Table, folder: Path, files: dict[str, UserFile], whole_rows: bool, border: str) -> pa.Table:
    """What a Ray task does with one entry of the plan; `batch` is a table of one row of the columns of `as_row`.

    Ray would lose the type of an error, so a table with the one column ERROR carries its text.
    """
    (row,) = batch.to_pylist()
    try:
        return read_macro_batch(folder, files, _from_row(row), whole_rows=whole_rows, border=border)
    except DataError as error:
        return pa.table({ERROR: [str(error)]})


def as_row(entry: MacroBatch) -> dict[str, object]:
    """An entry of the plan as a row of a Ray Data dataset."""
    return {"entry": json.dumps(asdict(entry))}


def _from_row(row: dict[str, str]) -> MacroBatch:
    told = json.loads(row["entry"])
    cuts = tuple(Cut(cut["skip"], tuple(cut["groups"])) for cut in told["cuts"])
    return MacroBatch(tuple(map(tuple, told["row_groups"])), told["train_events"], told["seed"], told["rows"], cuts)


def _by_file(row_groups: Sequence[tuple[str, int]]) -> Iterator[tuple[str, list[int]]]:
    """Row groups of one file together."""
    groups: dict[str, list[int]] = {}
    for name, group in row_groups:
        groups.setdefault(name, []).append(group)
    yield from groups.items()


def _read_file(folder: Path, file: UserFile, groups: list[int], columns: list[str]) -> pa.Table:
    path = folder / file.name
    _check_once(path, file)
    try:
        table = pq.ParquetFile(path).read_row_groups(groups, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    told = [file.row_groups[group] for group in groups]
    _expect(path, "rows", len(table), sum(group.rows for group in told))
    _expect(path, "events", _sum(pc.list_value_length(table.column(schema.ITEM))), sum(group.events for group in told))
    return table


def _read_to_train(folder: Path, file: UserFile, groups: list[int], columns: list[str], border: str) -> pa.Table:
    if border == schema.TEST:
        columns = list(dict.fromkeys([*columns, schema.TEST_FROM]))
    table = _read_file(folder, file, groups, columns)
    if border != schema.VALID:
        lengths = pc.list_value_length(table.column(schema.ITEM))
        ends = table.column(schema.TEST_FROM) if border == schema.TEST else lengths
        table = table.set_column(table.schema.get_field_index(schema.VALID_FROM), schema.VALID_FROM, ends)
    told = sum(file.row_groups[group].train_events for group in groups)
    _expect(folder / file.name, "train events", _sum(table.column(schema.VALID_FROM)), told)
    return table


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({error}). Restore it or prepare the dataset again.")


def _expect(path: Path, what: str, found: int, told: int) -> None:
    if found != told:
        raise DataError(f"{path}: {found:,} {what} read, the manifest says {told:,}. Prepare the dataset again.")


def _sum(numbers: pa.ChunkedArray) -> int:
    return pc.sum(numbers).as_py() or 0


def _with_more_train(folder: Path, file: UserFile, border: str) -> UserFile:
    if border == schema.TEST and file.role == schema.TEST:
        return file
    before = [group.events for group in file.row_groups] if border == schema.END else _before_test(folder / file.name)
    if len(before) != len(file.row_groups):
        raise DataError(f"{folder / file.name}: not what the manifest says. Prepare the dataset again.")
    groups = tuple(
        group.model_copy(update={"train_events": events}) for group, events in zip(file.row_groups, before, strict=True)
    )
    role = schema.ALL if file.role == schema.ALL else schema.TRAIN
    return file.model_copy(update={"row_groups": groups, "role": role})


def _before_test(path: Path) -> list[int]:
    """Events before test in each row group. The file is not hashed here: every worker asks this of all files, and what it then
    reads to train on is held against its hash and these sums."""
    try:
        parquet = pq.ParquetFile(path)
        groups = range(parquet.num_row_groups)
        return [_sum(parquet.read_row_group(group, columns=[schema.TEST_FROM]).column(0)) for group in groups]
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _check_once(path: Path, file: UserFile) -> None:
    """Hash a file against the manifest once a process, and again whenever it is another or was written to."""
    try:
        now = path.stat()
    except OSError:
        raise DataError(f"{path}: missing. Restore it or prepare the dataset again.") from None
    _checked(path, file.size, file.sha256, (now.st_size, now.st_mtime_ns, now.st_ino))


@cache
def _checked(path: Path, size: int, sha256: str, state: tuple[int, int, int]) -> None:
    check_file(path, size, sha256)


def _pairs_at(rows: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """PAIRS at `places` of all train events of the rows."""
    rows = rows.combine_chunks()
    lengths = rows.column(schema.VALID_FROM).to_numpy()
    user = np.repeat(rows.column(schema.USER).to_numpy(), lengths)
    lists = [rows.column(name).chunk(0) for name in (schema.ITEM, schema.RATING)]
    # A mask, not indices: the less memory is touched first, the faster (a fifth of this function's time).
    offsets = lists[0].offsets.to_numpy()
    train = np.repeat(np.tile([True, False], len(lengths)), np.stack([lengths, np.diff(offsets) - lengths], 1).ravel())
    values = (column.values.to_numpy()[offsets[0] : offsets[-1]] for column in lists)
    columns = [user, *(column[train] for column in values)]
    return pa.Table.from_arrays([pa.array(column.take(places, mode="clip")) for column in columns], schema=PAIRS)
