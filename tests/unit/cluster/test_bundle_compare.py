"""Two bundles' lists side by side, with what they have in common counted by hand."""

import json

import numpy as np
import pytest

from cluster import bundle_compare
from recsys.errors import BundleError
from tests.bundles import planted, write_planted

OLD, NEW = planted(), planted(seed=1)


@pytest.fixture(autouse=True)
def own_receipts(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def test_what_two_have_in_common(tmp_path, capsys):
    one, other = write_planted(tmp_path / "a", world=OLD, version="1"), write_planted(tmp_path / "b", world=NEW, version="2")
    found = bundle_compare.compare(one, other, users=100, show=2, k=5)
    pairs = [(OLD.wanted(user, 5), NEW.wanted(user, 5)) for user in range(24)]
    assert found.users == 24 and (found.first, found.second) == ("films 1", "films 2")
    assert found.overlap == pytest.approx(np.mean([len(set(a) & set(b)) / 5 for a, b in pairs]))
    assert 0 < found.overlap < 1
    assert found.same_first == pytest.approx(np.mean([a[0] == b[0] for a, b in pairs]))
    assert len(found.shown) == 2 and found.shown[0].first == [
        f"Film {item}" for item in OLD.wanted(int(found.shown[0].user[1:]), 5)
    ]
    bundle_compare.print_tables(found)
    assert "24 users, top 5" in capsys.readouterr().out
    bundle_compare.print_json(found)
    assert json.loads(capsys.readouterr().out)["overlap"] == found.overlap


def test_a_bundle_is_like_itself(tmp_path, capsys):
    folder = write_planted(tmp_path)
    found = bundle_compare.compare(folder, folder, users=10, show=0, k=3)
    assert (found.users, found.overlap, found.same_first, found.same, found.shown) == (10, 1, 1, 1, [])
    bundle_compare.print_tables(found)
    assert "one and the same" in capsys.readouterr().out


def test_bundles_without_a_user_in_common_are_refused(tmp_path, monkeypatch):
    one = write_planted(tmp_path / "a")
    other = write_planted(tmp_path / "b")
    monkeypatch.setattr(bundle_compare, "_known_to_both", lambda *_: [])
    with pytest.raises(BundleError, match="no user is in both"):
        bundle_compare.compare(one, other, users=10, show=0, k=3)
