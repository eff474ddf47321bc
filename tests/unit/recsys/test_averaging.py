"""The running mean of the weights: as its formula says, swapped in and out, and in checkpoints."""

import pytest
import torch
from torch import nn

from recsys.training.averaging import EVERY, TIMES, WeightMean, averaged


def walked(steps: int, decay: float) -> tuple[nn.Parameter, WeightMean]:
    """A weight that is k after step k, and its mean."""
    weight = nn.Parameter(torch.ones(2))
    mean = WeightMean([weight], decay)
    for step in range(1, steps + 1):
        weight.data.fill_(step)
        mean.step()
    return weight, mean


def test_the_mean_is_that_of_the_formula():
    weight, mean = walked(3 * EVERY, 0.9)
    expected = 1.0
    for step in (EVERY, 2 * EVERY, 3 * EVERY):
        kept = min(0.9, (1 + step) / (10 + step)) ** EVERY
        expected = kept * expected + (1 - kept) * step
    with averaged([mean]):
        assert weight.tolist() == pytest.approx([expected] * 2)
    assert weight.tolist() == [3 * EVERY] * 2


def test_one_that_reaches_far_is_brought_up_to_date_less_often():
    steps = 9 * TIMES * 4 * EVERY  # by now it reaches back over a ninth of them
    weight, mean = walked(steps, 1 - 1e-9)
    changed = 0
    for step in range(16 * EVERY):
        before = mean.state[weight]["mean"].clone()
        weight.data.fill_(steps + step)
        mean.step()
        changed += not torch.equal(mean.state[weight]["mean"], before)
    assert changed == 4


@pytest.mark.parametrize("decay", [0.9999, 1 - 1e-9])
@pytest.mark.parametrize("steps", [10, 100, 2000])
def test_one_that_would_reach_further_than_there_are_steps_follows_all_the_same(decay, steps):
    """Of weights that grow evenly it is what they were a ninth of the steps ago, less what comes of steps taken together."""
    weight, mean = walked(steps, decay)
    with averaged([mean]):
        assert 0.75 * steps < weight[0] < 0.97 * steps


def test_the_weights_come_back_after_an_error():
    weight, mean = walked(2 * EVERY, 0.99)
    with pytest.raises(ZeroDivisionError), averaged([mean]):
        assert weight[0] < 2 * EVERY
        _ = 1 / 0
    assert weight[0] == 2 * EVERY


def test_before_the_first_step_there_is_no_mean_but_the_weights():
    weight, mean = walked(0, 0.9)
    with averaged([mean]):
        assert weight.tolist() == [1, 1]


def test_going_on_from_its_state_is_as_if_nothing_had_happened():
    weight, mean = walked(2 * EVERY, 0.9)
    other = WeightMean([copy := nn.Parameter(weight.detach().clone())], 0.9)
    other.load_state_dict(mean.state_dict())
    for parameter, optimizer in ((weight, mean), (copy, other)):
        for step in range(EVERY):
            parameter.data.fill_(100 + step)
            optimizer.step()
    with averaged([mean, other]):
        assert torch.equal(weight, copy) and weight[0] < 100 + EVERY - 1
