"""Models that alternate or draw, on a real local Ray: with two workers, stopped and gone on with, refitted, begun anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import runs
from cluster.export import export
from cluster.runs import read_rows
from cluster.trainer import RunResult, train
from recsys.bundle.read import open_bundle
from recsys.config import Config, load_config
from recsys.errors import Interrupted
from recsys.retrieval.fold_in import fold_in
from tests.datasets import planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_for_two")]

HISTORIES = planted_histories()
SETTINGS = (
    "model.name=ials",
    "model.dim=12",
    "train.threads=1",
    "train.epochs=6",
    "cluster.num_workers=0",
    "cluster.readers=1",
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


def test_two_workers_find_the_tastes_and_say_how_it_went(undisturbed):
    rows = read_rows(undisturbed.folder)
    assert {row["events"] for row in rows} == {len(HISTORIES.segment("train").item)}
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert undisturbed.test["ndcg@10"] > 2 * undisturbed.test_popularity["ndcg@10"]


def stopped_after(epochs: int, patch: pytest.MonkeyPatch, *asked: object, **told: object) -> None:
    """As by a signal, which this process could be too fast for."""
    patch.setattr(runs, "asked_to_stop", lambda folder: len(read_rows(folder)) >= epochs)
    with pytest.raises(Interrupted):
        train(*asked, **told)
    patch.undo()


def test_stopped_in_this_process_and_gone_on_with_by_two_workers(root, dataset, undisturbed, monkeypatch):
    stopped_after(1, monkeypatch, dataset, settings(root), name="stopped")
    result = train(dataset, settings(root, "cluster.num_workers=2"), name="stopped")
    assert result.test["ndcg@10"] == pytest.approx(undisturbed.test["ndcg@10"], abs=0.01)
    ours, theirs = (read_rows(run.folder)[-1]["loss"] for run in (result, undisturbed))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_refit_is_served_and_folds_in_what_its_table_holds(root, undisturbed):
    bundle = open_bundle(export(undisturbed.folder, root / "bundles", refit=True))
    stored = bundle.histories
    offsets, items = np.asarray(stored.offsets), np.asarray(stored.item)
    ratings, parameters = np.ones(len(items), np.float32), bundle.manifest.fold_in.parameters
    vectors = fold_in(np.asarray(bundle.item_vectors), offsets, items, ratings, np.asarray(bundle.gram), parameters)
    np.testing.assert_allclose(vectors, bundle.user_vectors, rtol=1e-3, atol=1e-4)


def test_a_run_begins_from_an_earlier_one_under_other_numbers(root, tmp_path, undisturbed):
    ids = [f"i{number}" for number in np.random.default_rng(0).permutation(80)]
    write_dataset(tmp_path / "new", HISTORIES, shards=6, item_ids=ids)
    config = settings(root, "train.epochs=1")
    warm = train(tmp_path / "new", config, name="warm", begin_from=undisturbed.folder)
    cold, *_, learnt = (row["loss"] for row in read_rows(undisturbed.folder))
    assert read_rows(warm.folder)[0]["loss"] == pytest.approx(learnt, abs=0.1 * (cold - learnt))


def test_draws_are_gone_on_with_and_served_as_they_were_measured(root, tmp_path, monkeypatch):
    taste = (HISTORIES.item + np.repeat(np.arange(len(HISTORIES)), HISTORIES.lengths)) % 3  # what else than a row could tell it
    rated = replace(HISTORIES, rating=(1 + 2 * taste).astype(np.float32))
    write_dataset(tmp_path / "rated", rated, shards=6, row_group_events=120)
    ours = ("model.name=bpmf", "model.dim=4", "model.chains=2", "train.epochs=16", "train.patience=16")
    whole = train(tmp_path / "rated", settings(root, *ours), name="whole")
    stopped_after(2, monkeypatch, tmp_path / "rated", settings(root, *ours), name="draws")
    result = train(tmp_path / "rated", settings(root, *ours, "cluster.num_workers=2"), name="draws")
    assert [row["epoch"] for row in read_rows(result.folder)] == [*range(1, 17)]
    assert result.test["rmse"] == pytest.approx(whole.test["rmse"], abs=0.1)
    assert whole.test["rmse"] < 1.7, "the mean is off by 1.6"
    bundle = open_bundle(export(result.folder, root / "bundles"))
    scores = np.asarray(bundle.user_vectors) @ np.asarray(bundle.item_vectors).T
    at = rated.bounds("test")[0]
    errors = scores[np.arange(len(rated)), rated.item[at]] - rated.rating[at]
    assert float(np.sqrt(np.square(errors).mean())) == pytest.approx(result.test["rmse"], rel=1e-4)
