"""What is popular now: what it adds to scores, and what it does to lists as they are measured."""

import numpy as np
import pytest
import torch

from recsys.data.histories import Histories
from recsys.evaluation import ranking
from recsys.models.popularity import Popularity
from recsys.models.trend import Trend, gains

COUNTS = np.array([6, 6, 4, 4, 0])
LATELY = np.array([2.0, 10.0, 8.0, 0.0, 0.0], np.float32)


class Flat:
    """Scores that fall by one from item to item, alike for all."""

    def user_vectors(self, histories: Histories) -> torch.Tensor:
        return torch.ones(len(histories), 1)

    def item_vectors(self) -> torch.Tensor:
        return -torch.arange(5.0)[:, None]


def evaluated(model, trend: Trend | None) -> ranking.RankingSums:
    """One user who saw item 0, and a stranger; both then watch item 1."""
    histories = Histories(
        user=np.arange(2, dtype=np.int32),
        offsets=np.array([0, 2, 3]),
        item=np.array([0, 1, 1], np.int32),
        rating=np.ones(3, np.float32),
        time=np.zeros(3, np.int64),
        valid_from=np.array([1, 0], np.int32),
        test_from=np.array([2, 1], np.int32),
    )
    return ranking.evaluate(model, histories, segment="valid", item_counts=COUNTS, ks=(1,), trend=trend)


def test_gains_are_in_standard_deviations_and_zero_for_what_nobody_watched():
    found = gains(LATELY, COUNTS)
    assert found[:4].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found / found[1], [-1, 1, 1, -1, 0], rtol=1e-6)


def test_where_nothing_moves_nothing_is_gained():
    assert not gains(COUNTS.astype(np.float32), COUNTS).any()


def test_scores_move_by_the_weight():
    trend = Trend(7.0, 2.5, LATELY)
    np.testing.assert_allclose(trend.leaning(COUNTS), 2.5 * gains(LATELY, COUNTS))


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.6, 10.0])
def test_personal_lists_lean_and_the_line_beside_them_does_not(weight):
    class OneBehindThree(Flat):
        def item_vectors(self) -> torch.Tensor:
            return torch.tensor([0.0, 2.0, 1.0, 3.0, 0.0])[:, None]

    sums = evaluated(OneBehindThree(), Trend(7.0, weight, LATELY))
    hit = sums.metrics()["hr@1"]
    # Items 1 and 2 gain alike and 3 loses as much: from half a score on item 1 is first.
    assert hit == float(weight > 0.5)
    assert sums.popularity_metrics()["hr@1"] == evaluated(Flat(), None).popularity_metrics()["hr@1"]


def test_strangers_and_the_popular_list_follow_what_is_watched_lately():
    counts_first = evaluated(Popularity(COUNTS), None)
    lately_first = evaluated(Popularity(COUNTS), Trend(7.0, 0.0, LATELY))
    assert (counts_first.stranger_metrics()["hr@1"], lately_first.stranger_metrics()["hr@1"]) == (0.0, 1.0)
    assert lately_first.metrics()["hr@1"] == 1.0
