"""Finished runs as one: weighed on validation, measured, refitted and served like any run."""

import re
from pathlib import Path

import numpy as np
import pytest

from cluster import cli
from cluster.blending import blend
from cluster.evaluate import evaluate
from cluster.export import export
from cluster.runs import read_json
from cluster.trainer import RunResult, train
from recsys.bundle.read import open_bundle
from recsys.config import Config, load_config
from recsys.data.histories import Histories
from recsys.errors import ConfigError, DataError
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Event
from tests.datasets import last_two_held_out, planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

# The first has a weight for certain, so that a blend holds an encoder.
MODELS = {"sasrec": ("model.max_length=12", "model.blocks=1", "train.batch_size=16"), "mf": (), "ials": (), "spectral": ()}
KINDS = {"sasrec": ("onnx", "history"), "mf": ("softmax", "table"), "ials": ("ridge", "table"), "spectral": ("sum", "history")}
SETTINGS = ("model.dim=6", "train.threads=1", "train.epochs=4", "cluster.num_workers=0", "cluster.readers=1")


def noisy() -> Histories:
    """Planted tastes, and a third of what is watched by chance: no model finds all of it."""
    planted, rng = planted_histories(users=400, watched=15), np.random.default_rng(1)
    item = planted.item.reshape(400, 15).copy()
    for row in item:
        others = np.setdiff1d(np.arange(80), row)
        row[rng.permutation(15)[:5]] = rng.permutation(others)[:5]
    return last_two_held_out(np.full(400, 15), item.ravel())


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    write_dataset(root / "dataset", noisy(), shards=4)
    return root / "dataset"


def settings(root: Path, *more: str) -> Config:
    storage = (f"cluster.storage={root / 'runs'}", f"cluster.object_store_bytes={100 << 20}")
    return load_config(overrides=[*SETTINGS, *storage, *more])


@pytest.fixture(scope="module")
def parts(root, dataset) -> list[RunResult]:
    return [train(dataset, settings(root, f"model.name={name}", *more), name=name) for name, more in MODELS.items()]


@pytest.fixture(scope="module")
def blended(root, parts) -> Path:
    return blend([part.folder for part in parts], root / "runs", name="all")


def test_it_is_better_than_its_first_part_and_says_of_what_it_is_made(blended, parts):
    told = read_json(blended / "result.json")
    assert told["metrics"]["ndcg@10"] > parts[0].metrics["ndcg@10"]
    assert [part["model"] for part in told["parts"]] == list(MODELS)
    assert told["parts"][0]["weight"] > 0 and any(part["weight"] > 0 for part in told["parts"][1:])
    assert told["test"] and told["test_popularity"]


def test_the_same_again_is_found_done_and_another_of_its_name_refused(root, blended, parts):
    before = (blended / "result.json").stat().st_mtime_ns
    assert blend([part.folder for part in parts], root / "runs", name="all") == blended
    assert (blended / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"is another run\. Give another --name"):
        blend([part.folder for part in parts[:2]], root / "runs", name="all")
    with pytest.raises(ConfigError, match="is another run"):
        blend([part.folder for part in parts], root / "runs", name="ials")


def test_run_and_bundle_are_worth_the_same_and_what_was_told(root, blended):
    told, folder = read_json(blended / "result.json"), export(blended, root / "bundles")
    ours, theirs = evaluate(blended).sums.metrics(), evaluate(folder).sums.metrics()
    assert ours == pytest.approx(told["test"], abs=1e-9)
    assert theirs == pytest.approx(ours, abs=1e-6)


def test_a_newcomer_is_folded_in_part_by_part(root, blended):
    bundle = open_bundle(export(blended, root / "bundles"))
    folds = bundle.manifest.fold_in.parts
    weighed = [part["model"] for part in read_json(blended / "result.json")["parts"] if part["weight"]]
    assert [(part.kind, part.known) for part in folds] == [KINDS[name] for name in weighed] and len(weighed) >= 3
    ids = bundle.items.column("item_id").to_pylist()
    recommender = Recommender(bundle, known_until="valid")
    for user in (0, 7):
        events = bundle.histories.events(user, "valid")
        taste = recommender.taste(None, [Event(ids[item]) for item in bundle.histories.item[events]])
        known = recommender.taste(f"u{user}").vector
        for part in folds:
            dims = slice(part.first, part.last)
            if part.kind != "softmax":  # the others fold in what their tables hold, or have none
                np.testing.assert_allclose(taste.vector[dims], known[dims], rtol=2e-3, atol=1e-3)
            assert bundle.user_vectors[user][dims].any() == (part.known == "table")
        likeness = taste.vector @ known / np.linalg.norm(taste.vector) / np.linalg.norm(known)
        assert likeness > 0.8
    assert len(recommender.similar(ids[3], k=5).items) == 5


def test_a_refit_refits_every_part(root, blended):
    bundle = open_bundle(export(blended, root / "refits", refit=True))
    assert bundle.manifest.vectors_from == ("train", "valid", "test") and len(bundle.manifest.fold_in.parts) >= 3
    refits = read_json(root / "runs" / "all-refit" / "result.json")
    assert [Path(part["run"]).name for part in refits["parts"]] == [f"{name}-refit" for name in MODELS]
    with pytest.raises(DataError, match="nothing is left to score"):
        evaluate(root / "runs" / "all-refit")


def test_the_command_prints_what_came_of_it(root, blended, parts, capsys):
    cli.blend([part.folder for part in parts], root / "runs", "all")
    printed = capsys.readouterr().out
    assert "Next: recsys export" in printed and re.search(r"ndcg@10", printed)


def test_what_cannot_be_blended_is_refused_by_name(root, dataset, parts):
    encodes, first = parts[0].folder, parts[1].folder
    with pytest.raises(ConfigError, match="two runs or more, each once"):
        blend([first, first], root / "runs")
    with pytest.raises(ConfigError, match="two runs or more"):
        blend([first], root / "runs")
    rates = train(dataset, settings(root, "model.loss=mse", "train.metric=rmse"), name="rates").folder
    with pytest.raises(ConfigError, match=r"rates: mf \(mse\) can be no part"):
        blend([first, rates], root / "runs")
    two = train(dataset, settings(root, "model.name=sasrec", *MODELS["sasrec"], "train.seed=1"), name="two").folder
    with pytest.raises(ConfigError, match="sasrec, two: each has an encoder"):
        blend([encodes, two, first], root / "runs")
    other = train(dataset, settings(root, "model.name=ials", "train.metric=hr@10"), name="other").folder
    with pytest.raises(ConfigError, match="chosen by hr@10"):
        blend([first, other], root / "runs")
    refit = train(dataset, settings(root, "model.name=ials"), name="refit", refit_epochs=2).folder
    with pytest.raises(DataError, match="a refit has learnt from validation"):
        blend([first, refit], root / "runs")
    write_dataset(root / "elsewhere", planted_histories(), shards=4)
    elsewhere = train(root / "elsewhere", settings(root, "model.name=ials"), name="elsewhere").folder
    with pytest.raises(DataError, match="learnt from another dataset"):
        blend([first, elsewhere], root / "runs")
    with pytest.raises(ConfigError, match="a run's name is one folder name"):
        blend([first, parts[2].folder], root / "runs", name="a/b")
