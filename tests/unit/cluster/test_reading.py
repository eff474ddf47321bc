"""Reading and cutting without Ray: what a reading task and a worker do, as plain functions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import ingest, reading
from recsys.data.dataset import DatasetManifest
from recsys.data.plan import Cut, MacroBatch, order
from recsys.errors import DataError
from tests.datasets import random_histories, to_arrow, write_dataset

HISTORIES = random_histories(users=60, items=80, events=(0, 30))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, DatasetManifest]:
    folder = tmp_path_factory.mktemp("reading") / "dataset"
    return folder / "users", write_dataset(folder, HISTORIES, shards=3, row_group_events=100)


def everything(manifest: DatasetManifest) -> list[tuple[str, int]]:
    return [(file.name, group) for file in manifest.user_files for group in range(len(file.row_groups))]


def entry_of(row_groups: list[tuple[str, int]], seed: int = 0) -> MacroBatch:
    return MacroBatch(tuple(row_groups), train_events=0, seed=seed, rows=0)


def read(dataset, seed=0, **options) -> pa.Table:
    folder, manifest = dataset
    files = {file.name: file for file in manifest.user_files}
    return reading.read_macro_batch(folder, files, entry_of(everything(manifest), seed), **options)


def as_set(table: pa.Table) -> list[tuple]:
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_pairs_are_the_train_segments_permuted_by_the_seed(dataset):
    pairs = HISTORIES.segment("train").pairs()
    expected = sorted(zip(pairs.user.tolist(), pairs.item.tolist(), pairs.rating.tolist(), strict=True))
    one, again, other = read(dataset), read(dataset), read(dataset, seed=1)
    assert one.schema == reading.PAIRS
    assert as_set(one) == as_set(other) == expected
    assert one.equals(again) and not one.equals(other)


@pytest.mark.parametrize("whole_rows", [False, True], ids=["events", "rows"])
@pytest.mark.parametrize("border", ["test", "end"])
def test_a_refit_reads_everything_before_its_border_and_nothing_behind_it(dataset, border, whole_rows):
    folder, manifest = dataset
    planned = reading.trained_until(folder.parent, manifest, border)
    before = HISTORIES.until(border)
    told = sum(group.train_events for file in planned.user_files for group in file.row_groups)
    assert told == len(before.item) > len(HISTORIES.segment("train").item)
    found = read((folder, planned), border=border, whole_rows=whole_rows)
    if whole_rows:
        histories = next(ingest.history_parts(iter([found])))
        places = np.argsort(histories.user)
        assert histories.take(places).item.tolist() == before.item.tolist()
    else:
        pairs = before.pairs()
        assert as_set(found) == sorted(zip(pairs.user.tolist(), pairs.item.tolist(), pairs.rating.tolist(), strict=True))
    counts = reading.item_counts(folder.parent, manifest, planned.user_files, border)
    assert counts.tolist() == np.bincount(before.item, minlength=manifest.items).tolist()
    arrived = reading.arrivals(folder.parent, manifest, planned.user_files, border).to_pylist()
    for item, first in enumerate(arrived):
        times = before.time[before.item == item].tolist()
        assert first == (min(times) if times else None)


def test_users_held_out_for_test_stay_untrained_in_a_refit_up_to_test(tmp_path):
    roles = ["train"] * 20 + ["valid"] * 20 + ["test"] * 20
    held = replace(HISTORIES, test_from=np.where(np.arange(60) < 40, HISTORIES.lengths, HISTORIES.valid_from).astype(np.int32))
    manifest = write_dataset(tmp_path / "dataset", held, shards=1, roles=roles)
    planned = reading.trained_until(tmp_path / "dataset", manifest, "test")
    assert {file.name.split("-")[0]: file.role for file in planned.user_files} == {
        "train": "train",
        "valid": "train",
        "test": "test",
    }
    counts = reading.item_counts(tmp_path / "dataset", manifest, planned.user_files, "test")
    assert counts.tolist() == np.bincount(held.take(np.arange(40)).item, minlength=manifest.items).tolist()
    assert sum(file.train_events for file in planned.user_files) == counts.sum()
    whole = reading.trained_until(tmp_path / "dataset", manifest, "end")
    assert sum(file.train_events for file in whole.user_files) == manifest.events


def test_what_is_left_of_a_macro_batch_comes_in_its_old_order_from_the_groups_that_are_ours(dataset):
    folder, manifest = dataset
    files = {file.name: file for file in manifest.user_files}
    groups = everything(manifest)
    of_group = {user: place for place, (name, number) in enumerate(groups) for user in _users(folder, files[name], number)}
    whole = read(dataset).to_pylist()
    entry = replace(entry_of(groups), cuts=(Cut(30, (0, 2, 3)), Cut(5, (2, 3))))
    left = [row for row in whole[30:] if of_group[row["user"]] in (0, 2, 3)][5:]
    left = [row for row in left if of_group[row["user"]] in (2, 3)]
    assert reading.read_macro_batch(folder, files, entry).to_pylist() == left and left


def _users(folder: Path, file, number: int) -> list[int]:
    return pq.ParquetFile(folder / file.name).read_row_group(number).column("user").to_pylist()


def test_all_orders_are_alike():
    """Each of the six orders of three events comes a sixth of the time: no place is favoured."""
    rows = to_arrow(random_histories(users=1, items=3, events=(3, 3), held_out=False), ["u"])
    orders = [tuple(reading._pairs_at(rows, order([3], s, ())).column("item").to_pylist()) for s in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and abs(counts - 500).max() < 100


def test_a_part_of_a_table_is_read_as_such():
    """A slice's lists still hold all values, with offsets that begin later."""
    whole = to_arrow(HISTORIES, [str(user) for user in HISTORIES.user])
    pairs = HISTORIES.take(np.arange(10, 30)).segment("train").pairs()
    part = reading._pairs_at(whole.slice(10, 20), order([len(pairs)], 0, ()))
    assert as_set(part) == sorted(zip(pairs.user.tolist(), pairs.item.tolist(), pairs.rating.tolist(), strict=True))


