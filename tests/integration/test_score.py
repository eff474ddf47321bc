"""Batch scoring on a real Ray: every user once, with the list the recommender gives him alone."""

import pyarrow.parquet as pq
import pytest

from cluster import score as module
from recsys.bundle.read import open_bundle
from recsys.errors import BundleError, ConfigError, RecsysError, RequestError
from recsys.retrieval.recommender import Recommender, Request
from tests.bundles import planted, write_planted
from tests.encoders import ENCODED

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]


@pytest.mark.parametrize("kind", [{}, ENCODED], ids=["table", "encoder"])
def test_every_user_gets_his_own_list_once(tmp_path, kind):
    users = module.ROWS + 300
    folder = write_planted(tmp_path / "bundles", world=planted(users=users), **kind)
    told = []
    watched = {"workers": 2, "progress": lambda *stage: told.append(stage)}
    assert module.score(tmp_path / "bundles", tmp_path / "lists", k=5, **watched) == users
    assert len(told) == 2 and told[-1][1:] == (users, users)
    lists = pq.read_table(tmp_path / "lists").to_pylist()
    assert sorted(row["user_id"] for row in lists) == sorted(f"u{user}" for user in range(users))
    recommender = Recommender(open_bundle(folder))
    for row in lists[::97]:
        (alone,) = recommender.recommend([Request(user=row["user_id"], k=5)])
        assert row["item_id"] == alone.item_ids and row["score"] == alone.scores.tolist()
        assert (row["path"], row["bundle"]) == ("exact", folder.name)
    for begin in (module.refuse, module.score):  # a second set of lists would give every user two
        with pytest.raises(ConfigError, match="something already"):
            begin(tmp_path / "bundles", tmp_path / "lists")
    assert {path.name for path in tmp_path.iterdir() if path.name != "cache"} == {"bundles", "lists"}


def test_a_user_without_a_list_leaves_no_lists_at_all(tmp_path, monkeypatch):
    write_planted(tmp_path / "bundles")
    (tmp_path / "lists").mkdir()
    monkeypatch.setattr(module, "_scored", lambda *args: iter([23]))
    with pytest.raises(RecsysError, match="23 of 24"):
        module.score(tmp_path / "bundles", tmp_path / "lists")
    assert list((tmp_path / "lists").iterdir()) == [] and not list(tmp_path.glob(".lists*"))


def test_no_bundle_no_lists(tmp_path):
    with pytest.raises(BundleError):
        module.score(tmp_path, tmp_path / "lists")
    write_planted(tmp_path / "bundles")
    with pytest.raises(RequestError):
        module.score(tmp_path / "bundles", tmp_path / "lists", k=0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        module.score(tmp_path / "bundles", tmp_path / "file" / "lists")
    assert not (tmp_path / "lists").exists()
