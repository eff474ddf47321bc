"""From a run to a published bundle on a real Ray: whole, audited, and answering as evaluation counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.export import export
from cluster.report import bundle_rows
from cluster.trainer import RunResult, train
from recsys.bundle import store
from recsys.bundle.read import Bundle, open_bundle
from recsys.config import IndexConfig, load_config
from recsys.data.dataset import read_manifest
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.models import Catalogue, build
from recsys.retrieval.recommender import Answer, Recommender, Request
from recsys.training import checkpoint
from tests.datasets import planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

HISTORIES = planted_histories()
USERS = len(HISTORIES)
SETTINGS = ("model.dim=16", "model.negatives=32", "train.batch_size=64", "train.learning_rate=0.03", "train.precision=fp32")
HERE = ("cluster.num_workers=0", "cluster.readers=1", f"cluster.object_store_bytes={100 << 20}")
SMALL = ("train.threads=1", "train.epochs=2", *HERE)


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    """With one item that nobody watched."""
    write_dataset(root / "dataset", HISTORIES, items=int(HISTORIES.item.max()) + 2, shards=6, row_group_events=120)
    return root / "dataset"


def trained(root: Path, dataset: Path, name: str, *more: str) -> RunResult:
    return train(dataset, load_config(overrides=[*SETTINGS, *SMALL, f"cluster.storage={root / 'runs'}", *more]), name=name)


@pytest.fixture(scope="module")
def run(root, dataset) -> RunResult:
    return trained(root, dataset, "first")


@pytest.fixture(scope="module")
def bundle(root, run) -> Bundle:
    return open_bundle(export(run.folder, root / "bundles"))


def learnt(run: Path, dataset: Path, counts: np.ndarray):
    manifest, config = read_manifest(dataset), load_config(base=json.loads((run / "result.json").read_bytes())["config"])
    model = build(config.model, Catalogue(manifest.users, manifest.items, counts, manifest.mean_rating), 0)
    model.load_state_dict(checkpoint.read_weights(run / "best"))
    return model


def test_vectors_are_those_of_the_best_epoch(bundle, run, dataset):
    counts = bundle.items.column("count").to_numpy()
    model = learnt(run.folder, dataset, counts)
    assert (bundle.item_vectors == model.item_vectors().numpy()).all()
    assert (bundle.user_vectors == model.user_vectors(HISTORIES).numpy()).all()
    assert bundle.manifest.known_user == "table" and bundle.manifest.vectors_from == ("train",)


def test_histories_and_items_are_whole(bundle, dataset):
    assert (bundle.histories.item == HISTORIES.item).all() and (bundle.histories.time == HISTORIES.time).all()
    assert (bundle.histories.offsets == HISTORIES.offsets).all()
    assert [bundle.users.row(f"u{user}") for user in range(USERS)] == list(range(USERS))
    cold = int(HISTORIES.item.max()) + 1
    assert bundle.items.num_rows == cold + 1 and cold not in bundle.indexed and not bundle.item_vectors[cold].any()
    assert sorted(bundle.popular.tolist()) == bundle.indexed.tolist()


def test_the_manifest_tells_how_good_it_is(bundle, run):
    manifest = bundle.manifest
    assert manifest.metrics == run.test and manifest.popularity == run.test_popularity and manifest.metrics_on == "test"
    assert manifest.index.kind == "flat" and manifest.index.recall_at_10 == 1 and manifest.index.users == USERS
    assert len(manifest.golden) == 8 and all(len(query.answer) == 10 for query in manifest.golden)
    assert store.current(bundle.folder.parent) == bundle.folder and manifest.dataset == manifest_of(run)


def manifest_of(run: RunResult) -> str:
    return json.loads((run.folder / "result.json").read_bytes())["fingerprint"]


@pytest.mark.parametrize("segment", ["valid", "test"])
def test_lists_hit_what_evaluation_counted(bundle, run, segment):
    counted = run.metrics if segment == "valid" else run.test
    assert hit_rate(bundle, segment, 10) == pytest.approx(counted["hr@10"], abs=1e-12)


def hit_rate(bundle: Bundle, segment: str, k: int) -> float:
    """HR@k by the Recommender's own lists."""
    recommender = Recommender(bundle, known_until=segment)
    answers = recommender.recommend([Request(user=bundle.users.id(row), k=k, mode="exact") for row in range(len(bundle.users))])
    hits = []
    for row, answer in enumerate(answers):
        assert isinstance(answer, Answer) and len(answer.items) == k
        known, all_of_it = (bundle.histories.events(row, until) for until in (segment, "end" if segment == "test" else "test"))
        held_out = set(bundle.histories.item[known.stop : all_of_it.stop].tolist())
        if held_out:
            hits.append(bool(held_out & set(answer.items.tolist())))
    return float(np.mean(hits))


