"""The cut by user, by hand."""

import numpy as np

from recsys.data.histories import Histories
from recsys.evaluation.recut import by_user


def histories() -> Histories:
    """Ten events with 2 held out, given out of order of time; four events; five, all of the same time."""
    item = np.array([*range(10), *range(4), *range(5)], np.int32)
    time = np.array([0, 1, 2, 3, 4, 99, 6, 7, 8, 5, *range(4), *[7] * 5])
    offsets, bounds = np.array([0, 10, 14, 19]), np.array([8, 2, 5], np.int32)
    return Histories(np.arange(3, dtype=np.int32), offsets, item, item.astype(np.float32), time, bounds, bounds + 1)


def test_the_last_fifth_in_time_is_scored() -> None:
    cut, too_few, trained = by_user(histories(), trains=True)
    assert (cut.user.tolist(), too_few) == ([0, 2], 1)
    assert [cut.until("test").take(np.array([row])).item.tolist() for row in (0, 1)] == [[0, 1, 2, 3, 4, 9, 6, 7], [0, 1, 2, 3]]
    scored = cut.segment("test")
    assert scored.item.tolist() == [8, 5, 4] and scored.rating.tolist() == [8, 5, 4]
    assert trained == 2  # item 5 of the first lies in its first 8 events, and all five of the last were trained on
    assert by_user(histories(), trains=False).trained == 0
