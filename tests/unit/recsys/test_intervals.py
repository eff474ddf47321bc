"""Bootstrap intervals: how often they hold the truth, on simulated users whose truth is known."""

import numpy as np
import pytest

from recsys.evaluation.intervals import BLOCK, resample


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 evaluations of 150 users: a hit rate of .3, and a paired difference of .05 between two lists of the same users.

    95% of 400 is 380 with a standard deviation of 4.4; percentile intervals of 150 users are a little narrow, so 92% to 98%
    are taken for about 95%.
    """
    rng = np.random.default_rng(3)
    held = np.zeros(2)
    for seed in range(400):
        ease = rng.random(150)
        one, other = (ease < 0.3).astype(float), (ease < np.where(rng.random(150) < 0.5, 0.15, 0.35)).astype(float)
        _, (low, high) = resample(np.stack([one, one - other]), seed=seed, resamples=300).means()
        held += (low <= [0.3, 0.05]) & (high >= [0.3, 0.05])
    assert np.all(held / 400 > 0.92) and np.all(held / 400 < 0.98)


@pytest.mark.parametrize("users", [1, 2, 3])
def test_resamples_that_draw_nobody_measure_nothing(users) -> None:
    _, spread = resample(np.ones((1, users)), seed=0).means()
    assert (spread == 1).all()
    assert (resample(np.ones((1, 0)), seed=0).means()[1] == 0).all()


def test_what_all_users_share_is_certain_and_differences_are_paired() -> None:
    noise = np.random.default_rng(0).random(500)
    means, (low, high) = resample(np.stack([np.full(500, 0.25), noise, noise + 0.1, noise + 0.1 - noise]), seed=0).means()
    assert means[[0, 3]] == pytest.approx([0.25, 0.1]) and low[[0, 3]] == pytest.approx([0.25, 0.1]) == high[[0, 3]]
    assert (high - low)[[1, 2]] == pytest.approx(2 * 1.96 * noise.std() / 500**0.5, rel=0.1)


def test_a_seed_gives_the_same_interval_and_another_another() -> None:
    values = np.random.default_rng(0).random((1, BLOCK + 100))  # more than one block of users
    one, again, other = (resample(values, seed=seed).means()[1] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one[0] < values.mean() < one[1]


def test_ratios_of_sums_have_intervals_too() -> None:
    """Root mean squared error: users with more events weigh more."""
    drawn = resample(np.array([[4.0, 0.0], [1.0, 3.0]]), seed=0)
    low, high = drawn.interval(lambda sums, _: (sums[:, 0] / np.maximum(sums[:, 1], 1)) ** 0.5)
    assert (drawn.true[0] / drawn.true[1]) ** 0.5 == 1.0 and (low, high) == (0.0, 2.0)


def test_nobody_has_no_mean() -> None:
    means, spread = resample(np.zeros((3, 0)), seed=0).means()
    assert means.tolist() == [0, 0, 0] and not spread.any()
