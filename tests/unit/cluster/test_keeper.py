"""Which checkpoint a run goes on from."""

import pytest

from cluster.keeper import newest
from recsys.training.checkpoint import STATE_FILE


@pytest.mark.parametrize(
    ("told", "expected"),
    [("", "checkpoint_00001_0000200"), ("checkpoint_00001_0000100", "checkpoint_00001_0000200")],
)
def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path, told, expected):
    whole = ["checkpoint_00000_0000625", "checkpoint_00001_0000100", "checkpoint_00001_0000200"]
    for name in [*whole, "checkpoint_00001_0000200.copy", "checkpoint_mine"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE_FILE).touch()
    (tmp_path / "checkpoint_00001_0000300").mkdir()  # half written
    assert newest(tmp_path, told) == tmp_path / expected


def test_where_there_is_none_a_run_begins_anew(tmp_path):
    assert newest(tmp_path, "") is None


def test_what_ray_knows_of_stands_where_nothing_newer_is_whole(tmp_path):
    assert newest(tmp_path, "checkpoint_00002_0000000") == tmp_path / "checkpoint_00002_0000000"
