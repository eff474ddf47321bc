"""Negatives that a source publishes: read, kept in the dataset folder, ranked among."""

import json

import numpy as np
import pytest
import torch

from recsys.data.dataset import read_manifest, verify
from recsys.data.histories import Histories
from recsys.data.negatives import StoredNegatives, parse_ncf, read_negatives
from recsys.data.sources.files import list_files
from recsys.errors import DataError
from recsys.evaluation import ranking
from tests.bundles import flip
from tests.datasets import random_histories, write_dataset


def test_lines_of_ncf(tmp_path):
    path = tmp_path / "x.test.negative"
    path.write_text("(0,25)\t1064\t25\t174\n(1,3)\t7\n")
    (file,) = list_files(str(path))
    assert parse_ncf(file) == {"0": ["1064", "25", "174"], "1": ["7"]}
    for bad in ("(0,25)\n", "0,25\t7\n", "(0;25)\t7\n", "(0,25)\t7\n(0,26)\t8\n"):
        path.write_text(bad)
        with pytest.raises(DataError, match="line"):
            parse_ncf(file)


def test_kept_in_the_dataset_by_number_and_guarded(tmp_path):
    negatives = {"u7": ["i3", "i1", "i3", "nowhere"], "u2": ["i0"], "stranger": ["i1"]}
    write_dataset(tmp_path / "dataset", random_histories(users=20), negatives=negatives)
    manifest = read_manifest(tmp_path / "dataset")
    verify(tmp_path / "dataset", manifest)
    found = read_negatives(tmp_path / "dataset", manifest)
    assert found is not None and found.user.tolist() == [2, 7]
    row, item = found.of(np.array([7, 2], np.int32))
    assert (row.tolist(), item.tolist()) == ([0, 0, 1], [1, 3, 0])
    assert found.has(np.array([1, 2, 7], np.int32)).tolist() == [False, True, True]
    flip(tmp_path / "dataset" / "negatives.parquet")
    for read in (verify, read_negatives):
        with pytest.raises(DataError, match=r"negatives\.parquet"):
            read(tmp_path / "dataset", manifest)


def test_a_dataset_without_any_is_as_it_was(tmp_path):
    manifest = write_dataset(tmp_path / "dataset", random_histories(users=20))
    assert "negatives" not in json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    assert read_negatives(tmp_path / "dataset", manifest) is None


class Scores:
    def user_vectors(self, histories: Histories) -> torch.Tensor:
        scores = torch.tensor([[9, 8, 7, 6, 5, 4, 3.0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 9]])
        return scores[torch.from_numpy(histories.user).long()]

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(7)


def test_the_held_out_item_among_them_by_hand():
    """User 0's item 3 comes second of 2, 3 and 5; items 0 and 1, which score more, are not asked about. To user 1 all are
    equal, so his item 4, which is among its own negatives, comes second after 0, by number. User 2's item was never trained
    on. User 3 has no negatives, and is left out."""
    item = np.array([1, 3, 2, 4, 0, 6, 0, 5], np.int32)
    bounds = np.ones(4, np.int32)
    user, offsets = np.arange(4, dtype=np.int32), np.arange(0, 9, 2)
    histories = Histories(user, offsets, item, np.ones(8, np.float32), np.zeros(8, np.int64), bounds, bounds)
    negatives = StoredNegatives(user[:3], np.array([0, 2, 5, 7]), np.array([2, 5, 0, 4, 5, 0, 1], np.int32))
    counts = np.array([5, 4, 4, 3, 2, 1, 0])
    sums = ranking.evaluate(
        Scores(), histories, segment="test", item_counts=counts, ks=(1, 2), negatives=negatives, keep_users=True
    )
    users = sums.users()
    hr, ndcg, mrr = (users.model[row] for row in (0, 2, 3))
    assert hr.tolist() == [[0, 0, 0], [1, 1, 0]] and mrr[1].tolist() == [0.5, 0.5, 0]
    assert ndcg[1] == pytest.approx([1 / np.log2(3), 1 / np.log2(3), 0])
    assert users.popularity[0].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert sums.people() == {"users": 3, "strangers": 0, "events": 3, "cold_events": 1}
