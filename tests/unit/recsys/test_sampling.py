"""Draws of ratings' tables: around the dense solutions of the same equations, as wide as they should be, averaged as told."""

import numpy as np
import pytest
import torch

from recsys.config import Config
from recsys.data.histories import Histories
from recsys.models import Catalogue, build
from recsys.models.owned import UserRanges
from recsys.training import sampling
from recsys.training.sparse_events import SparseEvents

USERS, ITEMS, DIM = 30, 20, 3
WIDTH = DIM + 1
RNG = np.random.default_rng(3)
RATED = RNG.random((USERS, ITEMS)) < RNG.uniform(0.1, 0.7, ITEMS)
RATED[7], RATED[:, 5] = False, False  # a user and an item without events
COUNTS, LENGTHS = RATED.sum(0).astype(np.int64), RATED.sum(1)
RATINGS = RNG.integers(1, 6, (USERS, ITEMS)).astype(np.float32)
MEAN = float(RATINGS[RATED].mean())
PRECISION = np.diag([2.0, 3.0, 4.0, 5.0]) + 0.5
ALPHA = 1.7


def model_of(chains: int = 1, seed: int = 0):
    config = Config.model_validate({"model": {"name": "bpmf", "dim": DIM, "chains": chains}}).model
    return build(config, Catalogue(USERS, ITEMS, COUNTS, MEAN), seed)


def events() -> SparseEvents:
    item = np.nonzero(RATED)[1].astype(np.int32)
    return SparseEvents.of([(LENGTHS, item, RATINGS[RATED])], ITEMS, torch.device("cpu"))


def sides(model, which: str):
    """The side that is drawn, the other, who rated what and how, seen from the former."""
    users, items = sampling._sides(model, events(), 0)
    return (users, items, RATED, RATINGS) if which == "users" else (items, users, RATED.T, RATINGS.T)


def scattered(side, seed: int) -> None:
    for place in range(3):
        generator = torch.Generator().manual_seed(seed + place)
        side.part(place).copy_(torch.randn(len(side.table), WIDTH, generator=generator))


