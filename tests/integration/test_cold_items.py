"""New items on a real Ray, from training to the server's list: told by attributes, measured alike, held by the index."""

import numpy as np
import pytest

from cluster.evaluate import evaluate
from cluster.evaluate_report import as_json, people_line, protocol_line
from cluster.export import export
from cluster.report import run_columns
from cluster.runs import read_rows
from cluster.trainer import RunResult, train
from recsys.bundle.read import Bundle, open_bundle
from recsys.config import load_config
from recsys.data.histories import Histories
from recsys.errors import ConfigError
from recsys.retrieval.recommender import Event, Recommender, Request
from recsys.training import checkpoint
from tests.datasets import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

GENRES, ITEMS, TRAINED, USERS, WATCHED = 4, 97, 60, 240, 8
NAMELESS = ITEMS - 1
MODEL = ("model.name=two_tower", "model.dim=12", "model.max_length=6", "model.heads=2", "model.attribute_items=1")
TRAIN = ("train.epochs=5", "train.batch_size=32", "train.learning_rate=0.01", "train.precision=fp32", "train.threads=1")
SMALL = ("cluster.num_workers=0", "cluster.readers=1", f"cluster.object_store_bytes={100 << 20}", "train.micro_batch=256")
ATTRIBUTES = 'model.attributes=["genres"]'
GENRE_OF = [[f"genre {number % GENRES}"] for number in range(NAMELESS)] + [[]]


