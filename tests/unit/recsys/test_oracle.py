"""Ranking metrics of every user against those of ranx, an independent library, ties and cold items included."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.histories import Histories
from recsys.evaluation import metrics, ranking
from recsys.evaluation.counting import Eligible
from recsys.evaluation.given_lists import judge
from tests.oracles.cases import ITEMS, KS, cases, listed

CASES = cases()
ORACLE = json.loads((Path(__file__).parents[2] / "oracles" / "ranx_metrics.json").read_bytes())


class Scores:
    """A model given by its matrix of scores."""

    def user_vectors(self, histories: Histories) -> torch.Tensor:
        return torch.tensor([CASES[user].scores for user in histories.user], dtype=torch.float32)

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(ITEMS)


def histories() -> Histories:
    events = [case.seen + case.held for case in CASES]
    lengths = np.array([len(items) for items in events])
    item = np.concatenate(events).astype(np.int32)
    seen = np.array([len(case.seen) for case in CASES], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    user = np.arange(len(CASES), dtype=np.int32)
    return Histories(user, offsets, item, np.ones(len(item), np.float32), np.zeros(len(item), np.int64), seen, seen)


def counts() -> np.ndarray:
    return np.bincount([item for case in CASES for item in case.seen], minlength=ITEMS)


def agrees(values_MKU: np.ndarray) -> None:
    for row, name in enumerate(metrics.RANKING):
        for column, k in enumerate(KS):
            assert values_MKU[row, column] == pytest.approx(ORACLE["metrics"][f"{name}@{k}"], abs=1e-6), f"{name}@{k}"


def test_the_cases_have_ties_at_the_border_and_cold_items() -> None:
    tied = sum(
        case.scores[items[k - 1]] == case.scores[items[k]] for case, items in zip(CASES, listed(CASES), strict=True) for k in KS
    )
    assert tied > len(CASES) and (counts()[[item for case in CASES for item in case.held]] == 0).sum() > 10


def test_full_ranking_agrees_with_ranx() -> None:
    sums = ranking.evaluate(Scores(), histories(), segment="test", item_counts=counts(), ks=KS, batch_size=7, keep_users=True)
    agrees(sums.users().model)
    means = {name: np.mean(values) for name, values in ORACLE["metrics"].items()}
    assert {name: sums.metrics()[name] for name in means} == pytest.approx(means, abs=1e-6)


def test_given_lists_agree_with_ranx() -> None:
    lists = np.full((len(CASES), max(KS)), -1, np.int32)
    for row, items in enumerate(listed(CASES)):
        lists[row, : len(items[: max(KS)])] = items[: max(KS)]
    sums = judge(lists, lists, histories(), segment="test", eligible=Eligible(counts()), ks=KS)
    agrees(sums.users().model)
