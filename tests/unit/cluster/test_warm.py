"""A run that begins from another: what it is measured on, the other must not have trained on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cluster import runs, warm
from recsys.config import Config
from recsys.data.dataset import read_manifest
from recsys.errors import DataError
from tests.datasets import random_histories, write_dataset

HISTORIES = random_histories(users=40)


def dataset(folder: Path, held_out: int, *, reverse: bool = False) -> Path:
    """The same events under the same ids, a user's last so many held out; `reverse`: users and items are numbered backwards."""
    ends = HISTORIES.lengths.astype(np.int32)
    histories = replace(HISTORIES, valid_from=ends - held_out, test_from=ends - held_out // 2)
    users, items = [f"u{n}" for n in range(40)], [f"i{n}" for n in range(50)]
    if reverse:
        histories = histories.take(np.arange(40)[::-1])
        histories = replace(histories, user=np.arange(40, dtype=np.int32), item=49 - histories.item)
        users, items = users[::-1], items[::-1]
    write_dataset(folder, histories, items=50, user_ids=users, item_ids=items)
    return folder


def check(new: Path, old: Path) -> None:
    share = SimpleNamespace(task=SimpleNamespace(dataset=new), files=read_manifest(new).user_files)
    warm._check_unseen(share, old)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_held_out_events_were_not_trained_on(tmp_path, reverse):
    check(dataset(tmp_path / "new", 2, reverse=reverse), dataset(tmp_path / "old", 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_an_event_held_out_here_and_trained_on_there_is_told(tmp_path, reverse):
    new, old = dataset(tmp_path / "new", 3, reverse=reverse), dataset(tmp_path / "old", 2)
    with pytest.raises(DataError, match="40 of 120 held-out events"):
        check(new, old)


def test_all_that_a_run_descends_from_is_looked_at_and_refits_are_refused(tmp_path):
    for name, before in (("first", None), ("second", "first")):
        told = {"dataset": str(dataset(tmp_path / f"{name}-data", 2)), "begun_from": before and str(tmp_path / before)}
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.CONFIG).write_text(json.dumps(told))
    assert [path.name for path in warm._lineage(tmp_path / "second")] == ["second-data", "first-data"]
    (tmp_path / "second" / runs.RESULT).write_text(json.dumps({"refit": True}))
    with pytest.raises(DataError, match="a refit has trained"):
        warm.check(tmp_path / "second", Config())
