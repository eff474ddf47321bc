"""Refits up to test, and `recsys reproduce` over them: chosen without test, scored on it once, gone on with."""

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from cluster import cli, runs
from cluster.evaluate import evaluate
from cluster.evaluate_report import as_json
from cluster.export import export
from cluster.recipe import read_recipe
from cluster.reproduce import reproduce
from cluster.trainer import RunResult, train
from recsys.config import Config, load_config
from recsys.data.histories import Histories
from recsys.data.sources.sample import write_sample
from recsys.errors import BundleError, ConfigError, DataError
from recsys.training import checkpoint
from tests.datasets import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

GROUPS, POOL, OWN = 4, 40, 8
RATES = (0.03, 0.03, 0.03, 0.02, 0.01)
SETTINGS = (
    "model.dim=16",
    "model.negatives=32",
    "model.l2=0.1",
    "train.batch_size=64",
    "train.micro_batch=64",
    "train.learning_rate=0.03",
    "train.precision=fp32",
    "train.threads=1",
    "train.epochs=2",
    "cluster.num_workers=0",
    "cluster.readers=1",
    f"cluster.object_store_bytes={100 << 20}",
)


def only_validation_tells(users: int = 240, seed: int = 0) -> Histories:
    """All share a pool to train on. Validation and test are of items of the user's group, which nobody trains on."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = POOL + OWN * (user % GROUPS) + rng.permutation(OWN)
        rows.append(np.concatenate([rng.permutation(POOL)[:5], own[:4]]))  # 5 train, 3 validate, 1 tests
    lengths = np.full(users, 9)
    return Histories(
        user=np.arange(users, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=np.concatenate(rows).astype(np.int32),
        rating=np.ones(9 * users, np.float32),
        time=np.arange(9 * users, dtype=np.int64),
        valid_from=np.full(users, 5, np.int32),
        test_from=np.full(users, 8, np.int32),
    )


HISTORIES = only_validation_tells()


def settings(root: Path, *more: str) -> Config:
    return load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}", *more])


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    write_dataset(root / "dataset", HISTORIES, items=POOL + GROUPS * OWN)
    return root / "dataset"


@pytest.fixture(scope="module")
def chosen(root, dataset) -> RunResult:
    return train(dataset, settings(root), name="chosen", measure_test=False)


def refitted(root: Path, dataset: Path, name: str) -> RunResult:
    return train(dataset, settings(root), name=name, refit_epochs=len(RATES), refit_until="test", refit_rates=RATES)


@pytest.fixture(scope="module")
def refit(root, dataset) -> RunResult:
    return refitted(root, dataset, "refit")


def result_of(run: RunResult) -> dict:
    return json.loads((run.folder / "result.json").read_text())


def test_a_run_that_leaves_test_alone_says_nothing_of_it_and_is_another_run(root, dataset, chosen):
    told = result_of(chosen)
    assert chosen.metrics and not chosen.test and not chosen.test_popularity
    assert told["test"] == told["test_popularity"] == told["strangers"] == {} and list(told["people"]) == ["valid"]
    assert told["trained_until"] == "valid" and told["refit"] is False
    with pytest.raises(ConfigError, match="measure_test: False → True"):
        train(dataset, settings(root), name="chosen")


def test_a_refit_learns_what_only_validation_tells_and_is_measured_on_test(chosen, refit):
    assert as_json(evaluate(chosen.folder))["metrics"]["hr@10"]["value"] == 0  # an item that nobody trained on is a miss
    assert refit.test["hr@10"] > 0.5 > 3 * refit.test_popularity["hr@10"]
    assert not refit.metrics and result_of(refit)["people"]["test"] == {
        "users": 240,
        "strangers": 0,
        "events": 240,
        "cold_events": 0,
    }
    rows = runs.read_rows(refit.folder)
    assert [row["events"] for row in rows] == [8 * 240] * len(RATES)
    assert tuple(row["learning_rate"] for row in rows) == RATES == runs.learning_rates(refit.folder, len(RATES))
    assert result_of(refit)["refit"] is True and result_of(refit)["trained_until"] == "test"


def test_test_events_move_no_parameter_of_a_refit(root, refit):
    """Every user tests on an item of another group: a pattern that only test tells."""
    item = HISTORIES.item.copy()
    item[8::9] = POOL + (item[8::9] - POOL + OWN) % (GROUPS * OWN)
    write_dataset(root / "other", replace(HISTORIES, item=item), items=POOL + GROUPS * OWN)
    other = refitted(root, root / "other", "other")
    one, two = (checkpoint.read_weights(run.folder / "best") for run in (refit, other))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    assert other.test["hr@10"] < 0.2 < refit.test["hr@10"]


def test_a_refit_and_its_bundle_may_be_scored_on_test_and_not_on_validation(root, refit):
    bundle = export(refit.folder, root / "bundles")
    for what in (refit.folder, bundle):
        told = as_json(evaluate(what))["metrics"]
        assert {name: figure["value"] for name, figure in told.items()} == pytest.approx(refit.test, abs=1e-6)
        popularity = {name: figure["popularity"] for name, figure in told.items()}
        assert popularity == pytest.approx(refit.test_popularity, abs=1e-6)
    with pytest.raises(DataError, match="a refit up to test has learnt from valid"):
        evaluate(refit.folder, segment="valid")
    with pytest.raises(BundleError, match="train, valid, so nothing held out is left"):
        evaluate(bundle, segment="valid")


RECIPE = """
title = "Films that never were"
metrics = ["hr@5", "ndcg@10"]
seeds = [1, 2]
[source]
file = "sample.zip"
files = {{ "ratings.csv" = "{sha256}" }}
published = "nowhere"
licence = "None."
citation = "Nobody."
[goal]
metric = "hr@5"
must = 0.01
stretch = 0.99
[[published]]
model = "chance"
figures = {{ "hr@5" = 0.05 }}
source = "arithmetic"
[model]
dim = 16
[train]
epochs = 3
batch_size = 256
micro_batch = 256
threads = 1
precision = "fp32"
[cluster]
num_workers = 0
readers = 1
object_store_bytes = 104857600
"""


class Recorder:
    """Who is told how far the work is."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.epochs = 0

    def stage(self, name: str, done: int, total: int) -> None:
        assert done <= total

    def step(self, epoch: int, step: int, steps: int) -> None: ...

    def epoch(self, row: dict) -> None:
        self.epochs += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def text(root, monkeypatch) -> str:
    """The recipe, its raw data where it looks for them."""
    monkeypatch.setenv("RECSYS_DATA", str(root / "data"))
    write_sample(root / "data" / "sample", users=200, films=80)
    return RECIPE.format(sha256=sha256((root / "data" / "sample" / "ratings.csv").read_bytes()).hexdigest())


