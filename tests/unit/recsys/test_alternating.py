"""Alternating least squares against dense solutions of the same equations, and what a folded-in user owes them."""

import itertools

import numpy as np
import pytest
import torch

from recsys.config import Config, ModelConfig
from recsys.models import Catalogue, build
from recsys.models.owned import UserRanges
from recsys.retrieval.fold_in import fold_in, gram_of
from recsys.training import alternating
from recsys.training.sparse_events import SparseEvents

USERS, ITEMS, DIM, ALPHA, RIDGE = 30, 20, 4, 0.2, 0.05
RNG = np.random.default_rng(3)
WATCHED = RNG.random((USERS, ITEMS)) < RNG.uniform(0.05, 0.7, ITEMS)
WATCHED[7], WATCHED[:, 5] = False, False  # a user and an item without events
COUNTS = WATCHED.sum(0).astype(np.int64)
LENGTHS, ITEM = WATCHED.sum(1), np.nonzero(WATCHED)[1].astype(np.int32)


def model_of(power: float, seed: int = 0, alpha: float = ALPHA, ridge: float = RIDGE):
    config = ModelConfig(name="ials", loss="squares", dim=DIM, unobserved_weight=alpha, ridge=ridge, frequency_power=power)
    return build(config, Catalogue(USERS, ITEMS, COUNTS), seed)


def events() -> SparseEvents:
    return SparseEvents.of(
        [(LENGTHS[:11], ITEM[: LENGTHS[:11].sum()]), (LENGTHS[11:], ITEM[LENGTHS[:11].sum() :])], ITEMS, torch.device("cpu")
    )


def dense_half(seen: np.ndarray, fixed: np.ndarray, alpha: float, ridge: np.ndarray) -> np.ndarray:
    """Each row by its own normal equations. seen: [R, C]."""
    gram = alpha * fixed.T @ fixed
    equations = [gram + r * np.eye(DIM) + fixed[row].T @ fixed[row] for row, r in zip(seen, ridge, strict=True)]
    return np.stack([np.linalg.solve(a, fixed[row].sum(0)) for a, row in zip(equations, seen, strict=True)])


def ridges(power: float) -> tuple[np.ndarray, np.ndarray]:
    trained = (COUNTS > 0).sum()
    return RIDGE * (LENGTHS + ALPHA * trained) ** power, RIDGE * (COUNTS + ALPHA * USERS) ** power


def dense_loss(users: np.ndarray, items: np.ndarray, power: float) -> float:
    scores, (of_user, of_item) = users @ items.T, ridges(power)
    penalty = of_user @ np.square(users).sum(1) + of_item @ np.square(items).sum(1)
    return float(np.square(scores[WATCHED] - 1).sum() + ALPHA * np.square(scores).sum() + penalty)


def tables(model) -> tuple[np.ndarray, np.ndarray]:
    return model.user_table.double().numpy(), model.item_table.double().numpy()


@pytest.mark.parametrize("block", [alternating.BLOCK_NUMBERS, 7 * DIM])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_half_steps_solve_the_normal_equations(monkeypatch, power, block):
    monkeypatch.setattr(alternating, "STEPS", 12)
    monkeypatch.setattr(alternating, "BLOCK_NUMBERS", block)
    model = model_of(power)
    users, _ = tables(model)
    users[7] = 0
    for _ in range(3):
        loss, count = alternating.train_epoch(model, events(), lambda: None)
        items = dense_half(WATCHED.T, users, ALPHA, ridges(power)[1]) * (COUNTS > 0)[:, None]
        users = dense_half(WATCHED, items, ALPHA, ridges(power)[0])
    np.testing.assert_allclose(model.item_table.numpy(), items, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.user_table.numpy(), users, rtol=1e-3, atol=1e-4)
    assert count == WATCHED.sum()
    assert loss * count == pytest.approx(dense_loss(*tables(model), power), rel=1e-5)
    assert (model.user_table[7] == 0).all() and (model.item_table[5] == 0).all()


