"""What is said of a finished run."""

import json

import pytest

from cluster.report import begun_line, no_better_than, run_columns


def run(folder, **result):
    told = {"model": "mf", "metrics": {"ndcg@10": 0.2}, "popularity": {"ndcg@10": 0.1}} | result
    (folder / "result.json").write_text(json.dumps(told))
    return folder


def on_test(ours, **others):
    return {"test": {"ndcg@10": ours}, **{f"test_{name}": {"ndcg@10": value} for name, value in others.items()}}


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ({}, None),
        ({"popularity": {"ndcg@10": 0.2}}, "the list of the most watched"),
        ({"lately": {"ndcg@10": 0.3}}, "the list of the most watched lately"),
        (on_test(0.2, popularity=0.1), None),
        (on_test(0.2, popularity=0.3), "the list of the most watched"),
        (on_test(0.2, popularity=0.1, lately=0.15), None),
        (on_test(0.2, popularity=0.1, lately=0.3), "the list of the most watched lately"),
        ({"model": "popularity", **on_test(0.1, popularity=0.1)}, None),
    ],
)
def test_a_model_must_beat_what_is_popular_and_what_is_so_lately(tmp_path, result, what):
    assert no_better_than(run(tmp_path, **result), "ndcg@10") == what
    assert no_better_than(run(tmp_path, **result), "rmse") is None


@pytest.mark.parametrize(("theirs", "better"), [(1.01, True), (1.0, False), (0.9, False)])
def test_a_model_of_ratings_must_beat_their_means(tmp_path, theirs, better):
    found = no_better_than(run(tmp_path, metrics={"rmse": 1.0}, means={"rmse": theirs}), "rmse")
    assert found == (None if better else "the means of each item's and each user's ratings")


def test_the_list_that_follows_the_trend_stands_beside(tmp_path):
    columns = run_columns(run(tmp_path, lately={"ndcg@10": 0.15}))
    assert list(columns) == ["mf (validation)", "popularity (validation)", "popular lately (validation)"]
    assert "popular lately (validation)" not in run_columns(run(tmp_path))


def test_who_began_from_another_run_says_how_much_that_knew(tmp_path):
    assert begun_line(tmp_path) is None
    told = {"begun_from": "runs/old", "known_to_rank_0": {"user": 1671, "item": 40}}
    (tmp_path / "environment.json").write_text(json.dumps(told))
    assert "runs/old, which knows 1,671 users, 40 items (those of the first worker) of the same ids" in begun_line(tmp_path)
