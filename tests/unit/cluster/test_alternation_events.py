"""What a worker of an alternating model holds in memory: its own users' train events, and no more than fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster import alternation
from cluster.reading import trained_until
from recsys.config import load_config
from recsys.data.dataset import DatasetManifest
from recsys.errors import RecsysError
from tests.datasets import planted_histories, write_dataset

HISTORIES = planted_histories(users=40)
ROLES = (["train"] * 6 + ["test"] * 2) * 5


def share_of(folder, manifest: DatasetManifest, *, border: str = "valid", limit: str = "none", model: str = "ials"):
    """What `events_of` asks of a Share."""
    return SimpleNamespace(
        events=None,
        files=trained_until(folder, manifest, border).user_files[::-1],
        manifest=manifest,
        task=SimpleNamespace(dataset=folder, border=border),
        hardware=SimpleNamespace(device=torch.device("cpu")),
        config=load_config(overrides=[f"model.name={model}", f"cluster.hold_bytes={limit}"]),
        workers_on_host=1,
        rank=1,
        alive=lambda: None,
    )


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "dataset", write_dataset(tmp_path / "dataset", HISTORIES, row_group_events=40, roles=ROLES)


def test_events_are_read_in_the_order_of_rows_and_none_of_users_held_out(dataset):
    events = alternation.events_of(share_of(*dataset))
    train = HISTORIES.segment("train")
    learns = np.array(ROLES) == "train"
    assert events.of_users.counts.tolist() == (train.lengths * learns).tolist()
    assert events.of_users.column.tolist() == train.take(learns).item.tolist()
    by_item = sorted(zip(train.take(learns).pairs().item.tolist(), train.take(learns).pairs().user.tolist(), strict=True))
    assert events.of_items.column.tolist() == [user for _, user in by_item]
    assert events.of_items.counts.tolist() == np.bincount([item for item, _ in by_item], minlength=80).tolist()


def test_ratings_stand_beside_their_events_where_they_are_learnt(tmp_path):
    rated = planted_histories(users=40)
    rated.rating[:] = np.random.default_rng(0).integers(1, 6, len(rated.item))
    manifest = write_dataset(tmp_path / "rated", rated, row_group_events=40, roles=ROLES)
    events = alternation.events_of(share_of(tmp_path / "rated", manifest, model="bpmf"))
    train = rated.segment("train").take(np.array(ROLES) == "train")
    users, items = events.of_users, events.of_items
    assert users.rated(0, 40).tolist() == train.rating.tolist()
    by_item = np.argsort(train.item, kind="stable")
    assert items.rated(0, 80).tolist() == train.rating[by_item].tolist()
    assert items.rated(3, 5).tolist() == train.rating[by_item][np.isin(train.item[by_item], [3, 4])].tolist()
    assert alternation.events_of(share_of(tmp_path / "rated", manifest)).of_users.rating is None


def test_a_refit_learns_from_every_segment_of_everybody(dataset):
    events = alternation.events_of(share_of(*dataset, border="end"))
    assert events.of_users.column.tolist() == HISTORIES.item.tolist()


def test_what_does_not_fit_is_refused(dataset):
    with pytest.raises(RecsysError, match=r"300 events of rank 1 take 9,600 bytes.*hold 9,599.*cluster\.num_workers"):
        alternation.events_of(share_of(*dataset, limit="9599"))
    assert alternation.events_of(share_of(*dataset, limit="9600")).of_users.counts.sum() == 300
