"""Which checkpoint a run goes on from, and which it leaves."""

import pytest

from cluster import keeper
from cluster.keeper import newest
from recsys.training.checkpoint import STATE_FILE


@pytest.mark.parametrize(
    ("told", "expected"),
    [("", "checkpoint_00001_0000200"), ("checkpoint_00001_0000100", "checkpoint_00001_0000200")],
)
def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path, told, expected):
    whole = ["checkpoint_00000_0000625", "checkpoint_00001_0000100", "checkpoint_00001_0000200"]
    others = ["checkpoint_00001_0000200.copy", "checkpoint_mine"]
    for name in [*whole, *others]:
        written(tmp_path / name)
    (tmp_path / "checkpoint_00001_0000300").mkdir()  # half written
    assert newest(tmp_path, told) == tmp_path / expected
    keeper._remove_later(tmp_path, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*whole, *others])


def test_the_newest_is_so_by_number(tmp_path):
    for name in ("checkpoint_00000_9999992", "checkpoint_00000_10000000"):
        written(tmp_path / name)
    assert newest(tmp_path, "").name == "checkpoint_00000_10000000"
    keeper._remove_later(tmp_path, "checkpoint_00000_9999992")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000_9999992"]


def written(folder):
    folder.mkdir()
    (folder / STATE_FILE).touch()


def test_where_there_is_none_a_run_begins_anew(tmp_path):
    (tmp_path / "checkpoint_00000_0000100").mkdir()  # half written
    assert newest(tmp_path, "") is None
    keeper._remove_later(tmp_path, "")
    assert not list(tmp_path.iterdir())


def test_what_ray_knows_of_counts_where_none_is_seen_to_be_whole(tmp_path):
    assert newest(tmp_path, "checkpoint_00002_0000000") == tmp_path / "checkpoint_00002_0000000"


def test_what_ray_knows_of_and_has_been_cut_is_passed_over(tmp_path):
    written(tmp_path / "checkpoint_00001_0000000")
    (tmp_path / "checkpoint_00002_0000000").mkdir()
    assert newest(tmp_path, "checkpoint_00002_0000000") == tmp_path / "checkpoint_00001_0000000"
