"""Splits: planted histories with known answers, and nothing later that moves what is earlier."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data import split
from recsys.data.split import TEST, TRAIN, VALID, Events, fresh_events

histories = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=4)


def events_of(users: list[list[int]], *, roles: list[list[int]] | None = None, times=None, keep: bool = False) -> Events:
    """Events of users given as lists of items, in order."""
    user = np.repeat(np.arange(len(users), dtype=np.int32), [len(items) for items in users])
    item = np.array([item for items in users for item in items], np.int32)
    role = np.array([role for part in roles for role in part], np.int8) if roles else np.zeros(len(item), np.int8)
    time = np.concatenate(times) if times else np.concatenate([np.arange(len(items)) for items in users])
    fresh = np.ones(len(item), bool) if keep else fresh_events(user, item)
    return Events(user, item, np.ones(len(item), np.float32), time.astype(np.int64), role, fresh)


def cut(events: Events, segment: np.ndarray, repeats: str = "last") -> list[tuple[list[int], list[int], list[int]]]:
    """Items of each user's train, valid and test, once repeats are dealt with."""
    keep = split.kept(events, segment, repeats)
    return [
        tuple(events.item[keep & (events.user == user) & (segment == code)].tolist() for code in (TRAIN, VALID, TEST))
        for user in range(int(events.user.max()) + 1)
    ]


def test_leave_last_out_keeps_short_histories_to_train_on():
    events = events_of([[1, 2, 3, 4], [1, 2], [5], [3, 2, 1]])
    assert cut(events, split.leave_last_out(events, 4)) == [
        ([1, 2], [3], [4]),
        ([1, 2], [], []),
        ([5], [], []),
        ([3], [2], [1]),
    ]


def test_by_time_cuts_everybody_at_the_same_seconds():
    events = events_of([[1, 2, 3], [4, 5]], times=[np.array([10, 20, 30]), np.array([19, 20])])
    assert cut(events, split.by_time(events, 20, 30)) == [([1], [2], [3]), ([4], [5], [])]


def test_held_out_users_show_their_first_events():
    events = events_of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1]])
    held = np.array([TRAIN, TEST, VALID], np.int8)
    found = cut(events, split.by_shown(events, 3, 0.6, held))
    assert found == [([1, 2, 3, 4, 5], [], []), ([1, 2, 3], [], [4, 5]), ([1], [], [])]


def test_cold_items_are_held_out_wherever_they_occur():
    events = events_of([[0, 1, 2, 0], [2, 1]])
    segment = split.by_item(events, np.array([TRAIN, TEST, VALID], np.int8))
    assert cut(events, segment) == [([0], [2], [1]), ([], [2], [1])]


def test_given_roles_stand_and_validation_is_carved_from_the_end_of_train():
    events = events_of([list(range(12)), [0, 1]], roles=[[0] * 10 + [2] * 2, [0, 2]])
    assert cut(events, split.given(events, 2, 0.2)) == [(list(range(8)), [8, 9], [10, 11]), ([0], [], [1])]
    assert cut(events, split.given(events, 2, 0.0))[0] == (list(range(10)), [], [10, 11])


def test_a_user_keeps_something_to_train_on_when_validation_is_carved():
    events = events_of([[1, 2]])
    assert cut(events, split.given(events, 1, 0.9)) == [([1], [2], [])]


@pytest.mark.parametrize(
    ("repeats", "expected"),
    [("last", ([2, 1], [3], [4])), ("first", ([1, 2], [3], [4])), ("keep", ([1, 2, 1, 3, 4], [1], [4]))],
)
def test_repeats(repeats, expected):
    events = events_of([[1, 2, 1, 3, 4, 1, 4]], keep=repeats == "keep")
    assert cut(events, split.leave_last_out(events, 1), repeats) == [expected]


@given(
    head=st.lists(st.integers(0, 5), min_size=1, max_size=6), tails=st.tuples(*[st.lists(st.integers(0, 5), max_size=6)] * 2)
)
@pytest.mark.parametrize("repeats", ["last", "first"])
def test_by_time_nothing_after_the_border_changes_what_is_before(head, tails, repeats):
    border = len(head)
    histories = [events_of([head + tail]) for tail in tails]
    first, second = (cut(each, split.by_time(each, border, border + 2), repeats)[0] for each in histories)
    assert first[0] == second[0]
    if tails[0][:2] == tails[1][:2]:
        assert first[1] == second[1]


@given(
    items=st.lists(st.integers(0, 5), min_size=3, max_size=9),
    other=st.integers(6, 9),
    repeats=st.sampled_from(["last", "first"]),
)
def test_leave_last_out_another_test_item_changes_nothing_earlier(items, other, repeats):
    events = events_of([items])
    segment = split.leave_last_out(events, 1)
    tested = np.flatnonzero((segment == TEST) & events.fresh)
    if not len(tested):
        return
    changed = events_of([[other if place >= tested[0] else item for place, item in enumerate(items)]])
    before, after = (cut(each, split.leave_last_out(each, 1), repeats)[0] for each in (events, changed))
    assert before[:2] == after[:2]
    assert after[2] == [other]


@given(
    users=histories,
    repeats=st.sampled_from(["last", "first", "keep"]),
    name=st.sampled_from(["time", "leave", "users", "items", "given"]),
)
def test_every_event_is_kept_or_a_repeat_and_no_item_is_in_two_segments(users, repeats, name):
    events = events_of(users, keep=repeats == "keep")
    segment = {
        "time": lambda: split.by_time(events, 2, 4),
        "leave": lambda: split.leave_last_out(events, len(users)),
        "users": lambda: split.by_shown(events, len(users), 0.5, np.full(len(users), TEST, np.int8)),
        "items": lambda: split.by_item(events, np.array([0, 1, 2, 0, 1, 2], np.int8)),
        "given": lambda: split.given(events, len(users), 0.3),
    }[name]()
    keep = split.kept(events, segment, repeats)
    pairs = list(zip(events.user[keep].tolist(), events.item[keep].tolist(), strict=True))
    if repeats == "keep":
        assert keep.all()
    else:
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) == set(zip(events.user.tolist(), events.item.tolist(), strict=True))


def test_core_users_counts_items_that_are_alive_once():
    events = events_of([[0, 1, 2], [0, 0, 0], [1, 2]])
    alive = np.array([False, True, True])
    assert split.core_users(events, alive, 3, 2).tolist() == [True, False, True]
    assert split.core_users(events, np.ones(3, bool), 3, 3).tolist() == [True, False, False]


def test_held_out_takes_the_shares_asked_for():
    held = split.held_out((np.arange(100) + 0.5) / 100, 0.2, 0.1)
    assert np.bincount(held).tolist() == [70, 20, 10]
