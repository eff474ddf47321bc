"""Streaming ingest through real Ray Data: complete, repeatable, shuffled, and never short in silence."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import ingest, reading
from cluster.held import HeldShards, fit_in_memory
from cluster.session import session
from recsys.config import ClusterConfig
from recsys.data.dataset import DatasetManifest
from recsys.data.plan import epoch_plan, step_sizes
from recsys.errors import DataError
from tests.datasets import random_histories, write_dataset

pytestmark = pytest.mark.ray

HISTORIES = random_histories(users=400, items=300, events=(1, 60))
BATCH = 128


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with session(ClusterConfig(num_workers=2, readers=1, object_store_bytes=200 << 20)):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, DatasetManifest]:
    folder = tmp_path_factory.mktemp("ingest") / "dataset"
    return folder, write_dataset(folder, HISTORIES, shards=7, row_group_events=150)


def plan_of(manifest: DatasetManifest, world: int, epoch: int = 0):
    return epoch_plan(0, epoch, world, manifest, window_events=2000, mix_shards=4)


def tables_of(dataset, world: int, rank: int, epoch: int = 0, *, readers: int = 2, whole_rows: bool = False):
    folder, manifest = dataset
    entries = plan_of(manifest, world, epoch).ranks[rank]
    return ingest.macro_batches(folder, manifest, entries, readers=readers, prefetch=1, whole_rows=whole_rows)


def batches_of(dataset, world: int, rank: int, epoch: int = 0, *, readers: int = 2):
    sizes = step_sizes(plan_of(dataset[1], world, epoch).amounts(), rank, BATCH)
    return list(ingest.pair_batches(ingest.pair_parts(tables_of(dataset, world, rank, epoch, readers=readers)), sizes))


def flat(batches) -> np.ndarray:
    """[E, 3] user, item, rating in the order they came."""
    columns = zip(*(batch.columns for batch in batches), strict=True)
    return np.stack([torch.cat(column).numpy() for column in columns], 1)


def in_order(events: np.ndarray) -> np.ndarray:
    return events[np.lexsort(events.T[::-1])]


@pytest.mark.parametrize("world", [1, 3, 9])
def test_every_train_event_comes_exactly_once_over_all_ranks_in_equal_steps(dataset, world):
    ranks = [batches_of(dataset, world, rank) for rank in range(world)]
    expected = np.stack(HISTORIES.segment("train").pairs().columns, 1).astype(np.float64)
    np.testing.assert_array_equal(in_order(np.concatenate([flat(batches) for batches in ranks])), in_order(expected))
    assert {len(batches) for batches in ranks} == {-(-len(expected) // BATCH)}
    for step in zip(*ranks, strict=True):
        assert {batch.total for batch in step} == {sum(map(len, step))}


def test_the_same_order_on_repetition_whatever_the_number_of_readers_and_another_next_epoch(dataset):
    first, again = flat(batches_of(dataset, 2, 0)), flat(batches_of(dataset, 2, 0, readers=1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, flat(batches_of(dataset, 2, 0, epoch=1)))


def test_a_users_events_are_spread_over_the_macro_batch(dataset):
    user = next(iter(tables_of(dataset, 1, 0))).column("user").to_numpy()
    adjacent = (user[1:] == user[:-1]).mean()
    assert adjacent < 5 / len(np.unique(user))


def test_models_of_histories_get_whole_users_once_with_the_train_segment_only(dataset):
    _, manifest = dataset
    sizes = list(step_sizes(plan_of(manifest, 2).amounts(of_rows=True), 1, 32))
    tables = tables_of(dataset, 2, 1, whole_rows=True)
    batches = list(ingest.history_batches(ingest.history_parts(tables), sizes))
    assert [len(batch) for batch in batches] == [size for size, _ in sizes]
    seen = np.concatenate([batch.user for batch in batches])
    assert len(np.unique(seen)) == len(seen) == plan_of(manifest, 2).rows(1)
    train = HISTORIES.segment("train")
    for batch in batches:
        np.testing.assert_array_equal(batch.item, train.take(batch.user).item)


def test_a_user_with_more_events_than_the_window_is_used_once(tmp_path):
    lengths = np.array([5000, 10, 10, 10])
    histories = random_histories(users=4).of_events(np.arange(4, dtype=np.int32), lengths, np.arange(5030, dtype=np.int32))
    manifest = write_dataset(tmp_path / "giant", histories, shards=4)
    events = np.concatenate([flat(batches_of((tmp_path / "giant", manifest), 2, rank)) for rank in range(2)])
    np.testing.assert_array_equal(np.sort(events[:, 1]), np.arange(5030))


@pytest.mark.parametrize("whole_rows", [False, True], ids=["events", "rows"])
@pytest.mark.parametrize("border", ["valid", "test", "end"])
def test_epochs_from_memory_are_those_that_ray_data_streams(dataset, whole_rows, border):
    """Two epochs of them: while the shards are read into memory, and when they are there."""
    folder, manifest = dataset
    planned = reading.trained_until(folder, manifest, border)
    reads = {"readers": 2, "prefetch": 1, "whole_rows": whole_rows, "border": border}
    held = HeldShards(folder / "users", planned.user_files, planned.user_files, **reads)
    for epoch in range(2):
        entries = plan_of(planned, 1, epoch).ranks[0]
        streamed = list(ingest.macro_batches(folder, planned, entries, **reads))
        assert [t.equals(s) for t, s in zip(held.macro_batches(entries), streamed, strict=True)] == [True] * len(entries)


def test_shards_are_held_where_they_fit(dataset):
    _, manifest = dataset
    needed = 8 * manifest.events + 24 * manifest.users
    fits = partial(fit_in_memory, manifest.user_files, workers_on_host=1, whole_rows=False)
    assert [fits(limit) for limit in (needed, needed - 1, 0)] == [True, False, False]
    assert fits(None)


def test_an_altered_file_stops_the_epoch_that_would_read_it_into_memory(tmp_path):
    folder = tmp_path / "dataset"
    manifest = write_dataset(folder, HISTORIES, shards=3)
    held = HeldShards(folder / "users", manifest.user_files, manifest.user_files, readers=2, prefetch=1)
    (folder / "users" / "all-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"all-00001\.parquet: missing"):
        list(held.macro_batches(plan_of(manifest, 1).ranks[0]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"\x05", b"\x06", 1)), "altered"),
    ],
    ids=["deleted", "cut", "altered"],
)
def test_a_damaged_file_stops_the_epoch_by_name(tmp_path, damage, message):
    folder = tmp_path / "dataset"
    manifest = write_dataset(folder, HISTORIES, shards=3)
    damage(folder / "users" / "all-00001.parquet")
    with pytest.raises(DataError, match=rf"all-00001\.parquet.*{message}"):
        batches_of((folder, manifest), 1, 0)


def test_a_file_exchanged_for_a_shorter_one_between_epochs_stops_the_run(tmp_path):
    """Read-ahead or a cached hash must not hide it: the file was good when it was first read."""
    folder = tmp_path / "dataset"
    manifest = write_dataset(folder, HISTORIES, shards=3)
    batches_of((folder, manifest), 1, 0)
    other = tmp_path / "other"
    write_dataset(other, HISTORIES.take(np.arange(200)), shards=3)
    (other / "users" / "all-00002.parquet").replace(folder / "users" / "all-00002.parquet")
    with pytest.raises(DataError, match=r"all-00002\.parquet"):
        batches_of((folder, manifest), 1, 0, epoch=1)


@pytest.mark.parametrize("border", ["test", "end"])
def test_what_is_before_a_border_trains_when_a_model_is_fitted_again(dataset, border):
    folder, manifest = dataset
    whole = reading.trained_until(folder, manifest, border)
    plan = plan_of(whole, 1)
    tables = list(ingest.macro_batches(folder, whole, plan.ranks[0], readers=2, prefetch=1, border=border))
    assert sum(map(len, tables)) == len(HISTORIES.until(border).item) == plan.events(0)


def test_a_manifest_that_promises_more_events_than_there_are_is_refused(dataset):
    folder, manifest = dataset
    file = manifest.user_files[0]
    more = file.row_groups[0].model_copy(update={"train_events": file.row_groups[0].train_events + 1})
    files = (file.model_copy(update={"row_groups": (more, *file.row_groups[1:])}), *manifest.user_files[1:])
    with pytest.raises(DataError, match="train events read, the manifest says"):
        batches_of((folder, manifest.model_copy(update={"user_files": files})), 1, 0)
