"""The page of curves is drawn from what metrics.jsonl holds, whatever is missing."""

import pytest

from cluster.curves import draw_comparison, draw_training


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_curves_are_a_png(tmp_path, epochs):
    rows = [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "learning_rate": 0.01,
            "events_per_second": 1e6,
            "metrics": {"ndcg@10": 0.1 * epoch, "hr@10": 0.2},
            "popularity": {"ndcg@10": 0.05},
            "best": True,
        }
        for epoch in range(1, epochs + 1)
    ]
    draw_training(rows, tmp_path / "curves.png", title="a run", metric="ndcg@10")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_validation_has_curves_too(tmp_path):
    row = {"epoch": 1, "loss": 2.0, "learning_rate": 0.01, "events_per_second": 1e6, "metrics": {}, "popularity": {}}
    draw_training([row], tmp_path / "curves.png", title="refit", metric="ndcg@10")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_runs_over_one_another_whatever_their_names_and_lengths(tmp_path):
    def rows(epochs):
        return [{"epoch": i, "loss": 1 / i, "metrics": {"ndcg@10": 0.1 * i}, "popularity": {"ndcg@10": 0.05}} for i in epochs]

    draw_comparison({r"a$\no$": rows(range(1, 6)), "b": rows([1])}, tmp_path / "both.png", metric="ndcg@10")
    draw_comparison({"b": rows([1])}, tmp_path / "one.png", metric="ndcg@10")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()