def test_few_steps_an_epoch_never_lose_ground_and_come_as_far():
    model, exact, losses = model_of(1.0), model_of(1.0), []
    for _ in range(20):
        losses.append(alternating.train_epoch(model, events())[0])
    users = tables(exact)[0]
    users[7] = 0
    for _ in range(20):
        items = dense_half(WATCHED.T, users, ALPHA, ridges(1.0)[1])
        users = dense_half(WATCHED, items, ALPHA, ridges(1.0)[0])
    assert all(later <= before * (1 + 1e-6) for before, later in itertools.pairwise(losses))
    assert losses[-1] * WATCHED.sum() == pytest.approx(dense_loss(users, items, 1.0), rel=0.02)


def test_without_frequency_it_is_the_model_of_hu_koren_and_volinsky(monkeypatch):
    """Theirs: Σ c (p − x·y)² + λ(Σ|x|² + Σ|y|²) with c = 40 for what was watched and 1 elsewhere, as libraries have it."""
    confidence, theirs = 40.0, 6.0
    monkeypatch.setattr(alternating, "STEPS", 20)
    model = model_of(0.0, alpha=1 / (confidence - 1), ridge=theirs / confidence)
    scale = (confidence / (confidence - 1)) ** 0.5
    users = tables(model)[0] * scale
    weight = np.where(WATCHED, confidence, 1.0)

    def solved(fixed: np.ndarray, weight: np.ndarray, seen: np.ndarray) -> np.ndarray:
        rows = zip(weight, seen, strict=True)
        return np.stack([np.linalg.solve((fixed.T * w) @ fixed + theirs * np.eye(DIM), fixed.T @ (w * p)) for w, p in rows])

    users[7] = 0
    for _ in range(2):
        alternating.train_epoch(model, events())
        items = solved(users, weight.T, WATCHED.T)
        users = solved(items, weight, WATCHED)
    np.testing.assert_allclose(model.user_table.numpy() * scale, users, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.item_table.numpy() * scale, items, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_folded_in_user_has_the_row_of_the_table(power):
    model = model_of(power)
    for _ in range(3):
        alternating.train_epoch(model, events())
    alternating.settle_users(model, events())
    vectors = model.item_vectors().numpy()
    offsets = np.concatenate([[0], LENGTHS.cumsum()])
    gram = gram_of(vectors, np.flatnonzero(COUNTS))
    folded = fold_in(vectors, offsets, ITEM, np.ones(len(ITEM), np.float32), gram, model.fold_in_parameters())
    np.testing.assert_allclose(folded[:, :DIM], model.user_table.numpy(), rtol=1e-3, atol=1e-5)
    assert np.abs(folded).max() > 0.1


def test_a_worker_without_users_takes_part():
    nobody = SparseEvents.of([], ITEMS, torch.device("cpu"))
    config = Config.model_validate({"model": {"name": "ials", "dim": DIM}}).model
    assert config.loss == "squares"
    model = build(config, Catalogue(USERS, ITEMS, COUNTS, owned=UserRanges.of([])), 0)
    assert alternating.train_epoch(model, nobody)[1] == 0
    assert model.item_table.isfinite().all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_unset_an_average_user_has_the_same_penalty_whatever_the_power(power):
    config = ModelConfig(name="ials", loss="squares", dim=DIM, unobserved_weight=ALPHA, frequency_power=power)
    model = build(config, Catalogue(USERS, ITEMS, COUNTS), 0)
    average = WATCHED.sum() / USERS
    penalty = 0.15 / average * (average + ALPHA * (ITEMS - 1))
    assert model.user_ridge(torch.tensor(average)).item() == pytest.approx(penalty)
    parameters = model.fold_in_parameters()
    assert parameters["ridge"] * (average + parameters["unseen"]) ** power == pytest.approx(penalty)


def test_unset_the_weight_of_what_was_not_watched_is_twenty_times_the_density():
    config = ModelConfig(name="ials", loss="squares", dim=DIM)
    sparse = build(config, Catalogue(50 * USERS, ITEMS, COUNTS, owned=UserRanges.of([(0, 1)])), 0)
    assert sparse.weight == pytest.approx(20 * WATCHED.sum() / (50 * USERS * (ITEMS - 1)))
    assert sparse.fold_in_parameters()["unseen"] == pytest.approx(20 * WATCHED.sum() / (50 * USERS))
    assert build(config, Catalogue(USERS, ITEMS, COUNTS), 0).weight == 1, "never more than what was"
