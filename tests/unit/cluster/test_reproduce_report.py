"""What a recipe has come to: means over folds and seeds by hand, and a page that says all of it."""

import json

import numpy as np
import pytest

from cluster import reproduce_report as report
from cluster.recipe import POPULARITY, Goal, Recipe
from cluster.reproduce_page import write
from recsys.config import load_config

VALUES = {(0, "u1"): 0.90, (0, "u2"): 1.00, (1, "u1"): 0.94, (1, "u2"): 1.00, (2, "u1"): 0.88, (2, "u2"): 0.98}


SOURCE = {
    "file": "x.zip",
    "files": {"u1.base": "0" * 64},
    "published": "a page",
    "licence": "Free.",
    "citation": "Nobody, 2020.",
}


def recipe() -> Recipe:
    return Recipe(
        name="ratings",
        title="Ratings",
        about="Of five folds two.",
        source=SOURCE,
        metrics=("rmse",),
        folds=("u1", "u2"),
        goal=Goal(metric="rmse", must=0.96, stretch=0.94),
        published=({"model": "a|b", "figures": {"rmse": 0.934}, "source": "a paper"},),
        config=load_config(overrides=["model.loss=mse", "train.metric=rmse"]),
    )


def trial(seed: int, fold: str, value: float) -> dict:
    told = {"told": "full", "split": "given", "users": 9, "strangers": 1, "events": 20, "cold_events": 2}
    return {
        "seed": seed,
        "fold": fold,
        "variant": "mf",
        "fingerprint": f"print of {fold}",
        "epochs": 8,
        "best_epoch": 5,
        "validation": {"rmse": 0.91},
        "test": told | {"metrics": {"rmse": {"value": value, "low": value - 0.01, "high": value + 0.01}}},
        "seconds": {"choosing": 3600.0, "refit": 1800.0, "scoring": 360.0},
        "machine": {"name": "a CPU", "processor": {"name": "a CPU", "usable_cores": 2.0}, "memory": 16e9},
        "environment": {"commit": "abc" if seed else "def", "ray": "2.60", "python": "3.11", "hardware": {"workers": 1}},
    }


@pytest.fixture
def told() -> dict:
    trials = [trial(seed, fold, value) for (seed, fold), value in VALUES.items()]
    return report.summary(recipe(), trials, "recsys reproduce ratings")


def test_a_figure_is_the_mean_over_folds_and_then_over_seeds(told):
    figure = told["figures"]["rmse"]
    assert figure["seeds"] == pytest.approx({"0": 0.95, "1": 0.97, "2": 0.93})
    assert figure["mean"] == pytest.approx(0.95) and figure["sd"] == pytest.approx(0.02)
    assert (figure["low"], figure["high"]) == pytest.approx((0.89, 0.91)) and figure["popularity"] is None
    assert told["goal"]["must_met"] and not told["goal"]["stretch_met"]  # of errors less is better
    assert told["hours"] == {"choosing": 6.0, "refit": 3.0, "scoring": 0.6}
    assert told["commits"] == ["def", "abc"] and len(told["machines"]) == 1
    assert told["settings"] == {"model.name": "mf", "model.loss": "mse", "train.metric": "rmse"}


def test_a_seed_counts_when_all_its_folds_are_done():
    trials = [trial(seed, fold, value) for (seed, fold), value in VALUES.items()][:3]
    told = report.summary(recipe(), trials, "recsys reproduce ratings")
    assert told["seeds"] == [0] and told["missing_seeds"] == [1, 2] and told["figures"]["rmse"]["sd"] is None
    assert len(told["trials"]) == 2
    nothing = report.summary(recipe(), [], "recsys reproduce ratings")
    assert nothing["figures"] == {} and report.goal_line(nothing) is None
    assert report.table(nothing)[1] == [("a|b", "0.9340", "a paper")]


def test_the_page_says_all_of_it(told, tmp_path):
    path = write(told, tmp_path / "pages")
    page = path.read_text()
    assert json.loads(path.with_suffix(".json").read_text()) == told
    assert page.startswith("# Ratings\n") and page.endswith("\n") and "most popular" not in page
    for line in (
        "| mf, 3 seeds | 0.9500 ± 0.0200 | this page |",
        "| seed 1 | 0.9700 |  |",
        "| 95% over users, seed 0, fold u1 | 0.8900 … 0.9100 | bootstrap |",
        "| a\\|b | 0.9340 | a paper |",
        "rmse 0.9500: must 0.9600 reached, stretch 0.9400 not reached",
        "| seed 2, fold u2 | 8 | 5 | 0.9100 | 0.9800 |",
        "6.00 to choose, validation included, 3.00 to refit, 0.60 to score",
        '"model.loss": "mse"',
        "commit def, abc",
        "Of five folds two.",
    ):
        assert line in page
    listed = report.listing([recipe()], tmp_path / "pages")
    assert listed == [("ratings", "x.zip", "mf", "rmse 0.9600", "0.9500 ± 0.0200")]
    assert report.listing([recipe()], tmp_path)[0][-1] == ""