def test_a_recipe_is_made_seed_by_seed_and_never_twice(root, text, capsys):
    (root / "tiny.toml").write_text(text)
    recipe, work, out = read_recipe(root / "tiny.toml"), root / "work", root / "pages"

    first = Recorder()
    with pytest.raises(ConfigError, match="tiny has the seeds 1, 2"):
        reproduce(recipe, work, first, [0])
    cli.reproduce(str(root / "tiny.toml"), out, work, "1")
    printed = capsys.readouterr().out
    assert "No page yet: seeds 2 are missing" in printed and "seed 1" in printed and not out.exists()

    second = Recorder()
    trials = reproduce(recipe, work, second)
    assert [trial["seed"] for trial in trials] == [1, 2]
    assert not any("seed 1 " in note for note in second.notes)  # done before
    assert second.epochs == trials[1]["epochs"] + trials[1]["best_epoch"]
    assert "seed 2 (2 of 2): choosing mf on validation" in second.notes[0]
    results = [json.loads(path.read_text()) for path in work.glob("tiny/runs/*/result.json")]
    assert sorted(told["trained_until"] for told in results) == ["test", "test", "valid", "valid"]
    assert all(told["test"] == {} for told in results)  # no training has looked

    third = Recorder()
    scored = next((work / "tiny" / "trials").glob("*.json"))
    scored.unlink()  # killed before it was written
    again = reproduce(recipe, work, third)
    assert third.epochs == 0 and scored.exists()
    assert [trial["test"]["metrics"] for trial in again] == [trial["test"]["metrics"] for trial in trials]

    cli.reproduce(str(root / "tiny.toml"), out, work, None)
    told, page = json.loads((out / "tiny.json").read_text()), (out / "tiny.md").read_text()
    hits = [trial["test"]["metrics"]["hr@5"]["value"] for trial in trials]
    figure = told["figures"]["hr@5"]
    assert figure["mean"] == pytest.approx(np.mean(hits)) and figure["sd"] == pytest.approx(np.std(hits, ddof=1))
    assert figure["low"] <= hits[0] <= figure["high"] and figure["sd"] > 0
    assert (
        figure["popularity"] == pytest.approx(trials[0]["test"]["metrics"]["hr@5"]["popularity"])
        and "seen ones left out" in page
    )
    assert told["goal"]["must_met"] and not told["goal"]["stretch_met"] and told["missing_seeds"] == []
    assert told["settings"]["train.epochs"] == 3 and told["hours"]["choosing"] >= 0 and told["commits"]
    assert all(f"{value:.4f}" in page for value in [*hits, figure["popularity"], 0.05])
    assert "must 0.0100 reached, stretch 0.9900 not reached" in page and str(root) not in page
    assert "Page:" in capsys.readouterr().out


VARIANTS = """
[[variant]]
name = "mf"
[[variant]]
name = "least-squares"
model.name = "ials"
train.epochs = 2
"""


def test_variants_are_scored_on_the_same_users_and_nothing_is_trained_twice(root, text):
    """In the work folder of the recipe above: of its seed 1 only the scoring is missing, which had kept no user's worth."""
    (root / "variants").mkdir()
    path, work = root / "variants" / "tiny.toml", root / "work"
    text = re.sub(r"\[goal\].*?\n\[", "[", text, flags=re.DOTALL).replace("[1, 2]", '[1]\nagainst = "least-squares"')
    path.write_text(text + VARIANTS)

    trained = (work / "tiny" / "trials").is_dir()  # unless this test runs alone
    made = Recorder()
    mf, ials = reproduce(read_recipe(path), work, made)
    assert (mf["variant"], ials["variant"]) == ("mf", "least-squares") and mf["fingerprint"] == ials["fingerprint"]
    assert made.epochs == sum(trial["epochs"] + trial["best_epoch"] for trial in ([ials] if trained else [mf, ials]))
    for trial in (mf, ials):
        assert trial["worth"]["hr@5"].shape == (2, trial["test"]["users"])
        figure = trial["test"]["metrics"]["ndcg@10"]
        assert trial["worth"]["ndcg@10"].mean(1) == pytest.approx([figure["value"], figure["popularity"]])
    assert np.array_equal(mf["worth"]["hr@5"][1], ials["worth"]["hr@5"][1])  # popularity of the same users in the same order
    again = Recorder()
    assert len(reproduce(read_recipe(path), work, again)) == 2 and not again.epochs and not again.notes
