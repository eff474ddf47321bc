"""Measures against values worked out by hand."""

import math

import pytest
import torch

from recsys.evaluation import metrics

# Three users, lists of four: hits at places 2 and 4 of three held out; a hit at 1 of one; none of two.
RELEVANT = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
HELD = torch.tensor([3, 1, 2])


def test_hit_rate():
    assert metrics.hr(RELEVANT, HELD).tolist() == [1, 1, 0]


def test_recall():
    assert metrics.recall(RELEVANT, HELD).tolist() == pytest.approx([2 / 3, 1, 0])


def test_ndcg_of_several_held_out_items():
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg(RELEVANT, HELD).tolist() == pytest.approx([gain / best, 1, 0])


def test_ndcg_of_more_held_out_items_than_places():
    assert metrics.ndcg(torch.tensor([[True, True]]), torch.tensor([9])).tolist() == [1]


def test_mrr():
    assert metrics.mrr(RELEVANT, HELD).tolist() == [0.5, 1, 0]


def test_coverage():
    assert metrics.coverage(torch.tensor([True, False, True, False]), eligible=3) == pytest.approx(2 / 3)


def test_errors_of_ratings():
    assert metrics.rmse(8.0, 2) == 2.0
    assert metrics.mae(3.0, 2) == 1.5
