"""A model of whole histories on a real local Ray: the same way as models of events, and as exact."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.runs import read_json, read_rows
from cluster.trainer import RunResult, train
from recsys.config import Config, load_config
from recsys.errors import ConfigError, DataError
from recsys.training import checkpoint
from tests.datasets import planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_for_two")]

HISTORIES = planted_histories()
TOLD = int((HISTORIES.segment("train").lengths - 1).sum())
SETTINGS = (
    "model.name=sasrec",
    "model.dim=16",
    "model.max_length=6",
    "model.blocks=1",
    "train.batch_size=24",
    "train.learning_rate=0.01",
    "train.precision=fp32",
    "train.threads=1",
    "train.micro_batch=64",
    "train.epochs=6",
    "cluster.num_workers=0",
    "cluster.readers=1",
    "cluster.window_events=500",
    "cluster.mix_shards=4",
    f"cluster.object_store_bytes={100 << 20}",
)


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    write_dataset(root / "dataset", HISTORIES, shards=6, row_group_events=120)
    return root / "dataset"


def settings(root: Path, *more: str) -> Config:
    return load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}", *more])


@pytest.fixture(scope="module")
def undisturbed(root, dataset) -> RunResult:
    return train(dataset, settings(root, "cluster.num_workers=2"), name="undisturbed")


def test_two_workers_learn_every_event_once_an_epoch_and_find_the_tastes(undisturbed):
    assert {row["events"] for row in read_rows(undisturbed.folder)} == {TOLD}
    assert {row["steps"] for row in read_rows(undisturbed.folder)} == {len(HISTORIES) // 24}
    assert undisturbed.test["ndcg@10"] > 2 * undisturbed.test_popularity["ndcg@10"]
    best = read_rows(undisturbed.folder)[undisturbed.best_epoch - 1]
    assert undisturbed.metrics == pytest.approx(best["metrics"])


def test_sampled_negatives_and_users_held_out_whole_and_the_micro_batch_found(root, tmp_path):
    roles = (["train"] * 24 + ["valid"] * 8 + ["test"] * 8) * 6
    write_dataset(tmp_path / "dataset", HISTORIES, shards=6, row_group_events=120, roles=roles)
    more = ("model.negatives=32", "train.micro_batch=none", "train.epochs=8")
    result = train(tmp_path / "dataset", settings(root, *more), name="by-user")
    assert result.test["ndcg@10"] > 2 * result.test_popularity["ndcg@10"]
    assert read_rows(result.folder)[0]["micro_batch"] > 0


def test_a_refit_learns_from_all_segments(root, dataset):
    result = train(dataset, settings(root), name="refit", refit_epochs=1)
    assert [row["events"] for row in read_rows(result.folder)] == [len(HISTORIES.item) - len(HISTORIES)]


def test_a_run_begins_from_an_earlier_one_under_other_numbers(root, tmp_path, undisturbed):
    ids = [f"i{number}" for number in np.random.default_rng(0).permutation(80)]
    write_dataset(tmp_path / "old", HISTORIES, shards=6, item_ids=[f"i{number}" for number in range(80)])
    write_dataset(tmp_path / "new", HISTORIES, shards=6, item_ids=ids)
    first = train(tmp_path / "old", settings(root, "train.epochs=1"), name="first")
    barely = settings(root, "train.epochs=1", "train.learning_rate=1e-9")
    warm = train(tmp_path / "new", barely, name="warm", begin_from=first.folder)
    old, new = (checkpoint.read_weights(run.folder / "best") for run in (first, warm))
    places = [int(name[1:]) for name in ids]
    np.testing.assert_allclose(new["item_table"], old["item_table"][places], atol=1e-6)
    np.testing.assert_allclose(new["encoder.norm.weight"], old["encoder.norm.weight"], atol=1e-6)


def test_a_smaller_student_learns_from_a_finished_run_and_resumes(root, dataset, undisturbed):
    def taught(*more: str) -> RunResult:
        small = settings(root, "model.dim=8", "model.max_length=5", "train.teacher_weight=0.9", *more)
        return train(dataset, small, name="student", teacher=undisturbed.folder)

    first = taught("train.epochs=1", "cluster.num_workers=2")
    student = taught("train.epochs=2")
    assert (first.resumed_from, student.resumed_from, student.epochs) == (None, 1, 2)
    assert read_json(student.folder / "result.json")["teacher"] == str(undisturbed.folder)
    losses = [row["loss"] for row in read_rows(student.folder)]
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(ConfigError, match="teacher: "):
        train(dataset, settings(root, "model.dim=8", "model.max_length=5", "train.teacher_weight=0.9"), name="student")


def test_who_cannot_teach_is_refused_before_anything_starts(root, tmp_path, dataset, undisturbed):
    def refused(error: type, match: str, *more: str, dataset: Path = dataset, teacher: Path = undisturbed.folder) -> None:
        with pytest.raises(error, match=match):
            train(dataset, settings(root, *more), name="refused", teacher=teacher)
        assert not (root / "runs" / "refused").exists()

    refused(ConfigError, "looks back on 6 events, the student on 7", "model.max_length=7")
    refused(ConfigError, "mf cannot be the student. There are: sasrec", "model.name=mf", "model.loss=softmax")
    refused(DataError, "no run folder", teacher=root / "nowhere")
    write_dataset(tmp_path / "other", planted_histories(seed=5), shards=6)
    refused(DataError, "not the dataset that undisturbed learnt from", dataset=tmp_path / "other")
    shutil.copytree(undisturbed.folder, tmp_path / "refit")
    result = read_json(tmp_path / "refit" / "result.json")
    (tmp_path / "refit" / "result.json").write_text(json.dumps(result | {"refit": True}))
    refused(DataError, "a refit has trained", teacher=tmp_path / "refit")


def test_ratings_are_refused_before_anything_starts(root, dataset):
    with pytest.raises(ConfigError, match="sasrec learns by one of softmax, gbce"):
        train(dataset, settings(root, "model.loss=mse"), name="ratings")
