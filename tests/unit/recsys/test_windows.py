"""Windows of histories: every event told once, cut elsewhere each epoch, padded without a look at anything else."""

import numpy as np
import pytest

from recsys.data.histories import Histories
from recsys.data.windows import Sequences, last_windows, training_windows

LENGTHS = np.array([0, 1, 2, 5, 6, 7, 23, 100])


def histories(lengths: np.ndarray = LENGTHS) -> Histories:
    """Items are numbers of events, so that a window says where it is from."""
    return Histories.of_events(np.arange(len(lengths), dtype=np.int32), lengths, np.arange(lengths.sum(), dtype=np.int32))


@pytest.mark.parametrize("most", [1, 5, 6, 200])
@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_every_event_but_a_users_first_is_told_once(most, seed):
    held = histories()
    windows = training_windows(held, most, seed)
    told = np.sort(Sequences(windows).positives)
    firsts = held.offsets[:-1][held.lengths > 0]
    assert told.tolist() == np.setdiff1d(held.item, firsts).tolist()
    assert windows.lengths.min() >= 1 and windows.lengths.max() <= most
    user = np.searchsorted(held.offsets, windows.first, side="right")
    assert (user == np.searchsorted(held.offsets, windows.last, side="right")).all(), "a window is of one user"


def test_long_histories_are_cut_elsewhere_with_another_seed_whoever_is_beside_them():
    one, again, other = (training_windows(histories(), 10, seed).first.tolist() for seed in (0, 0, 1))
    assert one == again != other
    alone = training_windows(histories().take(np.array([7])), 10, 0)
    assert (alone.first + histories().offsets[7]).tolist() == one[-len(alone) :]


def test_short_histories_are_one_window():
    assert training_windows(histories(np.array([2, 11])), 10, 5).lengths.tolist() == [1, 10]


@pytest.mark.parametrize("tokens", [1, 16, 64, 1000])
def test_buckets_hold_every_window_once_and_no_more_than_asked(tokens):
    windows = training_windows(histories(np.arange(80)), 50, 0)
    buckets = windows.buckets(tokens)
    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(windows)))
    for rows in buckets:
        shape = windows.take(rows).padded().shape
        assert shape[0] * shape[1] <= tokens or len(rows) <= 16
        assert len(rows) == 1 or len(rows) * shape[1] <= max(tokens, 16)


def test_little_is_padding_however_unlike_the_lengths():
    windows = training_windows(histories(np.random.default_rng(0).geometric(1 / 60, 2000)), 200, 0)
    shapes = [windows.take(rows).padded().shape for rows in windows.buckets(4096)]
    assert windows.lengths.sum() > 0.85 * sum(rows * length for rows, length in shapes)


def test_padding_comes_behind_the_events():
    windows = last_windows(histories(), 6)
    padded = windows.padded()
    laid_out = np.full(padded.shape, -1)
    laid_out.ravel()[padded.place] = windows.item[padded.event]
    assert laid_out[3].tolist() == [3, 4, 5, 6, 7, -1]
    assert laid_out[7].tolist() == list(range(138, 144)), "the last six of a hundred"
    assert laid_out.ravel()[padded.last].tolist() == [-1, 0, 2, 7, 13, 20, 43, 143]
    assert (laid_out[0] == -1).all()


def test_what_was_never_learnt_is_left_out_before_the_last_are_taken():
    known = np.arange(LENGTHS.sum()) % 2 == 0
    windows = last_windows(histories(), 3, known)
    padded = windows.padded()
    assert windows.lengths.tolist() == [0, 1, 1, 2, 3, 3, 3, 3]
    assert windows.item[padded.event][-3:].tolist() == [138, 140, 142]


def test_nothing_is_padded_to_something():
    nothing = training_windows(histories(np.array([1, 0])), 5, 0)
    assert (len(nothing), nothing.padded().shape) == (0, (1, 5))
    assert len(Sequences(nothing).pieces(8)) == 1
