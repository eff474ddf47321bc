"""What a recipe has come to: means over folds and seeds by hand, and a page that says all of it."""

import json

import pytest

from cluster import reproduce_report as report
from cluster.recipe import Goal, Recipe
from cluster.reproduce_page import write
from recsys.config import load_config

VALUES = {(0, "u1"): 0.90, (0, "u2"): 1.00, (1, "u1"): 0.94, (1, "u2"): 1.00, (2, "u1"): 0.88, (2, "u2"): 0.98}


def recipe() -> Recipe:
    return Recipe(
        name="ratings",
        title="Ratings",
        about="Of five folds two.",
        source={
            "file": "x.zip",
            "files": {"u1.base": "0" * 64},
            "published": "a page",
            "licence": "Free.",
            "citation": "Nobody, 2020.",
        },
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
