"""Histories in memory, cut by segment, and flattened to pairs."""

import copy
import pickle
from dataclasses import replace

import numpy as np

from recsys.data.histories import Pairs
from tests.datasets import random_histories

HISTORIES = random_histories(users=30, items=40)


def test_pairs_count_events_and_can_be_changed_copied_and_sent():
    pairs = HISTORIES.pairs()
    assert len(pairs) == len(HISTORIES.item) == len(pairs.columns[0])
    other = replace(pairs, total=7)
    assert other.total == 7 and other.item is pairs.item and pairs.total is None
    for same in (copy.copy(other), pickle.loads(pickle.dumps(other))):
        assert isinstance(same, Pairs) and same.total == 7
        for column, expected in zip(same.columns, pairs.columns, strict=True):
            np.testing.assert_array_equal(column, expected)


def test_segments_put_end_to_end_are_the_whole_history():
    segments = [HISTORIES.segment(name) for name in ("train", "valid", "test")]
    for user in range(len(HISTORIES)):
        row = HISTORIES.item[HISTORIES.offsets[user] : HISTORIES.offsets[user + 1]]
        parts = [part.item[part.offsets[user] : part.offsets[user + 1]] for part in segments]
        np.testing.assert_array_equal(np.concatenate(parts), row)
    for segment, part in zip(("train", "valid", "test"), segments, strict=True):
        having = [HISTORIES.user[user] for user in range(len(HISTORIES)) if part.lengths[user]]
        np.testing.assert_array_equal(HISTORIES.having(segment).user, having)
        np.testing.assert_array_equal(HISTORIES.having(segment, 3).user, having[::3])
    shown = HISTORIES.until("test")
    np.testing.assert_array_equal(shown.lengths, HISTORIES.test_from)
