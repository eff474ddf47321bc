"""Events that count half after so many days."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.recent import EVER, RecentCounts

DAY = 86_400
EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40 * DAY)), min_size=1, max_size=40)


def counted(events, half_lives=(1.0, 7.0), cuts=()) -> RecentCounts:
    """Added in pieces that end at `cuts`."""
    recent = RecentCounts(5, half_lives)
    for first, last in zip([0, *cuts], [*cuts, len(events)], strict=True):
        items, times = zip(*events[first:last], strict=True) if events[first:last] else ((), ())
        recent.add(np.array(items, np.int32), np.array(times, np.int64))
    return recent


def test_an_event_counts_half_after_a_half_life():
    recent = counted([(0, 14 * DAY), (1, 13 * DAY), (2, 7 * DAY), (3, 0)])
    np.testing.assert_allclose(recent.counts[0, :4], [1, 0.5, 2**-7, 2**-14])
    np.testing.assert_allclose(recent.counts[1, :4], [1, 2 ** (-1 / 7), 0.5, 0.25])


@given(EVENTS, st.data())
def test_neither_the_order_nor_the_pieces_of_events_matter(events, data):
    shuffled = data.draw(st.permutations(events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=3)))
    one, other = counted(events), counted(shuffled, cuts=cuts)
    assert one.newest == other.newest
    np.testing.assert_allclose(one.counts, other.counts, rtol=1e-9)


@given(EVENTS)
def test_lately_has_as_many_events_as_ever_and_none_of_what_nobody_watched(events):
    ever = np.bincount([item for item, _ in events], minlength=5)
    lately = counted(events).lately(1.0, ever)
    np.testing.assert_allclose(lately.sum(), len(events), rtol=1e-5)
    assert ((lately > 0) == (ever > 0)).all()


def test_however_long_ago_an_item_keeps_its_place_among_the_forgotten():
    events = [(0, 100_000 * DAY), (1, 1), (1, 2), (2, 3)]
    lately = counted(events).lately(1.0, np.array([1, 2, 1, 0, 0]))
    np.testing.assert_allclose(lately[1:3], [2 * EVER, EVER])
    assert lately[0] > lately[1]


def test_counting_from_a_later_time_on_moves_no_share():
    recent = counted([(0, 14 * DAY), (1, 13 * DAY)])
    before = recent.lately(7.0, np.array([1, 1, 0, 0, 0]))
    recent.move_to(20 * DAY)
    np.testing.assert_allclose(recent.counts[1, 0], 2 ** (-6 / 7))
    np.testing.assert_allclose(recent.lately(7.0, np.array([1, 1, 0, 0, 0])), before, rtol=1e-6)
