"""Subspace iteration against a dense singular value decomposition, and what a model makes of the space it finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.models import Catalogue, build
from recsys.retrieval.sum_fold_in import SumFoldIn
from recsys.training import alternating, subspace
from recsys.training.sparse_events import SparseEvents

USERS, ITEMS, DIM, SMOOTHING, POWER = 40, 24, 3, 2.0, 0.3
RNG = np.random.default_rng(5)
# Three tastes of unequal weight, so that the fourth singular value is well below the third.
TASTE = np.repeat([0, 1, 2], [20, 12, 8])
WATCHED = RNG.random((USERS, ITEMS)) < np.where(np.arange(ITEMS) % 3 == TASTE[:, None], 0.8, 0.03)
WATCHED[7], WATCHED[:, 5] = False, False  # a user and an item without events
COUNTS = WATCHED.sum(0).astype(np.int64)
LENGTHS, ITEM = WATCHED.sum(1), np.nonzero(WATCHED)[1].astype(np.int32)
HISTORIES = Histories.of_events(np.arange(USERS, dtype=np.int32), LENGTHS, ITEM)

USER_WEIGHT, ITEM_WEIGHT = (LENGTHS + SMOOTHING) ** -0.5, (COUNTS + SMOOTHING) ** -0.5
EVENED = WATCHED * USER_WEIGHT[:, None] * ITEM_WEIGHT
SINGULAR, RIGHT = np.linalg.svd(EVENED)[1:]
PROJECTOR = RIGHT[:DIM].T @ RIGHT[:DIM]


def model_of(seed: int = 0, **changes):
    settings = {"smoothing": SMOOTHING, "popularity_power": POWER} | changes
    return build(ModelConfig(name="spectral", loss="squares", dim=DIM, **settings), Catalogue(USERS, ITEMS, COUNTS), seed)


def events(users: slice = slice(None)) -> SparseEvents:
    part = WATCHED[users]
    return SparseEvents.of([(part.sum(1), np.nonzero(part)[1].astype(np.int32))], ITEMS, torch.device("cpu"))


def fitted(passes: int = 30, **changes):
    model = model_of(**changes)
    told = [subspace.train_epoch(model, events()) for _ in range(passes)]
    return model, told


@pytest.mark.parametrize("block", [alternating.BLOCK_NUMBERS, 7 * DIM])
def test_passes_find_the_leading_singular_vectors(monkeypatch, block):
    monkeypatch.setattr(alternating, "BLOCK_NUMBERS", block)
    model, told = fitted()
    basis = model.item_table.double().numpy()
    np.testing.assert_allclose(basis @ basis.T, PROJECTOR, atol=1e-4)
    losses = [loss for loss, _ in told]
    assert losses == sorted(losses, reverse=True) or np.diff(losses).max() < 1e-6  # a pass never loses ground
    assert losses[-1] == pytest.approx(1 - np.square(SINGULAR[:DIM]).sum() / np.square(SINGULAR).sum(), abs=1e-5)
    assert {count for _, count in told} == {WATCHED.sum()}


def test_scores_are_histories_in_that_space():
    model, _ = fitted()
    found = (model.user_vectors(HISTORIES) @ model.item_vectors().T).numpy()
    by_hand = EVENED @ PROJECTOR * (COUNTS + SMOOTHING) ** POWER * (COUNTS > 0)
    np.testing.assert_allclose(found, by_hand, atol=1e-4)
    assert not found[7].any() and not found[:, 5].any()


def test_an_item_counts_once_in_a_history_wherever_it_stands():
    model, _ = fitted()
    order = RNG.permutation(LENGTHS[0])
    again = np.concatenate([ITEM[: LENGTHS[0]][order], ITEM[: LENGTHS[0]][:2]])
    alone = Histories.of_events(np.zeros(1, np.int32), np.array([len(again)]), again)
    assert torch.equal(model.user_vectors(alone)[0], model.user_vectors(HISTORIES)[0])


def test_serving_adds_up_what_training_does():
    model, _ = fitted()
    add_up = SumFoldIn(model.item_vectors().numpy(), COUNTS, model.fold_in_parameters())
    expected = model.user_vectors(HISTORIES).numpy()
    for user in (0, 3, 39):
        history = np.flatnonzero(WATCHED[user])
        np.testing.assert_allclose(add_up(history), expected[user], rtol=1e-5, atol=1e-6)
        assert np.array_equal(add_up(history[::-1]), add_up(history))


def test_begun_where_another_run_has_come_there_is_little_left_to_find():
    learnt, told = fitted()
    model = model_of(seed=1)
    model.item_table.data.copy_(learnt.item_table)
    model.item_table.data[:2] = model_of(seed=2).item_table[:2]  # new items begin at random
    loss, _ = subspace.train_epoch(model, events())
    assert loss < told[0][0] and loss == pytest.approx(told[-1][0], abs=0.2 * (told[0][0] - told[-1][0]))


def test_unset_as_many_events_are_added_as_a_user_has_on_average():
    assert model_of(smoothing=None).smoothing == pytest.approx(COUNTS.sum() / USERS)


def test_a_catalogue_of_fewer_items_than_dimensions_is_learnt_whole():
    config = ModelConfig(name="spectral", loss="squares", dim=ITEMS + 8, smoothing=SMOOTHING, popularity_power=POWER)
    model = build(config, Catalogue(USERS, ITEMS, COUNTS), seed=0)
    losses = [subspace.train_epoch(model, events())[0] for _ in range(2)]
    assert losses[1] == pytest.approx(0, abs=1e-5)
    found = (model.user_vectors(HISTORIES) @ model.item_vectors().T).numpy()
    np.testing.assert_allclose(found, EVENED * (COUNTS + SMOOTHING) ** POWER, atol=1e-5)


def test_a_worker_without_users_takes_part():
    nobody = replace(events(), of_users=events(slice(0)).of_users, of_items=events(slice(0)).of_items)
    loss, count = subspace.train_epoch(model := model_of(), nobody)
    assert (loss, count) == (1, 0) and model.item_table.isfinite().all()
    assert subspace.blocks_of(model, nobody) == 1  # of items
