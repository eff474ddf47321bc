"""What lists are made of when they are measured, and what an order by chance is worth: by trying many orders."""

import numpy as np
import pytest
import torch

from recsys.evaluation import chance, metrics
from recsys.evaluation.candidates import candidates

COUNTS = np.array([3, 0, 1, 0, 0])
KS = (1, 3, 7)


@pytest.mark.parametrize(
    ("listed", "split", "kind", "eligible"),
    [
        ([1, 0, 1, 0, 0], "items", "trained", [0, 2]),
        ([1, 0, 1, 0, 0], "time", "trained", [0, 2]),
        ([1, 1, 1, 0, 1], "items", "cold", [1, 4]),
        ([1, 1, 1, 0, 1], "time", "listed", [0, 1, 2, 4]),
        ([1, 1, 1, 0, 1], None, "listed", [0, 1, 2, 4]),
    ],
)
def test_cold_items_are_ranked_among_themselves_where_they_are_what_is_held_out(listed, split, kind, eligible):
    found = candidates(np.array(listed, bool), COUNTS, split)
    assert found.kind == kind and np.flatnonzero(found.eligible).tolist() == eligible


@pytest.mark.parametrize(("items", "relevant", "held"), [(9, 2, 2), (9, 1, 4), (5, 5, 5), (2, 1, 1), (4, 0, 3), (0, 0, 1)])
def test_chance_is_the_mean_of_many_orders(items, relevant, held):
    rng, orders = np.random.default_rng(0), 20_000
    drawn = np.argsort(rng.random((orders, items)), axis=1) < relevant
    hits = torch.from_numpy(np.pad(drawn, ((0, 0), (0, max(KS))))[:, : max(KS)])
    found = chance.expected(*(np.array([number]) for number in (items, relevant, held)), KS)[:, :, 0]
    for row, (name, metric) in enumerate(metrics.RANKING.items()):
        tried = [float(metric(hits[:, :k], torch.full((orders,), held)).double().mean()) for k in KS]
        assert found[row] == pytest.approx(tried, abs=0.01), name
