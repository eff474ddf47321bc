"""A dataset's numbers against a hand-counted one."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.data import schema
from recsys.data.dataset import read_manifest, verify
from recsys.data.histories import Histories
from recsys.data.summary import Watched, percentiles, summarise
from recsys.errors import DataError
from tests.datasets import write_dataset

# Items of three users; each user's last is test and the one before it validation.
LISTS = [[0, 1, 2, 3], [0, 1, 4], [0, 4]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    lengths = np.array([len(items) for items in LISTS])
    item = np.array(sum(LISTS, []), np.int32)  # noqa: RUF017  # three lists
    histories = Histories(
        user=np.arange(3, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item=item,
        rating=np.ones(len(item), np.float32),
        time=np.arange(len(item), dtype=np.int64) * 86_400,
        valid_from=(lengths - 2).astype(np.int32),
        test_from=(lengths - 1).astype(np.int32),
    )
    write_dataset(tmp_path / "dataset", histories, shards=2)
    return tmp_path / "dataset"


def test_counts_are_those_counted_by_hand(dataset):
    summary = summarise(dataset)
    assert (summary.users, summary.events, summary.segments) == (3, 9, {"train": 3, "valid": 3, "test": 3})
    assert summary.density == pytest.approx(9 / (3 * summary.items))
    assert summary.most_watched == [
        Watched("i0", summary.most_watched[0].title, 2),
        Watched("i1", summary.most_watched[1].title, 1),
    ]
    assert summary.cold_held_out == 4, "items 2, 3 and twice 4 are only ever held out"
    assert summary.strangers == 1
    assert summary.activity == [(1, 4), (2, 3), (3, 2)]
    assert summary.popularity == [(1, 2), (2, 1)]
    assert (summary.history_percentiles[50], summary.history_percentiles[100]) == (3, 4)
    json.dumps(summary.as_dict())
    shown = dict(summary.rows())
    assert shown["events"] == "9" and shown["users with nothing to train on"] == "1"


def test_percentiles_are_values_that_occur():
    assert percentiles(np.array([1, 2, 3, 100])) == {1: 1, 10: 1, 25: 1, 50: 2, 75: 3, 90: 100, 99: 100, 100: 100}
    assert percentiles(np.zeros(0, np.int64)) == {}


@pytest.mark.parametrize("broken", ["users", "items"])
def test_a_broken_folder_is_refused_by_file(dataset, broken):
    file = read_manifest(dataset).user_files[0].name
    path = dataset / schema.USERS_FOLDER / file if broken == "users" else dataset / schema.ITEMS_FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=path.name):
        summarise(dataset)
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        summarise(dataset)


@pytest.mark.parametrize("broken", ["users", "items"])
def test_d8_a_flipped_byte_is_refused_by_file(dataset, broken):
    """Parquet itself would not notice: a page is read as it is."""
    manifest = read_manifest(dataset)
    file = dataset / schema.USERS_FOLDER / manifest.user_files[-1].name if broken == "users" else dataset / schema.ITEMS_FILE
    good = file.read_bytes()
    for place in range(0, len(good), len(good) // 20):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        for read in (summarise, lambda folder: verify(folder, manifest)):
            with pytest.raises(DataError, match=rf"{file.name}: altered"):
                read(dataset)
    file.write_bytes(good)
    verify(dataset, manifest)


def test_items_of_another_dataset_are_refused(dataset):
    items = pq.read_table(dataset / schema.ITEMS_FILE)
    pq.write_table(items.slice(1), dataset / schema.ITEMS_FILE)
    with pytest.raises(DataError, match="the manifest says"):
        summarise(dataset)
