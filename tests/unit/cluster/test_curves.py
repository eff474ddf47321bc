"""The page of curves is drawn from what metrics.jsonl holds, whatever is missing."""

import pytest

from cluster.curves import draw_training


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