def watched(seed: int = 0) -> Histories:
    """Film i is of genre i % 4, and user u watches genre u % 4 only: old films to train on, one new one to validate, two to
    test."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(USERS):
        old, new = (np.arange(first + user % GENRES, last, GENRES) for first, last in ((0, TRAINED), (TRAINED, NAMELESS)))
        rows.append(np.concatenate([rng.permutation(old)[:WATCHED], rng.permutation(new)[:3]]))
    valid_from = np.full(USERS, WATCHED, np.int32)
    item = np.concatenate(rows).astype(np.int32)
    return Histories(
        user=np.arange(USERS, dtype=np.int32),
        offsets=np.arange(USERS + 1, dtype=np.int64) * (WATCHED + 3),
        item=item,
        rating=np.ones(len(item), np.float32),
        time=np.arange(len(item), dtype=np.int64),
        valid_from=valid_from,
        test_from=valid_from + 1,
    )


HISTORIES = watched()


@pytest.fixture(scope="module")
def dataset(root):
    write_dataset(root / "dataset", HISTORIES, items=ITEMS, shards=6, row_group_events=500, genres=GENRE_OF, split="items")
    return root / "dataset"


def settings(root, *more: str):
    return load_config(overrides=[*MODEL, *TRAIN, *SMALL, f"cluster.storage={root / 'runs'}", ATTRIBUTES, *more])


@pytest.fixture(scope="module")
def run(root, dataset) -> RunResult:
    return train(dataset, settings(root), name="new")


@pytest.fixture(scope="module")
def bundle(root, run) -> Bundle:
    return open_bundle(export(run.folder, root / "bundles"))


def test_new_films_are_ranked_among_themselves_beside_popularity_and_chance(run):
    assert run.test["recall@10"] > 0.95  # nine of his genre, of which he knows one
    assert run.test_popularity["recall@10"] < 0.5
    columns = run_columns(run.folder)
    assert columns["random (test)"]["recall@10"] == pytest.approx(10 / (NAMELESS - TRAINED - 1))
    assert columns["random (validation)"]["recall@10"] == pytest.approx(10 / (NAMELESS - TRAINED))
    assert all(row["random"] == columns["random (validation)"] for row in read_rows(run.folder))


@pytest.mark.parametrize("segment", ["valid", "test"])
def test_run_and_bundle_say_the_same(run, bundle, segment):
    of_run, of_bundle = (evaluate(what, segment=segment) for what in (run.folder, bundle.folder))
    assert "the 36 items with a vector that nobody trained on" in protocol_line(of_run) == protocol_line(of_bundle)
    one, other = as_json(of_run), as_json(of_bundle)
    assert one["ranked"] == other["ranked"] == "cold" and one["cold_events"] == 0
    assert other["lists_by"] == {"ann": 0, "exact": USERS, "popular": 0}
    assert one["random"] == pytest.approx(other["random"])
    assert "an order by chance has ndcg@10" in people_line(one)
    counted = run.metrics if segment == "valid" else run.test
    for name, figure in one["metrics"].items():
        assert figure["value"] == pytest.approx(counted[name], abs=1e-9)
        assert other["metrics"][name]["value"] == pytest.approx(counted[name], abs=2e-3), name
        assert other["metrics"][name]["popularity"] == pytest.approx(figure["popularity"]), name


def test_the_bundle_recommends_new_films_and_encodes_histories_that_hold_some(bundle, run):
    manifest = bundle.manifest
    assert (manifest.model, manifest.known_user, manifest.fold_in.kind) == ("two_tower", "history", "onnx")
    assert manifest.encoder.difference < 1e-5 and manifest.encoder.longest == len(HISTORIES.item)
    assert bundle.indexed.tolist() == list(range(NAMELESS)) and not bundle.item_vectors[NAMELESS].any()
    assert bundle.item_inputs.shape == (ITEMS, 12) and bundle.popular.max() < TRAINED
    recommender = Recommender(bundle)
    for genre in range(GENRES):
        new = tuple(Event(f"i{TRAINED + genre + GENRES * step}") for step in range(3))
        # There are 15 old ones of his genre, and 6 new ones more.
        (answer,) = recommender.recommend([Request(history=new, k=21)])
        assert not answer.fallback and (answer.items % GENRES == genre).mean() > 0.9
        assert (answer.items >= TRAINED).sum() >= 5
    (nothing,) = recommender.recommend([Request(history=(Event(f"i{NAMELESS}"),), k=5)])
    assert nothing.fallback and nothing.path == "popular"
    assert f"i{NAMELESS}" not in recommender.similar("i61", 30).item_ids


def test_other_cuts_rank_old_and_new_films_together(run, bundle):
    for what in (run.folder, bundle.folder):
        found = evaluate(what, protocol="by-user")
        assert found.ranked == "listed" and found.sums.eligible == NAMELESS and not found.sums.random_metrics()


def test_mf_has_no_vector_for_new_films_and_misses_as_before(root, dataset):
    result = train(
        dataset, load_config(overrides=[*TRAIN, *SMALL, "model.dim=8", f"cluster.storage={root / 'runs'}"]), name="mf"
    )
    found = evaluate(result.folder)
    assert found.ranked == "trained" and found.sums.eligible == TRAINED
    assert found.sums.people()["cold_events"] == 2 * USERS and result.test["recall@10"] == 0 and not found.sums.random_metrics()
    assert "random (test)" not in run_columns(result.folder)


def test_features_are_joined_by_name_where_a_run_begins_from_another(root, run, tmp_path):
    """Here genres are counted from the other end, and there is one more."""
    genres = [["a new genre"] if number == NAMELESS else GENRE_OF[number] for number in range(ITEMS)]
    write_dataset(tmp_path / "dataset", HISTORIES, items=ITEMS, shards=6, genres=genres, split="items")
    barely = settings(root, "train.epochs=1", "train.learning_rate=1e-9")
    warm = train(tmp_path / "dataset", barely, name="warm", begin_from=run.folder)
    old, new = (checkpoint.read_weights(each.folder / "best")["described.table"] for each in (run, warm))
    np.testing.assert_allclose(new[1 : GENRES + 1], old[:GENRES], atol=1e-6)
    assert len(new) == len(old) + 1 and not new[0].any()


def test_an_attribute_that_is_not_there_is_refused(root, dataset):
    with pytest.raises(ConfigError, match=r"items\.parquet has no attribute 'genre'.*Did you mean genres"):
        train(dataset, settings(root, 'model.attributes=["genre"]'), name="wrong")
