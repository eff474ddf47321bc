"""A run that begins from another: what it is measured on, the other must not have trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import runs, unseen, warm
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


def run_on(folder: Path, dataset: Path, begun_from: Path | None = None) -> Path:
    """What is looked at of a run."""
    folder.mkdir()
    told = {"dataset": str(dataset), "fingerprint": read_manifest(dataset).fingerprint}
    (folder / runs.CONFIG).write_text(json.dumps(told | {"begun_from": begun_from and str(begun_from)}))
    return folder


@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_held_out_events_were_not_trained_on(tmp_path, reverse):
    run = run_on(tmp_path / "run", dataset(tmp_path / "old", 2))
    unseen.check(dataset(tmp_path / "new", 2, reverse=reverse), run)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_event_held_out_here_and_trained_on_there_is_told(tmp_path, reverse):
    run = run_on(tmp_path / "run", dataset(tmp_path / "old", 2))
    with pytest.raises(DataError, match="40 of 120 held-out events"):
        unseen.check(dataset(tmp_path / "new", 3, reverse=reverse), run)


def test_all_that_a_run_descends_from_is_looked_at(tmp_path):
    first = run_on(tmp_path / "first", dataset(tmp_path / "old", 2))
    second = run_on(tmp_path / "second", dataset(tmp_path / "newer", 3), first)
    assert [path.name for path in unseen.lineage(second)] == ["newer", "old"]
    with pytest.raises(DataError, match=r"that .*/old knows"):
        unseen.check(dataset(tmp_path / "new", 3), second)


def test_a_dataset_that_was_prepared_anew_says_nothing_of_what_was_trained_on(tmp_path):
    run = run_on(tmp_path / "run", dataset(tmp_path / "old", 2))
    shutil.rmtree(tmp_path / "old")
    write_dataset(tmp_path / "old", random_histories(users=9))
    assert not list(unseen.lineage(run))


def test_a_refit_is_refused(tmp_path):
    old = dataset(tmp_path / "old", 2)
    result = {"refit": True, "config": Config().model_dump(mode="json"), "dataset": str(old)}
    run = run_on(tmp_path / "run", old)
    (run / runs.RESULT).write_text(json.dumps(result | {"fingerprint": read_manifest(old).fingerprint}))
    with pytest.raises(DataError, match="a refit has trained"):
        warm.check(run, old, Config())
