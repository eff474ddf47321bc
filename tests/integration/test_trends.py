"""What is popular now, on a real local Ray: chosen on validation, kept in a refit, and the same in a bundle as in its run."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.evaluate import evaluate
from cluster.export import export
from cluster.trainer import RunResult, train
from recsys.bundle.read import open_bundle
from recsys.config import Config, load_config
from recsys.data.histories import Histories
from recsys.retrieval.recommender import Recommender, Request
from tests.datasets import planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_for_two")]

DAY = 86_400
ITEMS, USERS = 60, 300
SETTINGS = ("model.dim=8", "train.threads=1", "train.epochs=4", "train.batch_size=512", "cluster.readers=1")


def moving(seed: int = 0) -> Histories:
    """Users who watch one item a day: on day d of items 2d - 2 … 2d + 3. The last day is test, the day before validation."""
    rng = np.random.default_rng(seed)
    days = np.sort(np.stack([rng.permutation(27)[:8] for _ in range(USERS)]), axis=1)
    days = np.concatenate([days, np.full((USERS, 1), 27), np.full((USERS, 1), 28)], axis=1)
    item = np.stack([_distinct(rng, row) for row in days])
    return Histories(
        user=np.arange(USERS, dtype=np.int32),
        offsets=np.arange(0, item.size + 1, 10, dtype=np.int64),
        item=item.ravel().astype(np.int32),
        rating=np.ones(item.size, np.float32),
        time=days.ravel().astype(np.int64) * DAY,
        valid_from=np.full(USERS, 8, np.int32),
        test_from=np.full(USERS, 9, np.int32),
    )


def _distinct(rng: np.random.Generator, days: np.ndarray) -> list[int]:
    watched: list[int] = []
    for day in days:
        new = [item for item in range(max(2 * day - 2, 0), 2 * day + 4) if item not in watched]
        watched.append(int(rng.choice(new)))
    return watched


def settings(root: Path, *more: str) -> Config:
    storage = ("cluster.num_workers=0", f"cluster.storage={root / 'runs'}", f"cluster.object_store_bytes={100 << 20}")
    return load_config(overrides=[*SETTINGS, *storage, *more])


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    write_dataset(root / "moving", moving(), items=ITEMS, shards=6, row_group_events=400, split="time")
    return root / "moving"


@pytest.fixture(scope="module", params=["mf", "spectral"])
def run(root, dataset, request) -> RunResult:
    return train(dataset, settings(root, f"model.name={request.param}"), name=request.param)


def test_lists_follow_what_moves(run):
    assert run.trend["half_life_days"] <= 3
    assert run.trend["weight"] > 0
    name = json.loads((run.folder / "result.json").read_bytes())["model"]
    assert run.metrics["ndcg@10"] == max(v for told, v in run.trend["tried"].items() if not told.startswith("popularity"))
    assert run.metrics["ndcg@10"] > 1.2 * run.trend["tried"][name]
    assert run.test["ndcg@10"] > run.test_popularity["ndcg@10"]


def test_the_popular_list_that_follows_it_stands_beside(root, dataset, run):
    result = json.loads((run.folder / "result.json").read_bytes())
    popular = train(dataset, settings(root, "model.name=popularity"), name="popular")
    assert "lately" not in json.loads((popular.folder / "result.json").read_bytes())
    assert (result["lately"], result["test_lately"]) == (popular.metrics, popular.test)
    assert result["test_lately"]["ndcg@10"] > run.test_popularity["ndcg@10"]


def test_two_workers_choose_what_one_does(root, dataset):
    one, two = (
        train(dataset, settings(root, "model.name=ials", f"cluster.num_workers={workers}"), name=f"ials-by-{workers}")
        for workers in (0, 2)
    )
    assert two.trend["half_life_days"] == one.trend["half_life_days"]
    assert two.trend["weight"] == pytest.approx(one.trend["weight"], rel=1e-3)


def test_the_bundle_lists_what_the_run_was_measured_by(root, run):
    folder = export(run.folder, root / "bundles")
    ours, theirs = evaluate(run.folder), evaluate(folder)
    assert theirs.sums.metrics()["ndcg@10"] == pytest.approx(ours.sums.metrics()["ndcg@10"], abs=1e-6)
    assert theirs.sums.popularity_metrics() == pytest.approx(ours.sums.popularity_metrics())
    assert ours.sums.metrics()["ndcg@10"] == pytest.approx(run.test["ndcg@10"], abs=1e-6)


def test_newcomers_lean_as_known_users_do_and_strangers_get_what_is_popular_now(root, run):
    bundle = open_bundle(export(run.folder, root / "bundles"))
    recommender, lately = Recommender(bundle), bundle.items.column("lately").to_numpy()
    (stranger,) = recommender.recommend([Request(k=5)])
    assert stranger.path == "popular"
    np.testing.assert_array_equal(stranger.items, np.lexsort((np.arange(ITEMS), -lately))[:5])
    np.testing.assert_allclose(stranger.scores, lately[stranger.items])
    user = moving().take(np.array([0]))
    history = [{"item": f"i{item}"} for item in user.item[:8]]
    taste = recommender.taste(None, [_event(**each) for each in history])
    assert taste.vector.shape == (bundle.manifest.dim,)
    assert taste.vector[bundle.manifest.learnt] == 1
    (similar,) = [recommender.similar("i20", k=3)]
    assert len(similar.items) == 3


def _event(item: str):
    from recsys.retrieval.requests import Event

    return Event(item)


def test_a_refit_keeps_what_was_chosen_and_counts_from_its_own_end(root, run):
    bundle = open_bundle(export(run.folder, root / "refits", refit=True))
    assert bundle.manifest.trend.half_life_days == run.trend["half_life_days"]
    assert bundle.manifest.trend.weight == run.trend["weight"]
    # It has learnt from the last days, too: what is popular now is what was watched on those.
    assert bundle.popular[0] >= 50


def test_popularity_itself_is_of_lately(root, dataset):
    result = train(dataset, settings(root, "model.name=popularity"), name="popular")
    assert result.metrics["ndcg@10"] > result.popularity["ndcg@10"]
    assert result.trend["weight"] == 0


def test_where_nothing_moves_nothing_leans(root):
    write_dataset(root / "still", planted_histories(), shards=6)
    result = train(root / "still", settings(root, "model.name=ials"), name="still")
    assert result.trend is None
    assert open_bundle(export(result.folder, root / "bundles")).manifest.trend is None


def test_a_setting_goes_before_what_validation_says(root, dataset):
    none = train(dataset, settings(root, "model.name=ials", "model.trend_days=0"), name="none")
    assert none.trend is None
    given = train(dataset, settings(root, "model.name=ials", "model.trend_days=5", "model.trend_weight=0.5"), name="given")
    assert (given.trend["half_life_days"], given.trend["weight"], given.trend["tried"]) == (5.0, 0.5, {})