def dense_rows(others: np.ndarray, prior: np.ndarray, rated: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    factors, biases = np.concatenate([others[:, :-1], np.ones((len(others), 1))], axis=1), others[:, -1]
    rows = []
    for row, seen in enumerate(rated):
        own = PRECISION + ALPHA * factors[seen].T @ factors[seen]
        wanted = PRECISION @ prior[row] + ALPHA * factors[seen].T @ (ratings[row, seen] - MEAN - biases[seen])
        rows.append(np.linalg.solve(own, wanted))
    return np.stack(rows)


@pytest.mark.parametrize("block", [sampling.BLOCK_NUMBERS, 7 * WIDTH**2])
@pytest.mark.parametrize("which", ["users", "items"])
def test_rows_are_drawn_around_the_solution_of_their_equations(monkeypatch, which, block):
    monkeypatch.setattr(sampling, "BLOCK_NUMBERS", block)
    model = model_of()
    side, others, rated, ratings = sides(model, which)
    scattered(others, 5)
    prior = torch.randn(len(side.table), WIDTH, generator=torch.Generator().manual_seed(1))
    precision = torch.from_numpy(PRECISION)
    sampling._draw_rows(model, side, others, prior, precision, ALPHA, torch.zeros_like(prior))
    expected = dense_rows(others.part(0).numpy(), prior.numpy(), rated, ratings)
    np.testing.assert_allclose(side.part(0).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_a_row_is_as_far_from_it_as_its_precision_says():
    model = model_of()
    side, others, *_ = sides(model, "users")
    scattered(others, 5)
    prior, precision, draws = torch.zeros(USERS, WIDTH), torch.from_numpy(PRECISION), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        sampling._draw_rows(model, side, others, prior, precision, ALPHA, torch.randn(USERS, WIDTH, generator=generator))
        draws.append(side.part(0)[[0, 7]].clone())
    factors = np.concatenate([others.part(0).numpy()[:, :-1], np.ones((ITEMS, 1))], axis=1)[RATED[0]]
    for place, own in enumerate([PRECISION + ALPHA * factors.T @ factors, PRECISION]):  # user 7 has no events
        covariance = np.cov(torch.stack(draws)[:, place].numpy().T)
        np.testing.assert_allclose(covariance, np.linalg.inv(own), atol=0.05 * np.linalg.inv(own).max())


@pytest.mark.parametrize("which", ["users", "items"])
def test_links_solve_the_regression_of_rows_on_who_rated_what(monkeypatch, which):
    monkeypatch.setattr(sampling, "LINK_STEPS", 60)
    monkeypatch.setattr(sampling._Side, "noise", lambda self, *_: torch.zeros(len(self.table), WIDTH))
    side, others, rated, _ = sides(model_of(), which)
    scattered(side, 1)
    scattered(others, 5)
    features = rated / np.sqrt(np.maximum(rated.sum(1, keepdims=True), 1))
    rows = side.part(0).numpy()
    sampling._draw_links(side, others, side.part(0), torch.eye(WIDTH), lambda *_: 0)
    equations = features.T @ features + sampling.LINK_RIDGE * np.eye(len(others.table))
    np.testing.assert_allclose(others.part(2).numpy(), np.linalg.solve(equations, features.T @ rows), rtol=1e-3, atol=1e-4)


def test_precisions_are_drawn_around_those_of_the_rows():
    side, *_ = sides(model_of(), "users")
    scattered(side, 1)
    rows = side.part(0) * torch.tensor([1.0, 2.0, 3.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 4.0])
    generator = np.random.default_rng(0)
    drawn = [sampling._draw_prior(side, rows, generator) for _ in range(2000)]
    mean, precision = (torch.stack(part).mean(0).numpy() for part in zip(*drawn, strict=True))
    known = rows.numpy()[LENGTHS > 0].astype(float)
    bias = known[:, -1].sum() / (len(known) + sampling.PRIOR_ROWS)
    known[:, -1] -= bias
    expected = (len(known) + WIDTH) * np.linalg.inv(np.eye(WIDTH) + known.T @ known)
    np.testing.assert_allclose(precision, expected, atol=0.03 * expected.max())
    np.testing.assert_allclose(mean, [0, 0, 0, bias], atol=0.02)


def test_draws_are_averaged_once_the_first_epochs_are_over():
    model, width = model_of(chains=2), WIDTH
    for epoch in range(sampling.BURN_IN):
        sampling.train_epoch(model, events(), epoch, 0)
    latest, mean = model.user_table.unflatten(1, (2, 3, width)).unbind(2)[:2]
    assert torch.equal(latest, mean)
    assert not torch.equal(latest[:, 0], latest[:, 1]), "each chain goes its own way"
    drawn = []
    users, _ = sampling._sides(model, events(), 1)
    sampling.train_epoch(model, events(), sampling.BURN_IN, 0, lambda: drawn.append(users.part(0).clone()))
    of_second = drawn[2 * sampling.SWEEPS + 1 :: 2]  # after its users' half of each sweep
    assert len(drawn) == sampling.blocks_of(model)
    torch.testing.assert_close(users.part(1), torch.stack(of_second).mean(0), rtol=1e-4, atol=1e-5)


def test_a_score_is_the_mean_of_the_chains():
    model = model_of(chains=3)
    for epoch in range(sampling.BURN_IN + 1):
        sampling.train_epoch(model, events(), epoch, 0)
    user, item = (table.unflatten(1, (3, 3, WIDTH))[:, :, 1] for table in (model.user_table, model.item_table))
    by_hand = [u[:-1] @ v[:-1] + u[-1] + v[-1] + MEAN for u, v in zip(user[2], item[3], strict=True)]
    lengths = LENGTHS.astype(np.int64)
    histories = Histories.of_events(np.arange(USERS, dtype=np.int32), lengths, np.nonzero(RATED)[1].astype(np.int32))
    scores = model.user_vectors(histories) @ model.item_vectors().T
    torch.testing.assert_close(scores[2, 3], torch.stack(by_hand).mean())
    assert scores.shape == (USERS, ITEMS)
    torch.testing.assert_close(scores[7, 3], item[3, :, -1].mean() + MEAN)


def test_a_worker_without_users_takes_part():
    nobody = SparseEvents.of([], ITEMS, torch.device("cpu"))
    config = Config.model_validate({"model": {"name": "bpmf", "dim": DIM}}).model
    model = build(config, Catalogue(USERS, ITEMS, COUNTS, MEAN, owned=UserRanges.of([])), 0)
    assert sampling.train_epoch(model, nobody, 0, 0)[1] == 0
    assert model.item_table.isfinite().all()
