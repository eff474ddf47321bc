"""The folded-in vector is where the gradient of what it minimises is zero."""

import numpy as np
import pytest

from recsys.retrieval.fold_in import fold_in, gram_of

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(9, 8)).astype(np.float32)
TRAINED = np.array([0, 1, 2, 4, 5, 6, 8])
GRAM = gram_of(VECTORS, TRAINED)
OFFSETS, ITEMS = np.array([0, 3, 3, 5]), np.array([1, 4, 6, 0, 8], np.int32)
RATINGS = np.array([5, 3, 4, 1, 2], np.float32)


def vectors_of(**parameters: float) -> np.ndarray:
    return fold_in(VECTORS, OFFSETS, ITEMS, RATINGS, GRAM, parameters)


def test_gram_is_of_the_items_given():
    assert GRAM.dtype == np.float64
    np.testing.assert_allclose(GRAM, sum(np.outer(VECTORS[i], VECTORS[i]) for i in TRAINED), rtol=1e-5)


def test_gram_is_the_same_in_pieces(monkeypatch):
    monkeypatch.setattr("recsys.retrieval.fold_in.AT_ONCE", 3)
    np.testing.assert_allclose(gram_of(VECTORS, TRAINED), GRAM, rtol=1e-12)


def test_squares_are_least_about_one_on_the_history_and_nothing_elsewhere():
    users = vectors_of(free=8, weight=0.3, ridge=0.7)
    for user, items in ((users[0], [1, 4, 6]), (users[2], [0, 8])):
        # Half the gradient of Σ_history (u·v − 1)² + 0.3 Σ_trained (u·v)² + 0.7 |u|².
        on_history = sum((user @ VECTORS[i] - 1) * VECTORS[i] for i in items)
        elsewhere = sum(0.3 * (user @ VECTORS[i]) * VECTORS[i] for i in TRAINED)
        np.testing.assert_allclose(on_history + elsewhere + 0.7 * user, 0, atol=1e-4)
    assert (users[1] == 0).all(), "nothing is known of a user without history"


def test_ratings_are_fitted_less_what_the_average_user_would_give():
    # Free are five dimensions, the last of them the user's bias, which begins at the mean; the item's bias is multiplied by 1.
    users = vectors_of(free=5, weight=0.0, ridge=0.7, mean=3.5, bias=1.0)
    average = np.array([0, 0, 0, 0, 3.5, 1, 0, 0])
    np.testing.assert_allclose(users[1], average)
    np.testing.assert_allclose(users[:, 5:], np.tile(average[5:], (3, 1)))
    for user, events in ((users[0], range(3)), (users[2], range(3, 5))):
        misses = [user @ VECTORS[ITEMS[event]] - RATINGS[event] for event in events]
        pull = sum(miss * VECTORS[ITEMS[event], :5] for miss, event in zip(misses, events, strict=True))
        np.testing.assert_allclose(pull + 0.7 * (user - average)[:5], 0, atol=1e-4)


def test_cosines_get_free_dimensions_of_length_one_beside_the_bias():
    users = vectors_of(free=6, weight=0.1, ridge=1.0, unit=1.0, bias=1.0)
    np.testing.assert_allclose(np.linalg.norm(users[[0, 2], :6], axis=1), 1, rtol=1e-6)
    assert (users[:, 6] == 1).all()
    assert (users[:, 7] == 0).all()


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [2, 0, 1, 4, 3]])
def test_the_order_of_a_history_does_not_matter(order):
    shuffled = fold_in(VECTORS, OFFSETS, ITEMS[order], RATINGS[order], GRAM, {"free": 8, "weight": 0.1, "ridge": 1.0})
    np.testing.assert_allclose(shuffled, vectors_of(free=8, weight=0.1, ridge=1.0), rtol=1e-4, atol=1e-6)