def test_whole_rows_come_with_all_segments(dataset):
    rows = read(dataset, whole_rows=True)
    assert sorted(rows.column("user").to_pylist()) == list(range(60))
    assert sum(map(len, rows.column("item").to_pylist())) == len(HISTORIES.item)


def test_histories_stream_a_row_group_at_a_time(dataset):
    folder, manifest = dataset
    for file in manifest.user_files:
        parts = list(reading.stream_histories(folder.parent, file))
        assert [len(part) for part in parts] == [group.rows for group in file.row_groups]
    assert len(parts) > 1


def test_a_task_hands_an_error_on_as_text(dataset, tmp_path):
    _, manifest = dataset
    files = {file.name: file for file in manifest.user_files}
    entry = entry_of([(manifest.user_files[0].name, 0)])
    told = reading.read_planned(
        pa.Table.from_pylist([reading.as_row(entry)]), tmp_path, files, whole_rows=False, border="valid"
    )
    assert told.column_names == [reading.ERROR] and manifest.user_files[0].name in told.column(reading.ERROR)[0].as_py()


@given(st.lists(st.integers(0, 40), max_size=8), st.lists(st.integers(1, 30), max_size=8))
def test_batches_have_the_sizes_asked_for_and_keep_the_order(tables, cuts):
    events = sum(tables)
    ends = np.minimum(np.cumsum(cuts), events).tolist()
    sizes = np.diff([0, *ends, events]).astype(int).tolist()
    batches = list(ingest.pair_batches(ingest.pair_parts(_numbered(tables)), [(size, 99) for size in sizes]))
    assert [len(batch) for batch in batches] == sizes
    assert [user for batch in batches for user in batch.user.tolist()] == list(range(events))
    assert all(batch.total == 99 for batch in batches)


@pytest.mark.parametrize(("sizes", "message"), [([5], "more than its plan"), ([5, 6], "less than its plan")])
def test_more_or_fewer_events_than_planned_are_refused(sizes, message):
    with pytest.raises(DataError, match=message):
        list(ingest.pair_batches(ingest.pair_parts(_numbered([4, 6])), [(size, size) for size in sizes]))


def _numbered(sizes: list[int]):
    """Tables of PAIRS whose users count on from one to the next."""
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        numbers = np.arange(start, start + size)
        yield pa.table([numbers.astype(np.int32), numbers.astype(np.int32), numbers.astype(np.float32)], schema=reading.PAIRS)