USERS = 400
NAMES = ("hr@10", "ndcg@10")


def comparison() -> Recipe:
    variants = [{"name": name, "config": load_config(overrides=[f"model.name={name}"])} for name in ("mf", "ials")]
    return Recipe(
        name="both",
        title="Both",
        source=SOURCE,
        metrics=NAMES,
        seeds=(0, 1),
        variants=variants,
        against=("ials",),
        config=load_config(),
    )


def compared_trial(variant: str, seed: int, better: float) -> dict:
    """Users differ much and models little: only pairs of the same users show that one is better for all of them."""
    ease = np.random.default_rng(0).random(USERS)
    worth = {name: np.stack([0.3 + 0.5 * ease + better, 0.3 + 0.5 * ease]) for name in NAMES}
    figures = {
        name: {"value": both[0].mean(), "low": 0, "high": 1, "popularity": both[1].mean()} for name, both in worth.items()
    }
    found = trial(seed, "", 0.0)
    ranked = {"told": "full: all 30 items ranked", "cold_events": 1} if variant == "ials" else {}
    test = found["test"] | {"metrics": figures} | ranked
    return found | {"variant": variant, "worth": worth, "test": test, "validation": {"ndcg@10": 0.4}}


def test_variants_are_set_against_popularity_and_one_another_user_by_user(tmp_path):
    better = {("mf", 0): 0.03, ("mf", 1): 0.05, ("ials", 0): 0.01, ("ials", 1): 0.01}
    trials = [compared_trial(variant, seed, by) for (variant, seed), by in better.items()]
    told = report.summary(comparison(), trials, "recsys reproduce both")
    mf, alone = told["variants"]["mf"]["ndcg@10"], told["compared"]["alone"]
    assert mf["mean"] == pytest.approx(alone["mf"]["ndcg@10"]["value"])
    assert mf["sd"] == pytest.approx(0.02 / 2**0.5)
    assert alone["mf"]["ndcg@10"]["high"] - alone["mf"]["ndcg@10"]["low"] > 0.02
    assert alone["mf"]["ndcg@10"]["value"] - alone[POPULARITY]["ndcg@10"]["value"] == pytest.approx(0.04)
    pairs = {(pair["variant"], pair["less"]): pair["metrics"]["hr@10"] for pair in told["compared"]["differences"]}
    assert list(pairs) == [("mf", POPULARITY), ("ials", POPULARITY), ("mf", "ials")]
    for pair, value in zip(pairs.values(), (0.04, 0.01, 0.03), strict=True):
        assert list(pair.values()) == pytest.approx([value] * 3)  # the same for every user, so certain
    assert told["settings"] == {"mf": {"model.name": "mf"}, "ials": {"model.name": "ials"}} and told["hours"] is None

    page = write(told, tmp_path).read_text()
    assert json.loads((tmp_path / "both.json").read_text()) == told
    hr = told["variants"]["ials"]["hr@10"]["mean"]
    for line in (
        f"| ials, 2 seeds | {hr:.4f} ± 0.0000 | {hr:.4f} ± 0.0000 | this page |",
        f"| most popular | {hr - 0.01:.4f} | {hr - 0.01:.4f} | this page |",
        "| mf less ials | +0.0300 (+0.0300 … +0.0300) | +0.0300 (+0.0300 … +0.0300) |",
        "| mf, seed 1 | 8 | 5 | 0.4000 |",
        "the defaults of each model",
        "2 of them on items nobody trained on (misses); of ials all 30 items ranked, 1 misses; 1 users without",
    ):
        assert line in page
    assert "Hours" not in page
    assert report.listing([comparison()], tmp_path) == [("both", "x.zip", "mf, ials", "", f"mf {hr + 0.03:.4f} ± 0.0141")]
    missing = report.summary(comparison(), trials[:3], "recsys reproduce both")
    assert missing["seeds"] == [0] and missing["missing_seeds"] == [1]
    nothing = report.summary(comparison(), trials[:1], "recsys reproduce both")
    assert nothing["compared"] is None and nothing["variants"] == {} and report.table(nothing)[1] == []
