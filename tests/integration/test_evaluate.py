"""`recsys evaluate` on real runs and bundles: what training measured, by way of the Recommender too."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import evaluate as module
from cluster.evaluate import evaluate
from cluster.evaluate_report import as_json, exact_row, protocol_line
from cluster.export import export
from cluster.trainer import train
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig, load_config
from recsys.data.histories import Histories
from recsys.errors import BundleError, ConfigError, DataError
from tests.bundles import planted, reseal, write_planted
from tests.datasets import planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

SETTINGS = ("model.dim=16", "model.negatives=32", "train.batch_size=64", "train.learning_rate=0.03", "train.precision=fp32")
HERE = ("cluster.num_workers=0", "cluster.readers=1", f"cluster.object_store_bytes={100 << 20}")
SMALL = ("train.threads=1", "train.epochs=2", *HERE)
STRANGERS, ITEMS = 4, 96


def histories() -> Histories:
    """Planted tastes; the first few users have nothing to train on, and their last item but one nobody was trained on."""
    found = planted_histories(users=200, groups=4, items=88, watched=12)
    rng = np.random.default_rng(0)
    item, starts = found.item.copy(), found.offsets[:-1]
    item[starts[:STRANGERS] + 10] = ITEMS - 1
    trained = np.where(np.arange(200) < STRANGERS, 0, found.valid_from).astype(np.int32)
    return replace(found, item=item, valid_from=trained, rating=rng.integers(1, 6, len(item)).astype(np.float32))


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    """With negatives for all users but the last."""
    rng = np.random.default_rng(1)
    negatives = {f"u{user}": [f"i{item}" for item in rng.permutation(ITEMS)[:30]] for user in range(199)}
    write_dataset(root / "dataset", histories(), items=ITEMS, row_group_events=120, negatives=negatives)
    return root / "dataset"


def trained(root: Path, dataset: Path, name: str, *more: str) -> Path:
    settings = load_config(overrides=[*SETTINGS, *SMALL, f"cluster.storage={root / 'runs'}", *more])
    return train(dataset, settings, name=name).folder


@pytest.fixture(scope="module")
def run(root, dataset) -> Path:
    return trained(root, dataset, "mf")


@pytest.fixture(scope="module")
def bundle(root, run) -> Path:
    return export(run, root / "bundles")


@pytest.fixture(scope="module")
def rates(root, dataset) -> Path:
    return trained(root, dataset, "rates", "model.loss=mse", "train.metric=rmse")


def test_errors_stand_beside_those_of_means(root, dataset, rates):
    told = of_training(rates)
    assert set(told["means"]) == set(told["test_means"]) == {"rmse", "mae"}
    two = of_training(trained(root, dataset, "by-two", "model.loss=mse", "train.metric=rmse", "cluster.num_workers=2"))
    assert two["test_means"] == pytest.approx(told["test_means"], rel=1e-6)


def values(found: module.Evaluation) -> dict[str, float]:
    return {name: figure["value"] for name, figure in as_json(found)["metrics"].items()}


def of_training(run: Path) -> dict[str, dict]:
    return json.loads((run / "result.json").read_bytes())


@pytest.mark.parametrize(("segment", "key"), [("test", "test"), ("valid", "metrics")])
def test_a_run_and_its_bundle_are_what_training_measured(run, bundle, segment, key):
    """Every metric of the run to the last digit or so, and of a bundle whose index is exact."""
    result, about = of_training(run), []
    for what in (run, bundle):
        told = as_json(evaluate(what, segment=segment))
        assert {name: figure["value"] for name, figure in told["metrics"].items()} == pytest.approx(result[key], abs=1e-9)
        popularity = result["popularity" if key == "metrics" else "test_popularity"]
        assert {name: figure["popularity"] for name, figure in told["metrics"].items()} == pytest.approx(popularity, abs=1e-9)
        about.append({name: told[name] for name in ("users", "strangers", "events", "cold_events")})
        assert told["metrics"]["ndcg@10"]["low"] <= told["metrics"]["ndcg@10"]["value"] <= told["metrics"]["ndcg@10"]["high"]
        assert "leave_last_out" in told["told"] and told["split"] == "leave_last_out"
    assert about == [result["people"][segment]] * 2 and about[0]["strangers"] == STRANGERS
    assert result[key]["ndcg@10"] > 1.3 * popularity["ndcg@10"]


def test_models_of_ratings_have_errors_with_intervals(root, rates, dataset):
    found, served = evaluate(rates), evaluate(export(rates, root / "bundles"))
    told, result = as_json(found)["metrics"], of_training(rates)["test"]
    for name in ("rmse", "mae"):
        assert told[name]["value"] == pytest.approx(result[name], abs=1e-6)
        assert told[name]["low"] < told[name]["value"] < told[name]["high"] and "popularity" not in told[name]
    # Of whom nothing was trained on, the bundle knows by now what came before test; of all others it says the same.
    errors, of_bundle = found.sums.users().errors, served.sums.users().errors
    assert errors.shape == of_bundle.shape == (3, 200)
    assert of_bundle[:, STRANGERS:] == pytest.approx(errors[:, STRANGERS:], abs=1e-5)


@pytest.fixture(scope="module")
def popular(root) -> Path:
    """Of users with four events each, none of them for validation."""
    bare = planted_histories(users=60, watched=4)
    write_dataset(root / "bare", replace(bare, valid_from=bare.test_from))
    return trained(root, root / "bare", "popular", "model.name=popularity")


def test_popularity_is_no_better_than_popularity(root, popular):
    run = popular
    for what in (run, export(run, root / "bundles")):
        found = evaluate(what)
        assert values(found) == pytest.approx(of_training(run)["test"], abs=1e-12) and found.exact is None
        assert as_json(found)["metrics"]["hr@10"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_the_index_is_set_against_exact_search(root):
    """Held out is what each user likes best: exact search finds all of it, one cell of an index in 64 a part."""
    world = planted(users=150, items=1500, tastes=8, dim=16)
    before = replace(world, seen=[seen[:-1] for seen in world.seen])
    world = replace(world, seen=[np.append(before.seen[user], before.wanted(user, 1)) for user in range(150)])
    index = IndexConfig(kind="ivf", ivf_lists=64, ivf_probes=1)
    folder = write_planted(root / "poor", world=world, index=index, recall_floor=0.0, metrics={"ndcg@10": 0.0})
    told = as_json(evaluate(folder))
    assert told["index"] == "ivf" and told["lists_by"]["ann"] > 100 and told["lists_by"]["popular"] == 0
    for name in ("hr@10", "ndcg@10"):
        figure = told["metrics"][name]
        lost = figure["index_less_exact"]
        assert figure["exact"] == 1 and 0.2 < figure["value"] < 0.95 and lost["value"] == pytest.approx(figure["value"] - 1)
        assert lost["low"] < lost["value"] < lost["high"] < 0
    row = exact_row(told)
    assert row is not None and (row[0], row[2], row[-1]) == ("ndcg@10", "1.0000", f"{told['lists_by']['ann']} of 150")


def test_by_user_folds_in_what_is_shown(run, bundle):
    one, other = evaluate(run, protocol="by-user"), evaluate(bundle, protocol="by-user")
    assert values(one) == pytest.approx(values(other), abs=1e-6)
    assert one.sums.people() == other.sums.people()
    assert one.sums.people()["events"] == 200 * 3 and one.sums.people()["strangers"] == 0
    # the tenth event of twelve was trained on, of all but those who have no train events
    assert one.trained == other.trained == 200 - STRANGERS
    assert "which flatters the model" in protocol_line(one)
    assert evaluate(bundle, protocol="by-user", segment="valid").sums.people()["events"] == 200 * 3  # of eleven


def test_among_stored_negatives(run, bundle, dataset):
    one, other = evaluate(run, protocol="negatives"), evaluate(bundle, dataset, protocol="negatives")
    assert values(one) == pytest.approx(values(other), abs=1e-9)
    assert one.sums.people() == other.sums.people() and one.sums.people()["users"] == 199 - STRANGERS
    assert other.paths is not None and other.paths["ann"] == 0
    assert values(one)["hr@10"] > values(evaluate(run))["hr@10"]  # fewer items to be behind
    assert not any(name.startswith("coverage") for name in values(one))


@pytest.fixture(scope="module")
def held(root) -> Path:
    """A split by users."""
    found = planted_histories(users=120)
    roles = [("train", "valid", "test")[user % 24 // 8] for user in range(120)]
    shown = {"train": (12, 12), "valid": (9, 12), "test": (9, 9)}
    bounds = np.array([shown[role] for role in roles], np.int32)
    found = replace(found, valid_from=bounds[:, 0], test_from=bounds[:, 1])
    shards = [user // 24 for user in range(120)]
    write_dataset(root / "held", found, roles=roles, shard_of=shards)
    return root / "held"


def test_users_held_out_have_means_of_their_ratings(root, held):
    told = of_training(trained(root, held, "held-rates", "model.loss=mse", "train.epochs=1"))
    assert set(told["means"]) == set(told["test_means"]) == {"rmse", "mae"}


def test_users_held_out_by_the_split(root, held):
    """Never trained on, so that by-user has nothing to be sorry for."""
    run = trained(root, held, "held")
    folder = export(run, root / "bundles")
    for what in (run, folder):
        assert values(evaluate(what)) == pytest.approx(of_training(run)["test"], abs=1e-6)
        again = evaluate(what, protocol="by-user")
        assert again.trained == 0 and again.sums.people() == evaluate(what).sums.people()


def test_what_has_been_learnt_is_not_scored(root, run, bundle):
    shutil.copytree(bundle, root / "refit" / "v1")
    reseal(root / "refit" / "v1", vectors_from=["train", "valid", "test"])
    with pytest.raises(BundleError, match=r"train, valid, test, so nothing held out is left.*without --refit"):
        evaluate(root / "refit" / "v1")
    shutil.copytree(run, root / "runs" / "refit")
    result = of_training(run) | {"refit": True}
    (root / "runs" / "refit" / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="a refit has learnt from valid and test"):
        evaluate(root / "runs" / "refit")


def test_what_cannot_be_measured_is_said(root, run, bundle, dataset, popular):
    with pytest.raises(ConfigError, match="There are: full, negatives, by-user"):
        evaluate(run, protocol="leave-one-out")
    with pytest.raises(ConfigError, match="there are valid and test"):
        evaluate(run, segment="train")
    with pytest.raises(ConfigError, match="for test only"):
        evaluate(run, protocol="negatives", segment="valid")
    with pytest.raises(ConfigError, match="a bundle keeps no negatives"):
        evaluate(bundle, protocol="negatives")
    with pytest.raises(DataError, match="neither a run folder nor a bundle"):
        evaluate(root / "nowhere")
    with pytest.raises(DataError, match="a dataset, which has no lists"):
        evaluate(dataset)
    with pytest.raises(BundleError, match="no bundle here"):
        evaluate(root)
    with pytest.raises(DataError, match="no negatives are stored"):
        evaluate(popular, protocol="negatives")
    with pytest.raises(DataError, match="no events out for valid; there are: test"):
        evaluate(popular, segment="valid")
    with pytest.raises(DataError, match="5 events in all"):
        evaluate(popular, protocol="by-user")
    with pytest.raises(DataError, match="not the dataset"):
        evaluate(bundle, root / "bare", protocol="negatives")
    with pytest.raises(DataError, match="not the dataset"):
        evaluate(run, root / "bare")


def test_ray_is_not_asked(run, bundle, monkeypatch):
    monkeypatch.setattr("ray.remote", None)
    monkeypatch.setattr("ray.get", None)
    monkeypatch.setattr(module, "BLOCK", 7)  # blocks of users change nothing
    told = []
    found = evaluate(bundle, progress=lambda *stage: told.append(stage))
    assert told[-1] == (module.STAGE, 200, 200) and len(told) == 29
    assert values(found) == pytest.approx(values(evaluate(run)), abs=1e-9)
    assert open_bundle(store.resolve(bundle)).manifest.split == "leave_last_out"
