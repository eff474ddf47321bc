"""Folding in by softmax: the minimum that it says it finds, against autograd; what becomes of few and of many items."""

import numpy as np
import pytest
import torch

from recsys.retrieval import softmax_fold_in
from recsys.retrieval.softmax_fold_in import SoftmaxFoldIn

ITEMS, FREE, DIMS = 60, 5, 8
PARAMETERS = {"free": FREE, "temperature": 0.5, "ridge": 2.0, "bias": 1.0}


def vectors(seed: int = 0, items: int = ITEMS, scale: float = 1.0) -> np.ndarray:
    """Items' vectors, the bias behind them, zeros behind that; every tenth was never trained on."""
    rng = np.random.default_rng(seed)
    table = np.zeros((items, DIMS), np.float32)
    table[:, : FREE + 1] = rng.normal(size=(items, FREE + 1)) * scale
    table[::10] = 0
    return table


def trained(items: int = ITEMS) -> np.ndarray:
    return np.array([item for item in range(items) if item % 10])


def gradient(user: np.ndarray, table: np.ndarray, history: np.ndarray, parameters: dict) -> torch.Tensor:
    """By the book, in float64, at a user vector."""
    free = int(parameters["free"])
    u = torch.tensor(user[:free], dtype=torch.float64, requires_grad=True)
    items = torch.tensor(table[trained(len(table))], dtype=torch.float64)
    watched = torch.tensor(table[history], dtype=torch.float64)
    biases = (items[:, free], watched[:, free]) if parameters.get("bias") else (0, 0)
    logits = (items[:, :free] @ u + biases[0]) / parameters["temperature"]
    mine = (watched[:, :free] @ u + biases[1]) / parameters["temperature"]
    loss = len(history) * logits.logsumexp(0) - mine.sum() + parameters["ridge"] / 2 * u.square().sum()
    return torch.autograd.grad(loss, u)[0]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("events", [1, 7, 40])
@pytest.mark.parametrize("more", [{}, {"bias": 0.0}, {"temperature": 2.0, "ridge": 0.5}])
def test_it_descends_to_the_minimum(monkeypatch, scale, events, more):
    monkeypatch.setattr(softmax_fold_in, "STEPS", 300)
    monkeypatch.setattr(softmax_fold_in, "SETTLED", 0)
    parameters, table = PARAMETERS | more, vectors(scale=scale)
    history = np.random.default_rng(events).choice(trained(), events, replace=False)
    user = SoftmaxFoldIn(table, trained(), parameters)(history)
    at_start = gradient(np.zeros(DIMS), table, history, parameters).norm()
    assert gradient(user, table, history, parameters).norm() < 1e-2 * at_start
    assert user.dtype == np.float32 and user[FREE] == (0 if more.get("bias") == 0 else 1) and not user[FREE + 1 :].any()


def loss(user: np.ndarray, table: np.ndarray, history: np.ndarray) -> float:
    logits, mine = table[trained()] @ user / 0.5, table[history] @ user / 0.5
    free = user[:FREE]
    return float(len(history) * np.log(np.exp(logits).sum()) - mine.sum() + free @ free)


def test_the_steps_it_takes_come_near_enough(monkeypatch):
    table, history = vectors(), trained()[:9]
    nothing = SoftmaxFoldIn(table, trained(), PARAMETERS)(history[:0])
    near = SoftmaxFoldIn(table, trained(), PARAMETERS)(history)
    monkeypatch.setattr(softmax_fold_in, "STEPS", 300)
    monkeypatch.setattr(softmax_fold_in, "SETTLED", 0)
    best = SoftmaxFoldIn(table, trained(), PARAMETERS)(history)
    ends = [loss(user, table, history) for user in (best, near, nothing)]
    assert ends[0] <= ends[1] < ends[0] + 0.1 * (ends[2] - ends[0])


def test_the_order_of_a_history_moves_no_bit():
    fold_in, history = SoftmaxFoldIn(vectors(), trained(), PARAMETERS), trained()[:20]
    shuffled = np.random.default_rng(0).permutation(history)
    assert fold_in(history).tobytes() == fold_in(shuffled).tobytes()


def test_of_nothing_it_makes_the_average_user():
    user = SoftmaxFoldIn(vectors(), trained(), PARAMETERS)(np.zeros(0, np.int32))
    assert not user[:FREE].any() and user[FREE] == 1


def test_compared_by_cosine_it_has_length_one():
    user = SoftmaxFoldIn(vectors(), trained(), PARAMETERS | {"unit": 1.0, "bias": 0.0})(trained()[:3])
    assert np.linalg.norm(user) == pytest.approx(1)


def test_numbers_far_out_of_range_overflow_nothing():
    with np.errstate(all="raise", under="ignore"):
        user = SoftmaxFoldIn(vectors(scale=300), trained(), PARAMETERS)(trained()[:3])
    assert np.isfinite(user).all()


def test_some_items_stand_for_all(monkeypatch):
    """A thousand of 4,500: the popular half, and a weighted sample of the others."""
    table = vectors(items=5000)
    history = trained(5000)[:30]
    whole = SoftmaxFoldIn(table, trained(5000), PARAMETERS)(history)
    monkeypatch.setattr(softmax_fold_in, "MOST_ITEMS", 1000)
    part = SoftmaxFoldIn(table, trained(5000), PARAMETERS)(history)
    scores, near = table[trained(5000)] @ whole, table[trained(5000)] @ part
    assert np.corrcoef(scores, near)[0, 1] > 0.98
