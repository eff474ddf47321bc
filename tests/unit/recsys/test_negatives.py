"""Negatives: the same for the same step, of the right items, as often as said."""

import numpy as np
import torch

from recsys.config import ModelConfig
from recsys.data.seeds import seed_of
from recsys.training.negatives import Negatives

COUNTS = np.array([0, 10, 30, 0, 60])


def draw(source: str, count: int, epoch: int = 0, step: int = 0, seed: int = 0, positives=(1, 2)):
    negatives = Negatives(ModelConfig(negative_source=source, negatives=count), COUNTS, seed)
    return negatives.draw(epoch, step, torch.tensor(positives))


def test_a_step_draws_the_same_whenever_it_is_asked():
    assert torch.equal(draw("popularity", 50, 3, 7), draw("popularity", 50, 3, 7))


def test_steps_epochs_and_seeds_draw_differently():
    first = draw("popularity", 50)
    for other in (draw("popularity", 50, step=1), draw("popularity", 50, epoch=1), draw("popularity", 50, seed=1)):
        assert not torch.equal(first, other)
    assert seed_of(0, 1, 11) != seed_of(0, 11, 1) != seed_of(1, 0, 11)


def test_uniform_draws_trained_items_alike():
    counts = np.zeros(2000, np.int64)
    counts[::2] = np.arange(1, 1001)
    drawn = Negatives(ModelConfig(negatives=999), counts, 0)
    many = torch.cat([drawn.draw(0, step, torch.zeros(1)) for step in range(50)])
    times = np.bincount(many.numpy(), minlength=2000)
    assert times[1::2].sum() == 0
    assert abs(times[:1000].sum() - times[1000:].sum()) < 5 * np.sqrt(50 * 999)


def test_uniform_takes_every_trained_item_once_if_it_may_take_as_many():
    assert draw("uniform", 3).tolist() == [1, 2, 4]


def test_popularity_draws_in_proportion_to_train_events():
    times = np.bincount(draw("popularity", 20_000).numpy(), minlength=5) / 20_000
    np.testing.assert_allclose(times, COUNTS / 100, atol=0.02)


def test_in_batch_draws_positives_of_the_step_without_repeating_an_event():
    drawn = draw("in_batch", 3, positives=(5, 6, 7, 8))
    assert len(set(drawn.tolist())) == 3
    assert set(drawn.tolist()) <= {5, 6, 7, 8}
    assert sorted(draw("in_batch", 100, positives=(5, 6, 6)).tolist()) == [5, 6, 6]
