"""Ratings by means alone, against the formula by hand."""

import numpy as np
import pytest
import torch

from recsys.evaluation.ranking import evaluate
from recsys.models.means import Means
from tests.datasets import random_histories

HISTORIES = random_histories(users=12, items=9)


def by_hand(mean, train, item):
    """b_i of an item; train: (user, item, rating)."""
    own = [rating - mean for _, i, rating in train if i == item]
    return sum(own) / (len(own) + 10)


def test_an_item_and_a_user_lie_beside_the_mean_as_far_as_their_ratings_tell():
    known = HISTORIES.until("valid")
    user = np.repeat(np.arange(len(known)), known.lengths)
    train = list(zip(user.tolist(), known.item.tolist(), known.rating.tolist(), strict=True))
    mean, counts = float(known.rating.mean()), np.bincount(known.item, minlength=9)
    means = Means(mean, np.bincount(known.item, known.rating, minlength=9), counts)
    found = (means.user_vectors(known) @ means.item_vectors().T).numpy()
    for row in range(len(known)):
        own = [rating - mean - by_hand(mean, train, item) for u, item, rating in train if u == row]
        expected = [mean + sum(own) / (len(own) + 15) + by_hand(mean, train, item) for item in range(9)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_a_stranger_to_all_gets_the_mean_and_it_is_measured_as_a_model():
    counts = np.bincount(HISTORIES.until("valid").item, minlength=9)
    means = Means(3.0, 3.0 * counts, counts)  # every item's mean is the mean
    torch.testing.assert_close(means.item_vectors()[:, 1], torch.zeros(9))
    told = evaluate(means, HISTORIES, segment="valid", item_counts=counts).metrics()
    known, held = HISTORIES.until("valid"), HISTORIES.segment("valid")
    beyond = [np.sum(known.rating[known.offsets[u] : known.offsets[u + 1]] - 3.0) for u in range(len(known))]
    own = np.repeat(3.0 + np.array(beyond) / (known.lengths + 15), held.lengths)
    assert told["rmse"] == pytest.approx(np.sqrt(np.mean((own - held.rating) ** 2)), rel=1e-5)