def test_users_held_out_whole_are_folded_in_as_evaluation_did(root):
    roles = ["train"] * (USERS - 30) + ["test"] * 30
    write_dataset(root / "by_user", HISTORIES, shards=6, row_group_events=120, roles=roles)
    run = trained(root, root / "by_user", "by_user", "train.epochs=1")
    bundle = open_bundle(export(run.folder, root / "bundles"))
    assert bundle.user_vectors[: USERS - 30].any(axis=1).all() and not bundle.user_vectors[USERS - 30 :].any()
    assert hit_rate(bundle, "test", 10) == pytest.approx(run.test["hr@10"], abs=1e-12)


def test_refit_learns_from_every_segment(bundle, root, run):
    refitted = open_bundle(export(run.folder, root / "bundles", name="refit", refit=True))
    assert refitted.manifest.vectors_from == ("train", "valid", "test")
    assert "ndcg@10 on test, before the refit" in dict(bundle_rows(refitted.folder))
    assert refitted.items.column("count").to_pylist()[:-1] == np.bincount(HISTORIES.item).tolist()
    assert (refitted.item_vectors != bundle.item_vectors).any() and refitted.manifest.metrics == bundle.manifest.metrics
    assert (root / "runs" / "first-refit" / "result.json").exists()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_index_is_audited_on_real_users(root, run, kind):
    index = IndexConfig(kind=kind, audit_users=50, ivf_lists=4, ivf_probes=1)
    report = open_bundle(export(run.folder, root / "bundles", name=kind, index=index)).manifest.index
    assert report.kind == kind and report.users == 50 and report.ann_ms > 0 and report.exact_ms > 0
    assert 0 < report.recall_low < report.recall_at_10 <= 1


def test_popularity_is_published_without_vectors(root, dataset):
    run = trained(root, dataset, "popular", "model.name=popularity")
    bundle = open_bundle(export(run.folder, root / "bundles"))
    assert bundle.item_vectors is None and bundle.manifest.index is None and bundle.manifest.known_user == "none"
    assert hit_rate(bundle, "test", 10) == pytest.approx(run.test["hr@10"], abs=1e-12)


def test_ratings_models_fold_in_too(root, dataset):
    run = trained(root, dataset, "ratings", "model.loss=mse", "train.epochs=1")
    bundle = open_bundle(export(run.folder, root / "bundles"))
    assert hit_rate(bundle, "test", 10) == pytest.approx(run.test["hr@10"], abs=1e-12)
    assert bundle.manifest.fold_in.parameters["mean"] == pytest.approx(read_manifest(dataset).mean_rating)


def test_what_cannot_be_exported(root, run, dataset, tmp_path):
    with pytest.raises(RecsysError, match="no run folder"):
        export(tmp_path, tmp_path / "bundles")
    with pytest.raises(ConfigError, match="a b"):  # said before a refit, not after
        export(tmp_path, tmp_path / "bundles", name="a b", refit=True)
    moved = tmp_path / "moved"
    shutil.copytree(run.folder, moved)
    write_dataset(tmp_path / "another", planted_histories(seed=5), shards=6)
    result = json.loads((moved / "result.json").read_bytes())
    (moved / "result.json").write_text(json.dumps(result | {"dataset": str(tmp_path / "another")}))
    with pytest.raises(DataError, match="not the dataset"):
        export(moved, tmp_path / "bundles")
    shutil.copytree(dataset, tmp_path / "cut")
    file = next((tmp_path / "cut" / "users").iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    (moved / "result.json").write_text(json.dumps(result | {"dataset": str(tmp_path / "cut")}))
    with pytest.raises(DataError, match=file.name):
        export(moved, tmp_path / "bundles")
    assert store.listing(tmp_path / "bundles") == []
